package vmlock

import (
	"strings"
	"testing"

	"steadfast/fault"
)

// TestParseID reads identifiers as they are printed, and nothing else.
func TestParseID(t *testing.T) {
	want := ID{1, 2, 0xfe}
	if got, err := ParseID(want.String()); err != nil || got != want {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"", "01", want.String() + "00", want.String()[1:], strings.Repeat("zz", len(want))} {
		if _, err := ParseID(text); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
