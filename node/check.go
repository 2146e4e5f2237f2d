package node

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/fault"
	"steadfast/san/drive"
	"steadfast/san/store"
)

// CheckPool reads the pool on the drives at paths, which no node may have
// open, and reports whether it is sound. It writes nothing. cacheBytes bounds
// its memory; progress may be nil.
func CheckPool(paths []string, cacheBytes int64, progress func(done, total int64)) (report store.CheckReport, err error) {
	var named []store.NamedDrive
	var held []interface{ Close() error }
	defer func() {
		for _, h := range held {
			err = errors.Join(err, h.Close())
		}
	}()
	for _, path := range paths {
		d, err := drive.OpenFileReadOnly(path)
		if err != nil {
			return report, err
		}
		held = append(held, d)
		lock, err := shareDrive(path)
		if err != nil {
			return report, err
		}
		held = append(held, lock)
		named = append(named, store.NamedDrive{Name: path, Drive: d})
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	return store.Check(store.Options{
		CacheBytes: cacheBytes,
		Now:        func() store.Instant { return store.Instant(time.Now().UnixNano()) },
		NewID:      newID,
	}, named, progress)
}

// shareDrive makes sure that no node has the drive, and gets it, until the
// lock is closed: a pool that changes under a check looks damaged.
func shareDrive(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "cannot open drive "+path)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fault.New(fault.Busy, "drive %s is in use by a node; stop it to check the pool, or use \"steadfast pool scrub\" while it runs", path), f.Close())
	}
	return f, nil
}
