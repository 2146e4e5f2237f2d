package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Folder is where a run keeps its files. It is locked while the run lives, so
// that a later run knows what a dead one left.
type Folder struct {
	Path string
	lock *os.File
}

// NewFolder makes a folder in parent, its name the prefix, the process and a
// random part. First it removes what dead runs with that prefix left there.
func NewFolder(parent, prefix string) (*Folder, error) {
	if err := Sweep(parent, prefix); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, fmt.Sprintf("%s-%d-", prefix, os.Getpid()))
	if err != nil {
		return nil, err
	}
	f := &Folder{Path: dir}
	if f.lock, err = lockIn(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return f, nil
}

// lockIn takes a folder's lock, without waiting. The kernel gives it up with the
// process, however that ends.
func lockIn(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use: %w", dir, err), f.Close())
	}
	return f, nil
}

// Close removes the folder with all that is mounted in it.
func (f *Folder) Close() error { return errors.Join(clearFolder(f.Path), f.lock.Close()) }

// clearFolder unmounts what is mounted in a folder, and removes it.
func clearFolder(dir string) error {
	mounts, err := MountsUnder(dir)
	for _, m := range mounts {
		err = errors.Join(err, unix.Unmount(m, unix.MNT_DETACH))
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// Sweep removes the folders of runs that ended without Close. Processes and
// namespaces of theirs are gone already: the kernel ended them with the run.
func Sweep(parent, prefix string) error {
	found, err := filepath.Glob(filepath.Join(parent, prefix+"-*"))
	if err != nil {
		return err
	}
	for _, dir := range found {
		lock, err := lockIn(dir)
		if err != nil {
			continue // it lives
		}
		if err := errors.Join(clearFolder(dir), lock.Close()); err != nil {
			return fmt.Errorf("left by a run that died: %w", err)
		}
	}
	return nil
}
