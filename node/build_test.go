package node

import (
	"regexp"
	"testing"
)

func TestBuildOf(t *testing.T) {
	a, err := buildOf("1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^1\.2\.3 [0-9a-f]{12}$`).MatchString(a) {
		t.Errorf("this program is of %q", a)
	}
	if b, _ := buildOf("1.2.3"); a != b {
		t.Errorf("and of %q", b)
	}
}

func TestNoteOf(t *testing.T) {
	note := func(name, size byte, rest string) []byte {
		return append([]byte{name, 0, 0, 0, size, 0, 0, 0, 4, 0, 0, 0}, rest...)
	}
	for text, n := range map[string][]byte{
		"cut":          note(4, 5, "")[:11],
		"no name":      note(4, 5, "Go"),
		"cut id":       note(4, 5, "Go\x00\x00abcd"),
		"none":         note(4, 0, "Go\x00\x00"),
		"a large name": append([]byte{255, 255, 255, 255, 1, 0, 0, 0, 4, 0, 0, 0}, "Go\x00\x00abcd"...),
	} {
		if id, err := noteOf(n); err == nil {
			t.Errorf("%s: %q", text, id)
		}
	}
	// A little-endian machine's, as all are that this runs on.
	if id, err := noteOf(note(3, 4, "Go\x00\x00abcd\x00")); err != nil || string(id) != "abcd" {
		t.Errorf("%q, %v", id, err)
	}
}
