package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"steadfast/san/drive"
	"steadfast/san/store"
	"steadfast/test/testbed"
)

// The bounds of the huge part, in bytes.
const (
	hugeMemory = 256 << 20
	hugeVolume = 64 << 40
	hugeCache  = 96 << 20
	hugeBlock  = drive.BlockSize
)

// huge runs the work in a child inside a memory cgroup. More memory than that
// and the kernel ends the child: then the claim is false.
func huge(ctx context.Context, r *report, mappings int64) error {
	if os.Geteuid() != 0 {
		r.skip("huge: a memory cgroup needs root")
		return nil
	}
	dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "steadfast-huge-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	group, err := testbed.NewCgroup("huge", hugeMemory)
	if err != nil {
		return err
	}
	defer func() { _ = group.Close() }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `echo $$ >"$0" && exec "$@"`, group.Procs(),
		self, "-inside", dir, fmt.Sprintf("-mappings=%d", mappings))
	// The limit is the test: Go is told of it as an operator would tell it.
	cmd.Env = append(os.Environ(), fmt.Sprintf("GOMEMLIMIT=%d", hugeMemory*7/8))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	r.check(err == nil, "64 TiB volume, %d mappings, inside %d MiB of memory: %s", mappings, hugeMemory>>20, ended(err))
	return nil
}

func ended(err error) string {
	if err == nil {
		return "written, opened again and read"
	}
	return err.Error()
}

// hugeInside writes the mappings, closes the pool, opens it and reads samples.
func hugeInside(ctx context.Context, dir string, mappings int64) error {
	// Half as much again as the data, so that the cleaner has nothing to do with
	// it: the part is about the map.
	d, err := newEchoDrive(filepath.Join(dir, "pool.img"), mappings*hugeBlock*3/2+2<<30)
	if err != nil {
		return err
	}
	started := time.Now()
	drives := []store.NamedDrive{{Name: "echo", Drive: d}}
	pooled := newLender()
	pool, err := store.Create("huge", pooled.options(hugeCache), drives)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	_, err = pool.CreateVolume(store.VolumeSpec{Name: "huge", Size: hugeVolume, WriteCache: true})
	if err != nil {
		return fmt.Errorf("create the volume: %w", err)
	}
	stop := pooled.maintain(pool)
	err = hugeWrite(ctx, pool, mappings)
	if err := errors.Join(err, stop(), pool.Close()); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	fmt.Printf("     %d mappings written in %v, peak resident memory %s\n", mappings, time.Since(started).Round(time.Second), peak())

	started = time.Now()
	if pool, err = store.Open(pooled.options(hugeCache), drives); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	opened := time.Since(started)
	stop = pooled.maintain(pool)
	n, err := hugeRead(ctx, pool, mappings)
	took := time.Since(started) - opened
	if err := errors.Join(err, stop(), pool.Close(), d.Close()); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	fmt.Printf("     opened in %v; %d random reads at %.0f a second, peak resident memory %s\n", opened.Round(time.Millisecond), n, float64(n)/took.Seconds(), peak())
	return nil
}

// place scatters n over the volume: a multiplication by an odd number permutes
// the blocks, so that no two mappings fall together.
func place(n int64) int64 {
	const blocks = hugeVolume / hugeBlock // a power of two
	return int64(uint64(n)*0x9e3779b97f4a7c15%blocks) * hugeBlock
}

// hugeWrite maps the first blocks of the permutation.
func hugeWrite(ctx context.Context, pool *store.Pool, mappings int64) error {
	started := time.Now()
	return eachOf(ctx, pool, "huge", mappings, func(v *store.Volume, p []byte, n int64) error {
		if n > 0 && n%(mappings/10+1) == 0 {
			fmt.Printf("     %d mappings after %v\n", n, time.Since(started).Round(time.Second))
		}
		fillBlock(p, n)
		return v.WriteAt(p, place(n), 0)
	})
}

// hugeRead reads a sample of the mappings and of holes, and compares.
func hugeRead(ctx context.Context, pool *store.Pool, mappings int64) (int64, error) {
	samples := min(mappings, 100_000)
	want := sync.Pool{New: func() any { b := make([]byte, hugeBlock); return &b }}
	return samples, eachOf(ctx, pool, "huge", samples, func(v *store.Volume, p []byte, n int64) error {
		n *= mappings / samples
		if n%5 == 4 {
			n += mappings // never written
		}
		if err := v.ReadAt(p, place(n)); err != nil {
			return err
		}
		w := want.Get().(*[]byte)
		defer want.Put(w)
		if clear(*w); n < mappings {
			fillBlock(*w, n)
		}
		if string(p) != string(*w) {
			return fmt.Errorf("block %d holds something else", n)
		}
		return nil
	})
}

// fillBlock makes the content that echoDrive need not store: a number, and
// the same bytes in every block after it.
func fillBlock(p []byte, n int64) {
	for i := range p {
		p[i] = 0xe5
	}
	binary.LittleEndian.PutUint64(p, uint64(n)+1)
}

// peak returns the most memory the process ever had resident.
func peak() string {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "unknown"
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

var _ drive.Drive = (*echoDrive)(nil)
