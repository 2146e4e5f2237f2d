package target

import (
	"slices"
	"sync"
)

// maxIdleWorkers bounds the goroutines kept for the next burst.
const maxIdleWorkers = 256

// job is something a worker does: a command or a task management function.
type job interface{ work() }

// workers runs jobs that may block, in the order they came. At most one worker
// is on its way to the queue at any time: it wakes the next when it finds more
// than it can take. So jobs that block get a goroutine each, and a burst of
// jobs that do not costs one or two wake-ups instead of one each. The number
// of busy goroutines is bounded by the commands in the sessions' windows.
type workers struct {
	mu    sync.Mutex
	queue []job // queue[head:] waits
	head  int
	// coming says that a worker was woken or started and has not taken a job:
	// whatever is in the queue, it will see.
	coming bool
	// idle workers wait on their channels; the most recent is woken first: its
	// stack has grown to what a command needs and is still in the cache.
	idle []chan struct{}
	// least is how few were idle at any moment since the last trim: so many
	// were not needed.
	least  int
	closed bool
	wg     sync.WaitGroup
}

// submit runs j on a worker.
func (w *workers) submit(j job) {
	w.mu.Lock()
	w.queue = append(w.queue, j)
	w.call()
	w.mu.Unlock()
}

// call gets a worker to come, unless one does. Under mu.
func (w *workers) call() {
	if w.coming {
		return
	}
	w.coming = true
	if n := len(w.idle); n > 0 {
		ch := w.idle[n-1]
		w.idle = w.idle[:n-1]
		w.least = min(w.least, n-1)
		ch <- struct{}{} // has room for one, and is ours alone: never blocks
		return
	}
	w.wg.Add(1)
	go w.run()
}

// take returns the next job, or nil. Under mu.
func (w *workers) take() job {
	if w.head == len(w.queue) {
		return nil
	}
	j := w.queue[w.head]
	w.queue[w.head] = nil
	if w.head++; w.head == len(w.queue) {
		w.queue, w.head = w.queue[:0], 0
	} else if w.head >= 1024 && w.head*2 >= len(w.queue) {
		// A queue that never runs dry must not grow at its front.
		w.queue = slices.Delete(w.queue, 0, w.head)
		w.head = 0
	}
	return j
}

// run works until there are idle workers enough, or the pool closes.
func (w *workers) run() {
	defer w.wg.Done()
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	w.coming = false
	for {
		if j := w.take(); j != nil {
			if w.head < len(w.queue) {
				w.call()
			}
			w.mu.Unlock()
			j.work()
			w.mu.Lock()
			continue
		}
		if w.closed || len(w.idle) >= maxIdleWorkers {
			w.mu.Unlock()
			return
		}
		w.idle = append(w.idle, ch)
		w.mu.Unlock()
		if _, work := <-ch; !work {
			return // trimmed: nothing was handed over
		}
		w.mu.Lock()
		w.coming = false
	}
}

// trim lets the workers go that were idle all the time since the last call.
func (w *workers) trim() {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(w.least, len(w.idle))
	for _, ch := range w.idle[:n] { // the longest idle are at the front
		close(ch)
	}
	w.idle = slices.Delete(w.idle, 0, n)
	w.least = len(w.idle)
}

// close ends the idle workers, and the busy ones when their work is done.
// Nothing is submitted afterwards.
func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	for _, ch := range w.idle {
		ch <- struct{}{}
	}
	w.idle = nil
	w.mu.Unlock()
	w.wg.Wait()
}
