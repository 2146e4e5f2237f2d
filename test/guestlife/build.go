package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"steadfast/test/testbed"
)

// store is the folder of images of this run.
func (r *run) store() string { return filepath.Join(r.dir, "images") }

// build builds an image, or takes it from the cache. Fails with errSkip where there is no
// archive to build it of.
func (r *run) build(i testbed.Image) error {
	began := time.Now()
	used, err := i.Build(r.ctx, r.bin, r.store(), r.cache, func(line string) { fmt.Println("note " + line) })
	switch {
	case errors.Is(err, testbed.ErrNoArchive):
		return fmt.Errorf("%w: %w", errSkip, err)
	case err != nil:
		return err
	}
	r.passed++
	fmt.Printf("ok   build of %s  %.1fs (%s; %.1f s of a processor)\n", i.Name, time.Since(began).Seconds(), strings.Join(append([]string{i.Profile}, i.Packages...), " "), used)
	return nil
}

// processor is how many seconds of a processor a command has used, and what it started.
func processor(cmd *exec.Cmd) float64 {
	return (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
}

// clean fails unless a guest's disk is a filesystem without errors.
func (r *run) clean(disk string) error {
	path, err := testbed.Tool("e2fsck")
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(r.ctx, path, "-f", "-n", disk).CombinedOutput(); err != nil {
		return fmt.Errorf("the guest's filesystem is not clean: %w: %s", err, out)
	}
	return nil
}

// disk is where an image's root filesystem is.
func (r *run) disk(i testbed.Image) string { return filepath.Join(r.store(), i.Name, "root.ext4") }

// scratch makes an empty file for a second disk.
func (r *run) scratch(bytes int64) (string, error) {
	name := filepath.Join(r.dir, "scratch")
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	return name, errors.Join(f.Truncate(bytes), f.Close())
}
