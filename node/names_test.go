package node

import (
	"strings"
	"testing"

	"steadfast/fault"
)

func TestNearest(t *testing.T) {
	names := []string{"vm-alpha", "vm-beta", "backup", "db"}
	for typed, want := range map[string]string{
		"vm-alhpa": "vm-alpha", "vm-bet": "vm-beta", "bakcup": "backup", "dbs": "db", "x": "", "entirely-else": "", "Backup": "backup", "": "",
	} {
		if got := nearest(typed, names); got != want {
			t.Errorf("nearest(%q) = %q; want %q", typed, got, want)
		}
	}
}

func TestUnknown(t *testing.T) {
	err := unknown("volume", "bakcup", "volume list", []string{"backup"})
	if !fault.Is(err, fault.NotFound) || err.Error() != `volume "bakcup" does not exist; did you mean "backup"? See "steadfast volume list"` {
		t.Error(err)
	}
	if err := unknown("volume", "x", "volume list", nil); err.Error() != `volume "x" does not exist; see "steadfast volume list"` {
		t.Error(err)
	}
}

func TestCheckName(t *testing.T) {
	for _, ok := range []string{"a", "0", "vm-1.disk", strings.Repeat("x", 63)} {
		if err := checkName("volume", ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "A", "-a", ".a", "a b", "a@b", "a/b", strings.Repeat("x", 64), "ä"} {
		if err := checkName("volume", bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
