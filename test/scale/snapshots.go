package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"steadfast/san/drive"
	"steadfast/san/store"
)

const (
	snapshotVolume = 1 << 40 // bytes
	snapshotData   = 50_000  // blocks written before the first snapshot
	snapshotCount  = 2000
	// snapshotWrites blocks are written between two snapshots: without, they
	// would all be one.
	snapshotWrites = 16
	// snapshotMax is the longest that a snapshot, or a clone of the whole
	// volume, may take. It is one durable write of the log, and the machine may
	// have something else to do.
	snapshotMax = 100 * time.Millisecond
	// snapshotOpenMax is the longest that the pool may take to open with them.
	snapshotOpenMax = 2 * time.Second
	// snapshotGoneMax bounds the wait for the space of deleted snapshots.
	snapshotGoneMax = 2 * time.Minute
)

// snapshots makes thousands of snapshots of one volume and a clone, opens the
// pool with them and deletes them.
func snapshots(ctx context.Context, r *report, size int64) (err error) {
	f, err := newFilePool(size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.remove()) }()
	_, err = f.pool.CreateVolume(store.VolumeSpec{Name: "v", Size: snapshotVolume, WriteCache: true})
	if err != nil {
		return err
	}
	if err := scatter(ctx, f.pool, snapshotData); err != nil {
		return err
	}
	before := f.pool.Status().Used
	if err := takeSnapshots(ctx, r, f.pool); err != nil {
		return err
	}
	started := time.Now()
	if _, err := f.pool.Clone("v", snapshotName(snapshotCount/2), "clone"); err != nil {
		return err
	}
	took := time.Since(started)
	r.check(took < snapshotMax, "clone of a 1 TiB volume: %v", took.Round(time.Microsecond))
	if err := f.pool.DeleteVolume("clone", false); err != nil {
		return err
	}
	if err := f.close(); err != nil {
		return err
	}
	started = time.Now()
	if err := f.open(); err != nil {
		return err
	}
	took = time.Since(started)
	r.check(took < snapshotOpenMax, "pool with %d snapshots of one volume: opened in %v", snapshotCount, took.Round(time.Millisecond))
	return dropSnapshots(ctx, r, f.pool, before)
}

func snapshotName(n int) string { return fmt.Sprintf("s%d", n) }

// takeSnapshots makes the snapshots, with a few writes before each.
func takeSnapshots(ctx context.Context, r *report, pool *store.Pool) error {
	started := time.Now()
	var times []time.Duration
	for n := range snapshotCount {
		if err := scatter(ctx, pool, snapshotWrites); err != nil {
			return err
		}
		one := time.Now()
		if _, err := pool.CreateSnapshot("v", snapshotName(n)); err != nil {
			return err
		}
		times = append(times, time.Since(one))
	}
	all := time.Since(started)
	slices.Sort(times)
	r.check(times[len(times)*99/100] < snapshotMax, "%d snapshots of a 1 TiB volume, %d writes before each: in %v; one p50 %v, p99 %v, longest %v", snapshotCount, snapshotWrites,
		all.Round(time.Millisecond), times[len(times)/2].Round(time.Microsecond), times[len(times)*99/100].Round(time.Microsecond), times[len(times)-1].Round(time.Microsecond))
	return nil
}

// dropSnapshots deletes the snapshots and waits until nothing is used that was
// not before the first.
func dropSnapshots(ctx context.Context, r *report, pool *store.Pool, before int64) error {
	used, started := pool.Status().Used, time.Now()
	for n := range snapshotCount {
		if err := errors.Join(ctx.Err(), pool.DeleteSnapshot("v", snapshotName(n))); err != nil {
			return err
		}
	}
	answered := time.Since(started)
	// What is left is the volume's own: what it held before, less what was
	// overwritten of it, and what was written since.
	gone := false
	for ; !gone && ctx.Err() == nil && time.Since(started) < snapshotGoneMax; time.Sleep(50 * time.Millisecond) {
		v, err := pool.Volume("v")
		if err != nil {
			return err
		}
		s := pool.Status()
		gone = s.Reclaimable == 0 && s.Data == v.Referenced && v.Exclusive == v.Referenced
	}
	now := pool.Status()
	r.check(gone, "%d snapshots deleted in %v, their space back after %v: used %d MiB before, %d MiB with them, %d MiB after", snapshotCount,
		answered.Round(time.Millisecond), time.Since(started).Round(time.Millisecond), before>>20, used>>20, now.Used>>20)
	return ctx.Err()
}

// scatter writes blocks at random among the places that snapshotData blocks
// take, spread over the volume: most writes are overwrites.
func scatter(ctx context.Context, pool *store.Pool, count int64) error {
	const apart = snapshotVolume / snapshotData / drive.BlockSize * drive.BlockSize
	return eachOf(ctx, pool, "v", count, func(v *store.Volume, p []byte, _ int64) error {
		binary.LittleEndian.PutUint64(p, rand.Uint64()|1) // never a hole
		return v.WriteAt(p, rand.Int64N(snapshotData)*apart, 0)
	})
}
