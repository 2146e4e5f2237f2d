package main

import (
	"errors"
	"os"
	"path/filepath"

	"steadfast/san/drive"
	"steadfast/san/store"
)

// fileCache is what a node gives its pools unless told otherwise, in bytes.
const fileCache = 256 << 20

// filePool is a pool on a file of its own.
type filePool struct {
	dir  string
	lent *lender
	file *drive.File
	pool *store.Pool // nil while it is closed
	stop func() error
}

// newFilePool makes a pool of size bytes and opens it.
func newFilePool(size int64) (*filePool, error) {
	dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "steadfast-scale-")
	if err != nil {
		return nil, err
	}
	f := &filePool{dir: dir, lent: newLender()}
	if err = drive.CreateFile(f.path(), size); err == nil {
		err = f.start(func(drives []store.NamedDrive) (*store.Pool, error) {
			return store.Create("scale", f.lent.options(fileCache), drives)
		})
	}
	if err != nil {
		return nil, errors.Join(err, f.remove())
	}
	return f, nil
}

func (f *filePool) path() string { return filepath.Join(f.dir, "pool.img") }

// open opens the pool again after close.
func (f *filePool) open() error {
	return f.start(func(drives []store.NamedDrive) (*store.Pool, error) {
		return store.Open(f.lent.options(fileCache), drives)
	})
}

// start opens the drive, makes a pool of it and lends that time.
func (f *filePool) start(pool func([]store.NamedDrive) (*store.Pool, error)) (err error) {
	if f.file, err = drive.OpenFile(f.path()); err != nil {
		return err
	}
	if f.pool, err = pool([]store.NamedDrive{{Name: f.path(), Drive: f.file}}); err != nil {
		f.pool = nil
		return errors.Join(err, f.file.Close())
	}
	f.stop = f.lent.maintain(f.pool)
	return nil
}

// close closes the pool and its drive.
func (f *filePool) close() error {
	if f.pool == nil {
		return nil
	}
	pool := f.pool
	f.pool = nil
	return errors.Join(f.stop(), pool.Close(), f.file.Close())
}

// remove closes the pool, if it is open, and deletes its file.
func (f *filePool) remove() error { return errors.Join(f.close(), os.RemoveAll(f.dir)) }
