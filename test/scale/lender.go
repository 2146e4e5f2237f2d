package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"steadfast/internal/bufpool"
	"steadfast/san/drive"
	"steadfast/san/store"
)

// writers is how many requests are under way at once.
const writers = 32

// lender lends a pool time for its background work, as a node does.
type lender struct{ wake chan struct{} }

func newLender() *lender { return &lender{wake: make(chan struct{}, 1)} }

// options are those of a pool that this lender looks after.
func (l *lender) options(cache int64) store.Options {
	return store.Options{
		CacheBytes: cache,
		Now:        func() store.Instant { return store.Instant(time.Now().UnixNano()) },
		NewID: func() (id store.ID) {
			_, _ = rand.Read(id[:]) // never fails
			return id
		},
		Wake: func() {
			select {
			case l.wake <- struct{}{}:
			default: // it will look anyway
			}
		},
	}
}

// maintain lends the time until the returned function is called, which tells
// what the background work failed with, if it did.
func (l *lender) maintain(pool *store.Pool) (stop func() error) {
	quit, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			more, err := pool.Maintain()
			if err != nil {
				done <- fmt.Errorf("background work: %w", err)
				return
			}
			wait := time.Second
			if more {
				wait = 0
			}
			select {
			case <-quit:
				done <- nil
				return
			case <-l.wake:
			case <-time.After(wait):
			}
		}
	}()
	return func() error { close(quit); return <-done }
}

// eachOf runs work for 0 to count-1 on a volume, by as many as there are
// writers, each with a block of memory of its own. It returns their errors.
func eachOf(ctx context.Context, pool *store.Pool, volume string, count int64, work func(v *store.Volume, p []byte, n int64) error) error {
	v, err := pool.OpenVolume(volume)
	if err != nil {
		return err
	}
	errs := make(chan error, writers)
	for w := range int64(writers) {
		go func() {
			p := bufpool.Get(drive.BlockSize)
			defer bufpool.Put(p)
			for n := w; n < count; n += writers {
				if err := errors.Join(ctx.Err(), work(v, p, n)); err != nil {
					errs <- fmt.Errorf("request %d: %w", n, err)
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers {
		err = errors.Join(err, <-errs)
	}
	return errors.Join(err, v.Close())
}
