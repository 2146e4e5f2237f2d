package host

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"steadfast/cluster/inventory"
)

// TestKeep: what a machine was that differs is kept, the newest of it, and nothing else of any
// pair.
func TestKeep(t *testing.T) {
	w := newWorld(t, true, nil)
	kept := t.TempDir()
	must(t, os.Mkdir(filepath.Join(kept, keepingPrefix+"left"), 0o700))
	x := w.host("h1", func(o *Options) { o.Kept = kept })
	there := func() (list []string) {
		all, err := filepath.Glob(filepath.Join(kept, "*", "*"))
		must(t, err)
		for _, dir := range all {
			name, err := filepath.Rel(kept, dir)
			must(t, err)
			list = append(list, name)
		}
		return list
	}
	if l := there(); len(l) > 0 {
		t.Errorf("a life before has left %q", l)
	}
	r := &run{h: x.Host, m: &inventory.Machine{Name: vm}, generation: 7}
	other := &run{h: x.Host, m: &inventory.Machine{Name: vm + "-2"}, generation: 7}
	if where := r.keepFiles().end(1, false); where != "" || len(there()) > 0 {
		t.Errorf("of a pair that did not diverge there is %q in %q", there(), where)
	}
	other.keepFiles().end(1, true)
	for pair := range uint64(4) {
		k := r.keepFiles()
		_, err := k.kept().State.WriteString("state")
		must(t, err)
		where := k.end(pair+1, true)
		if b, err := os.ReadFile(filepath.Join(where, "state")); err != nil || string(b) != "state" {
			t.Errorf("kept %q in %q, %v", b, where, err)
		}
	}
	if l, want := there(), []string{vm + "/7-3", vm + "/7-4", vm + "-2/7-1"}; !slices.Equal(l, want) {
		t.Errorf("kept are %q, not %q", l, want)
	}
	x.Host.o.Kept = filepath.Join(kept, "none")
	if k := r.keepFiles(); k != nil || k.kept() != nil || k.end(1, true) != "" {
		t.Error("files where there is no folder")
	}
}
