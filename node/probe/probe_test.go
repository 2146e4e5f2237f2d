package probe

import (
	"os"
	"path/filepath"
	"testing"
)

func TestContents(t *testing.T) {
	const size = 4 << 20
	for _, m := range marks() {
		f, err := os.Create(filepath.Join(t.TempDir(), "drive"))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if got, err := Contents(f, size); got != "" || err != nil {
			t.Errorf("an empty drive holds %q, %v", got, err)
		}
		off := m.off
		if off < 0 {
			off += size
		}
		if _, err := f.WriteAt([]byte(m.magic), off); err != nil {
			t.Fatal(err)
		}
		if got, err := Contents(f, size); got != m.what || err != nil {
			t.Errorf("mark at %d: %q, %v; want %q", m.off, got, err, m.what)
		}
		if err := Wipe(f, size); err != nil {
			t.Fatal(err)
		}
		if got, err := Contents(f, size); got != "" || err != nil {
			t.Errorf("a wiped drive holds %q, %v", got, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnknownAndShort(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "drive"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := Contents(f, 0); got != "" || err != nil {
		t.Errorf("nothing holds %q, %v", got, err)
	}
	if _, err := f.WriteAt([]byte("x"), 700); err != nil {
		t.Fatal(err)
	}
	if got, err := Contents(f, 701); got != "data of an unknown kind" || err != nil {
		t.Errorf("a letter: %q, %v", got, err)
	}
}
