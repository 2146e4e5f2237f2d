package target

import "sync"

// maxIdleWorkers bounds the goroutines kept for the next burst.
const maxIdleWorkers = 256

// job is something a worker does: a command or a task management function.
type job interface{ work() }

// workers runs jobs that may block. Goroutines are reused, the most
// recently idle first: its stack has grown to what a command needs and is
// still in the cache. The number of busy ones is bounded by the commands in
// the sessions' windows.
type workers struct {
	mu     sync.Mutex
	idle   []chan job
	closed bool
	wg     sync.WaitGroup
}

// submit runs c on a worker.
func (w *workers) submit(c job) {
	w.mu.Lock()
	if n := len(w.idle); n > 0 {
		ch := w.idle[n-1]
		w.idle[n-1] = nil
		w.idle = w.idle[:n-1]
		w.mu.Unlock()
		ch <- c // has room for one, and is ours alone: never blocks
		return
	}
	w.wg.Add(1)
	w.mu.Unlock()
	go w.run(c)
}

// run works until there are idle workers enough, or the pool closes.
func (w *workers) run(c job) {
	defer w.wg.Done()
	ch := make(chan job, 1)
	for {
		c.work()
		w.mu.Lock()
		if w.closed || len(w.idle) >= maxIdleWorkers {
			w.mu.Unlock()
			return
		}
		w.idle = append(w.idle, ch)
		w.mu.Unlock()
		if c = <-ch; c == nil {
			return
		}
	}
}

// close ends the idle workers, and the busy ones when their work is done.
// Nothing is submitted afterwards.
func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	for _, ch := range w.idle {
		ch <- nil
	}
	w.idle = nil
	w.mu.Unlock()
	w.wg.Wait()
}
