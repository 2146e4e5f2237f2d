package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Cgroup bounds the memory of the processes in it, page cache included: two
// servers in equal groups have equal caches, however each makes its own.
type Cgroup struct {
	dir   string
	limit string // file that holds the bound, in bytes
	usage string // file that tells the use, in bytes
}

// NewCgroup makes a memory group under the version 1 controller or, without
// one, under version 2. It needs root.
func NewCgroup(name string, bytes int64) (*Cgroup, error) {
	g := &Cgroup{limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes"}
	base := "/sys/fs/cgroup/memory"
	if _, err := os.Stat(filepath.Join(base, g.limit)); err != nil {
		base, g.limit, g.usage = "/sys/fs/cgroup", "memory.max", "memory.current"
		if _, err := os.Stat(filepath.Join(base, "cgroup.controllers")); err != nil {
			return nil, errors.New("no memory cgroup on this machine")
		}
		// May be on already, or refused: the write of the limit tells.
		_ = os.WriteFile(filepath.Join(base, "cgroup.subtree_control"), []byte("+memory"), 0o644)
	}
	var err error
	if g.dir, err = os.MkdirTemp(base, "steadfast-test-"+name+"-"); err != nil {
		return nil, fmt.Errorf("make a memory cgroup (root is needed): %w", err)
	}
	if err := os.WriteFile(filepath.Join(g.dir, g.limit), []byte(strconv.FormatInt(bytes, 10)), 0o644); err != nil {
		_ = g.Close()
		return nil, fmt.Errorf("bound a memory cgroup: %w", err)
	}
	return g, nil
}

// Procs is the file that a process enters the group by.
func (g *Cgroup) Procs() string { return filepath.Join(g.dir, "cgroup.procs") }

// Used returns the bytes charged to the group.
func (g *Cgroup) Used() (int64, error) {
	text, err := os.ReadFile(filepath.Join(g.dir, g.usage))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// Close removes the group; its processes must have ended. The kernel empties a
// group some time after its last process: hence the tries.
func (g *Cgroup) Close() error {
	var err error
	for range 50 {
		if err = os.Remove(g.dir); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}
