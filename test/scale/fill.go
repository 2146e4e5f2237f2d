package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"steadfast/san/drive"
	"steadfast/san/store"
)

const (
	// fillOverwrites is how often everything is overwritten.
	fillOverwrites = 5
	// fillSpeedMin is the share of the first pass's speed that the last keeps.
	fillSpeedMin = 0.75
	// fillStallMax is the longest that one write may take in a pool almost full.
	fillStallMax = time.Second
)

// pass is how fast a volume was written once, from its first block to its last
// in an order that is random and new each time.
type pass struct {
	iops      float64
	amplified float64       // bytes to the drive for each of the user's
	worst     time.Duration // of a single write
}

// fill overwrites volumes that fill a pool to 70 and to 90 percent, both of
// those that answer when a write is stable and those that answer before.
func fill(ctx context.Context, r *report, size int64) error {
	for _, percent := range []int64{70, 90} {
		for _, cached := range []bool{false, true} {
			if err := fillOne(ctx, r, size, percent, cached); err != nil {
				return fmt.Errorf("%d %% full: %w", percent, err)
			}
		}
	}
	return nil
}

// fillOne fills a new pool and judges what becomes of its speed.
func fillOne(ctx context.Context, r *report, size, percent int64, cached bool) (err error) {
	f, err := newFilePool(size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.remove()) }()
	pool := f.pool
	status := pool.Status()
	volume := status.Capacity * percent / 100 &^ (drive.BlockSize - 1)
	_, err = pool.CreateVolume(store.VolumeSpec{Name: "fill", Size: volume, WriteCache: cached})
	if err != nil {
		return err
	}
	kind := fmt.Sprintf("%d %% full, durable", percent)
	if cached {
		kind = fmt.Sprintf("%d %% full, cached", percent)
	}
	var first, last pass
	var worst time.Duration
	for n := range 1 + fillOverwrites {
		if last, err = fillPass(ctx, pool, volume); err != nil {
			return err
		}
		if n == 0 {
			first = last
		}
		worst = max(worst, last.worst)
		fmt.Printf("     %s, pass %d: %.0f writes a second, %.2f bytes written for each, longest write %v\n", kind, n+1, last.iops, last.amplified, last.worst.Round(time.Millisecond))
	}
	status = pool.Status()
	fmt.Printf("     %s: %d MiB of data and %d MiB of map in a capacity of %d MiB\n", kind, status.Data>>20, status.Metadata>>20, status.Capacity>>20)
	text := fmt.Sprintf("%s: after %d overwrites %.0f %% of the first pass's speed, longest write %v", kind, fillOverwrites, 100*last.iops/first.iops, worst.Round(time.Millisecond))
	if percent <= 70 {
		r.check(last.iops >= fillSpeedMin*first.iops, "%s", text)
	} else {
		r.check(worst <= fillStallMax, "%s", text)
	}
	return nil
}

// fillPass writes every block of the volume once.
func fillPass(ctx context.Context, pool *store.Pool, volume int64) (pass, error) {
	before, started := pool.Status(), time.Now()
	order := rand.Perm(int(volume / drive.BlockSize))
	var worst atomic.Int64
	err := eachOf(ctx, pool, "fill", int64(len(order)), func(v *store.Volume, p []byte, n int64) error {
		binary.LittleEndian.PutUint64(p, rand.Uint64()|1) // never a hole
		began := time.Now()
		err := v.WriteAt(p, int64(order[n])*drive.BlockSize, 0)
		took := int64(time.Since(began))
		for was := worst.Load(); took > was && !worst.CompareAndSwap(was, took); was = worst.Load() {
		}
		return err
	})
	took, after := time.Since(started), pool.Status()
	return pass{
		iops:      float64(len(order)) / took.Seconds(),
		amplified: float64(after.WrittenToDrives-before.WrittenToDrives) / float64(after.WrittenByUsers-before.WrittenByUsers),
		worst:     time.Duration(worst.Load()),
	}, err
}
