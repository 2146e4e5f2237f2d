package host

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"steadfast/compute/vmm"
	"steadfast/compute/vmm/standalone"
)

// keeping are the files for a machine that may turn out to be another than the other one of its
// pair. They have a folder that begins with keepingPrefix until then.
type keeping struct {
	r     *run
	dir   string
	files vmm.Kept
}

const (
	keepingPrefix = ".pair-"
	// keptMax is how many of one machine a host keeps, the newest: each may be as large as its memory.
	keptMax = 2
)

// clearKeeping removes what a life before has left of pairs that did not diverge.
func (o *Options) clearKeeping() error {
	left, err := filepath.Glob(filepath.Join(o.Kept, keepingPrefix+"*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// keepFiles makes the files of a pair. A machine has its secondary without rather than not at all.
func (r *run) keepFiles() *keeping {
	if r.h.o.Kept == "" {
		return nil
	}
	k := &keeping{r: r}
	var err error
	if k.dir, err = os.MkdirTemp(r.h.o.Kept, keepingPrefix+"*"); err == nil {
		if k.files.State, err = os.Create(filepath.Join(k.dir, standalone.RecordedState)); err == nil {
			k.files.Log, err = os.Create(filepath.Join(k.dir, standalone.RecordedLog))
		}
	}
	if err != nil {
		r.h.log.Warn("what a machine becomes that differs from its secondary will not be kept", "machine", r.m.Name, "error", err)
		k.end(0, false)
		return nil
	}
	return k
}

// kept is what a process is given; nil: nothing.
func (k *keeping) kept() *vmm.Kept {
	if k == nil {
		return nil
	}
	return &k.files
}

// end closes the files, and keeps them if the two were not one any more; it returns where.
// Who writes them still has them.
func (k *keeping) end(pair uint64, diverged bool) (where string) {
	if k == nil {
		return ""
	}
	for _, f := range []*os.File{k.files.State, k.files.Log} {
		if f != nil {
			_ = f.Close() // this process wrote nothing
		}
	}
	if !diverged {
		_ = os.RemoveAll(k.dir) // the next life of this host tries again
		return ""
	}
	of := filepath.Join(k.r.h.o.Kept, k.r.m.Name)
	where = filepath.Join(of, fmt.Sprintf("%d-%d", k.r.generation, pair))
	err := os.MkdirAll(of, 0o700)
	if err == nil {
		err = os.RemoveAll(where)
	}
	if err == nil {
		err = os.Rename(k.dir, where)
	}
	if err != nil {
		k.r.h.log.Warn("what a machine has become is kept under another name", "machine", k.r.m.Name, "folder", k.dir, "error", err)
		return k.dir
	}
	k.r.prune()
	return where
}

// prune keeps the newest of what is kept of the machine: by generation, and then by pair.
func (r *run) prune() {
	of := filepath.Join(r.h.o.Kept, r.m.Name)
	all, err := os.ReadDir(of)
	var sets [][2]uint64
	for _, e := range all {
		var s [2]uint64
		if n, _ := fmt.Sscanf(e.Name(), "%d-%d", &s[0], &s[1]); n == len(s) {
			sets = append(sets, s)
		}
	}
	slices.SortFunc(sets, func(a, b [2]uint64) int { return cmp.Or(cmp.Compare(b[0], a[0]), cmp.Compare(b[1], a[1])) })
	for _, s := range sets[min(len(sets), keptMax):] {
		err = errors.Join(err, os.RemoveAll(filepath.Join(of, fmt.Sprintf("%d-%d", s[0], s[1]))))
	}
	if err != nil {
		r.h.log.Warn("what was kept of a machine takes space", "machine", r.m.Name, "folder", of, "error", err)
	}
}
