package diskwire

import (
	"context"
	"sync"
	"time"

	"steadfast/block"
	"steadfast/fault"
)

// How long a request that was refused for want of space waits before it is asked again.
const (
	waitMin = 500 * time.Millisecond
	waitMax = 5 * time.Second
)

// Waiting is a device that is never full: a WriteAt or Zero that there is no space for is
// held, and asked again until there is. A guest sees a disk that is slow, where
// an error would have its filesystem become read-only, or worse. Everything else, and every
// other fault, passes.
type Waiting struct {
	block.Device
	ctx   context.Context
	space func(err error)

	mu   sync.Mutex // orders the calls of space
	held int
	// again is closed, and made anew, when a request that was held has found space: the
	// others need not wait for their turn.
	again chan struct{}
}

// NewWaiting wraps a device. space is called with an error of fault.Full when the first
// request is held, and with nil when none is any more; it must not wait, nor use the
// device. When ctx ends, what is held fails with fault.Canceled: it is that of the machine, so that
// nothing is held for one that has gone.
func NewWaiting(ctx context.Context, d block.Device, space func(err error)) *Waiting {
	return &Waiting{Device: d, ctx: ctx, space: space, again: make(chan struct{})}
}

// WriteAt implements block.Device.
func (w *Waiting) WriteAt(p []byte, off int64, flags block.Flags) error {
	err := w.Device.WriteAt(p, off, flags)
	if !fault.Is(err, fault.Full) {
		return err
	}
	return w.hold(err, func() error { return w.Device.WriteAt(p, off, flags) })
}

// Zero implements block.Device.
func (w *Waiting) Zero(off, n int64, flags block.Flags) error {
	err := w.Device.Zero(off, n, flags)
	if !fault.Is(err, fault.Full) {
		return err
	}
	return w.hold(err, func() error { return w.Device.Zero(off, n, flags) })
}

// hold asks again until the answer is another one.
func (w *Waiting) hold(err error, ask func() error) error {
	again := w.enter(err)
	defer w.leave()
	t := time.NewTimer(waitMin)
	defer t.Stop()
	for pause := waitMin; ; {
		select {
		case <-w.ctx.Done():
			return fault.New(fault.Canceled, "held until the machine was gone: %w", err)
		case <-t.C:
			pause = min(2*pause, waitMax)
		case <-again:
		}
		again = w.turn()
		if err = ask(); err == nil {
			w.found()
			return nil
		}
		if !fault.Is(err, fault.Full) {
			return err
		}
		t.Reset(pause)
	}
}

// enter counts a request that is held.
func (w *Waiting) enter(err error) (again <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held++
	if w.held == 1 {
		w.space(err)
	}
	return w.again
}

func (w *Waiting) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held--
	if w.held == 0 {
		w.space(nil)
	}
}

// turn returns what tells of the space that is found from now on.
func (w *Waiting) turn() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.again
}

// found has all others that are held ask again.
func (w *Waiting) found() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.again)
	w.again = make(chan struct{})
}
