package quorumio

import (
	"context"
	"sync"

	"steadfast/cluster/quorum"
)

// watchers tell others of new states.
type watchers struct {
	ctx   context.Context
	tasks sync.WaitGroup

	mu     sync.Mutex
	closed bool
	wake   map[chan struct{}]struct{}
}

func (w *watchers) init(ctx context.Context) {
	w.ctx, w.wake = ctx, map[chan struct{}]struct{}{}
}

// changed wakes the watchers; it never blocks.
func (w *watchers) changed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.wake {
		select {
		case c <- struct{}{}:
		default: // it is awake already and will see the newest
		}
	}
}

func (w *watchers) add(state func() *quorum.State, f func(*quorum.State)) (stop func()) {
	wake := make(chan struct{}, 1)
	wake <- struct{}{} // for the present state
	ctx, cancel := context.WithCancel(w.ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return cancel
	}
	w.wake[wake] = struct{}{}
	w.tasks.Add(1)
	go func() {
		defer w.tasks.Done()
		defer w.remove(wake)
		var seen *quorum.State
		for {
			select {
			case <-ctx.Done():
				return
			case <-wake:
			}
			if s := state(); s != seen && ctx.Err() == nil {
				seen = s
				f(s)
			}
		}
	}()
	return cancel
}

func (w *watchers) remove(wake chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.wake, wake)
}

// wait waits for the watchers, whose context has ended.
func (w *watchers) wait() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.tasks.Wait()
}
