package main

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// sentry sees how long a processor did not get to a thread that wanted it for a moment
// only: a virtual machine's are taken away by its host, for seconds at times, and no
// pair of nodes on it can be faster than that.
type sentry struct {
	worst atomic.Int64 // nanoseconds, since take
	quit  chan struct{}
	tasks sync.WaitGroup
}

// sentryStep is how long the thread sleeps in between.
const sentryStep = 5 * time.Millisecond

// stoodLong is how many milliseconds are told of.
const stoodLong = 100

// watchProcessors begins to look at each processor.
func watchProcessors() *sentry {
	s := &sentry{quit: make(chan struct{})}
	for cpu := range runtime.NumCPU() {
		s.tasks.Go(func() {
			runtime.LockOSThread() // and the thread ends with the goroutine: its affinity is nobody else's
			var one unix.CPUSet
			one.Set(cpu)
			if unix.SchedSetaffinity(0, &one) != nil {
				return // not ours to use
			}
			for last := time.Now(); ; {
				select {
				case <-s.quit:
					return
				default:
				}
				step := unix.NsecToTimespec(sentryStep.Nanoseconds())
				_ = unix.Nanosleep(&step, nil) // woken early, it is a short step
				now := time.Now()
				late := (now.Sub(last) - sentryStep).Nanoseconds()
				for w := s.worst.Load(); late > w && !s.worst.CompareAndSwap(w, late); w = s.worst.Load() {
				}
				last = now
			}
		})
	}
	return s
}

// take returns the longest since the last take.
func (s *sentry) take() time.Duration { return time.Duration(s.worst.Swap(0)) }

func (s *sentry) end() {
	close(s.quit)
	s.tasks.Wait()
}
