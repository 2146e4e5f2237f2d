package verify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// transferMax is the largest request, in bytes.
const transferMax = 1 << 20

// Lane is a stream of requests through a connection of its own.
type Lane struct {
	Disk  Disk
	Depth int // requests under way
	// RateMax bounds requests a second; 0: as fast as they are answered.
	RateMax int
}

// Load keeps lanes busy on one disk: half of the requests read anywhere, the
// others write where only their lane writes. So readers cross connections, and
// no two writes meet.
type Load struct {
	judge *Judge
	lanes []*lane

	gate   sync.RWMutex // held for reading by every request: Pause takes it whole
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// lane is a Lane at work.
type lane struct {
	Lane
	id         uint32
	from, size int64 // where it writes

	mu      sync.Mutex
	writing map[int64]bool // blocks

	workers []*worker
	tokens  chan struct{} // nil: no bound
}

// worker is one request at a time.
type worker struct {
	began atomic.Int64 // ns since epoch of its request; 0: none

	mu sync.Mutex
	Window
}

// Window is what was measured between two cuts.
type Window struct {
	IOs int64
	// Longest is the longest that any request took until it was answered, or
	// took so far, when it was not.
	Longest time.Duration
}

func (w *Window) add(other Window) {
	w.IOs += other.IOs
	w.Longest = max(w.Longest, other.Longest)
}

// base is what began is counted from: time.Since has the monotonic clock.
var base = time.Now()

// Fill writes all that judge judges, so that from then on every block has a
// stamp, and returns.
func Fill(ctx context.Context, judge *Judge, disk Disk) error {
	return inPieces(ctx, judge.Size(), func(buf []byte, off int64) {
		w := judge.BeginWrite(0, buf, off)
		judge.EndWrite(w, disk.WriteAt(buf, off, false))
	})
}

// ReadBack reads all that judge judges, and has it judged. Load may go on.
func ReadBack(ctx context.Context, judge *Judge, disk Disk) error {
	return inPieces(ctx, judge.Size(), func(buf []byte, off int64) {
		r := judge.BeginRead(off, int64(len(buf)))
		judge.EndRead(r, buf, disk.ReadAt(buf, off))
	})
}

// inPieces calls do for every piece of size bytes, a few at a time.
func inPieces(ctx context.Context, size int64, do func(buf []byte, off int64)) error {
	var next atomic.Int64
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			buf := make([]byte, transferMax)
			for ctx.Err() == nil {
				off := next.Add(transferMax) - transferMax
				if off >= size {
					return
				}
				do(buf[:min(transferMax, size-off)], off)
			}
		})
	}
	wait.Wait()
	return ctx.Err()
}

// StartLoad starts the lanes; Fill comes first. They go on until Stop.
func StartLoad(judge *Judge, lanes ...Lane) (*Load, error) {
	share := judge.Size() / int64(len(lanes)) / transferMax * transferMax
	if share == 0 {
		return nil, fmt.Errorf("%d bytes are too few for %d lanes", judge.Size(), len(lanes))
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{judge: judge, cancel: cancel}
	for i, cfg := range lanes {
		lane := &lane{Lane: cfg, id: uint32(i + 1), from: int64(i) * share, size: share, writing: map[int64]bool{}}
		if cfg.RateMax > 0 {
			lane.tokens = make(chan struct{})
			l.done.Go(func() { lane.pace(ctx) })
		}
		for range cfg.Depth {
			w := &worker{}
			lane.workers = append(lane.workers, w)
			l.done.Go(func() { l.work(ctx, lane, w) })
		}
		l.lanes = append(l.lanes, lane)
	}
	return l, nil
}

// pace hands out RateMax tokens a second, in small batches.
func (l *lane) pace(ctx context.Context) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	given, started := 0, time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		due := int(time.Since(started).Seconds() * float64(l.RateMax))
		if due-given > l.RateMax { // after a stall: do not catch up
			given = due - l.RateMax/100
		}
		for ; given < due; given++ {
			select {
			case l.tokens <- struct{}{}:
			default: // nobody is free
			}
		}
	}
}

// Stop ends the load after what is under way.
func (l *Load) Stop() {
	l.cancel()
	l.done.Wait()
}

// Pause waits for what is under way and begins nothing before the returned
// function is called.
func (l *Load) Pause() (resume func()) {
	l.gate.Lock()
	return l.gate.Unlock
}

// Cut ends the window of every lane and begins the next one. What is under way
// counts by its age in this one, and whole in the one in which it ends.
func (l *Load) Cut() []Window {
	now := int64(time.Since(base))
	out := make([]Window, len(l.lanes))
	for i, lane := range l.lanes {
		for _, w := range lane.workers {
			w.mu.Lock()
			out[i].add(w.Window)
			w.Window = Window{}
			w.mu.Unlock()
			if began := w.began.Load(); began != 0 {
				out[i].Longest = max(out[i].Longest, time.Duration(now-began))
			}
		}
	}
	return out
}

// Settle waits until every lane has been answered a request that began after
// the call: whoever cuts then has missed nothing that was held up.
func (l *Load) Settle(ctx context.Context) error {
	from := int64(time.Since(base))
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		old := false
		for _, lane := range l.lanes {
			for _, w := range lane.workers {
				if began := w.began.Load(); began != 0 && began < from {
					old = true
				}
			}
		}
		if !old {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New("requests from before are not answered"), ctx.Err())
		case <-tick.C:
		}
	}
}

// afterError is how long a worker rests after an error: a client that is gone
// fails at once, for ever.
const afterError = 100 * time.Millisecond

// work is one request after another.
func (l *Load) work(ctx context.Context, lane *lane, w *worker) {
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	buf := make([]byte, transferMax)
	for ctx.Err() == nil {
		if lane.tokens != nil {
			select {
			case <-ctx.Done():
				return
			case <-lane.tokens:
			}
		}
		l.gate.RLock()
		err := l.request(lane, w, rng, buf)
		l.gate.RUnlock()
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(afterError):
			}
		}
	}
}

// request draws one request, has it done and judged.
func (l *Load) request(lane *lane, w *worker, rng *rand.Rand, buf []byte) error {
	p := buf[:length(rng)]
	switch dice := rng.IntN(100); {
	case dice < 1:
		err := w.timed(lane.Disk.Flush)
		l.judge.Flushed(err)
		return err
	case dice < 50:
		off := place(rng, 0, l.judge.Size(), int64(len(p)))
		r := l.judge.BeginRead(off, int64(len(p)))
		err := w.timed(func() error { return lane.Disk.ReadAt(p, off) })
		l.judge.EndRead(r, p, err)
		return err
	}
	off := lane.take(rng, int64(len(p)))
	write := l.judge.BeginWrite(lane.id, p, off)
	err := w.timed(func() error { return lane.Disk.WriteAt(p, off, rng.IntN(20) == 0) })
	l.judge.EndWrite(write, err)
	lane.release(off, int64(len(p)))
	return err
}

// timed measures one request, from before it is given away until its answer is
// here.
func (w *worker) timed(do func() error) error {
	began := time.Since(base)
	w.began.Store(int64(began))
	err := do()
	took := time.Since(base) - began
	w.mu.Lock()
	w.add(Window{IOs: 1, Longest: took})
	w.began.Store(0)
	w.mu.Unlock()
	return err
}

// length draws a request's length: mostly 4 KiB, from a sector to the most.
func length(rng *rand.Rand) int {
	switch dice := rng.IntN(1000); {
	case dice < 700:
		return Block
	case dice < 850:
		return Sector * (1 + rng.IntN(15))
	case dice < 950:
		return Block * (1 + rng.IntN(8))
	case dice < 995:
		return 64 << 10
	}
	return transferMax
}

// place draws where a request of n bytes goes in size bytes at from: blocks
// begin at blocks, half of the odd lengths anywhere.
func place(rng *rand.Rand, from, size, n int64) int64 {
	unit := int64(Block)
	if n%Block != 0 && rng.IntN(2) == 0 {
		unit = Sector
	}
	return from + rng.Int64N((size-n)/unit+1)*unit
}

// take finds a place for a write that meets no other of the lane.
func (l *lane) take(rng *rand.Rand, n int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for {
		off := place(rng, l.from, l.size, n)
		first, end := span(off, n)
		for b := first; b < end; b++ {
			if l.writing[b] {
				continue next
			}
		}
		for b := first; b < end; b++ {
			l.writing[b] = true
		}
		return off
	}
}

func (l *lane) release(off, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first, end := span(off, n)
	for b := first; b < end; b++ {
		delete(l.writing, b)
	}
}
