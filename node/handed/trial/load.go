package trial

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"steadfast/fault"
)

// Workers are the requests of a load that are under way at once.
const Workers = 8

// findingsMax bounds the findings that are kept in full; all are counted.
const findingsMax = 10

// Device is what a load runs on: a Disk.
type Device interface {
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error
	Size() int64
}

// Region is the part of a disk that a load writes to, and how fast.
type Region struct {
	From, Size int64 // bytes, whole blocks
	RateMax    int   // requests a second; 0: as fast as they are answered
}

// Load writes and reads blocks, and judges what is read. Every block has one
// worker, which has at most one request under way: so what it reads is exactly
// what it wrote last, and anything else is wrong.
type Load struct {
	disk    Device
	region  Region
	run     uint64
	workers []*worker
	cancel  context.CancelFunc
	tasks   sync.WaitGroup

	mu       sync.Mutex
	findings []string
}

// worker is one request at a time, on every so-manieth block.
type worker struct {
	l       *Load
	first   int64        // its first block, of the region
	blocks  []block      // its blocks
	rand    *rand.Rand   // which one is next
	began   atomic.Int64 // ns since base of the request under way; 0: none
	longest atomic.Int64 // ns
	counts  [kinds]atomic.Int64
	buf     []byte
}

// block is what a worker knows of one.
type block struct {
	stamp
	known  bool   // else what it holds is taken for given, once
	writes uint64 // of this run: no version is given twice, whatever was read
}

// What is counted.
const (
	requests = iota
	verified
	found // blocks of earlier runs, whole
	lost
	wrong
	failed
	kinds
)

// Stats are what a load has seen.
type Stats struct {
	Requests int64 // answered
	Verified int64 // of them: blocks that were read and right
	Found    int64 // of them: from earlier runs
	Lost     int64 // blocks that were older than what was acknowledged
	Wrong    int64 // blocks that were anything else
	Failed   int64 // requests that were answered with an error
	// Longest is how long the longest request took since ResetLongest, one that
	// has no answer yet included.
	Longest  time.Duration
	Findings []string // the first few of what was wrong
}

// Clean tells that nothing was wrong.
func (s Stats) Clean() bool { return s.Lost == 0 && s.Wrong == 0 && s.Failed == 0 }

// Start reads what the region holds, has it judged, and starts the workers; they go
// on until Stop. Fails with fault.Invalid for a region that is not on the disk, and
// with fault.Canceled when ctx ends before all is read.
func Start(ctx context.Context, d Device, r Region) (*Load, error) {
	blocks := r.Size / Block
	if r.From%Block != 0 || r.Size%Block != 0 || blocks < Workers || r.From+r.Size > d.Size() {
		return nil, fault.New(fault.Invalid, "%d bytes at %d cannot be loaded on a disk of %d", r.Size, r.From, d.Size())
	}
	l := &Load{disk: d, region: r, run: rand.Uint64()}
	for i := range Workers {
		w := &worker{l: l, first: int64(i), rand: rand.New(rand.NewPCG(l.run, uint64(i))), buf: make([]byte, Block)}
		w.blocks = make([]block, (blocks-int64(i)+Workers-1)/Workers)
		l.workers = append(l.workers, w)
	}
	if err := l.ReadBack(ctx); err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	for _, w := range l.workers {
		l.tasks.Go(func() { w.work(run) })
	}
	return l, nil
}

// Stop ends the workers, when what is under way is answered or ctx ends: then the
// disk has to be closed, and Stop reports false.
func (l *Load) Stop(ctx context.Context) bool {
	l.cancel()
	done := make(chan struct{})
	go func() {
		l.tasks.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

// ReadBack reads the whole region and has it judged. Not while the workers work.
func (l *Load) ReadBack(ctx context.Context) error {
	var tasks sync.WaitGroup
	for _, w := range l.workers {
		tasks.Go(func() {
			for i := range w.blocks {
				if ctx.Err() != nil {
					return
				}
				w.read(i)
			}
		})
	}
	tasks.Wait()
	return fault.Wrap(fault.Canceled, ctx.Err(), "read back")
}

// Stats returns what was seen up to now.
func (l *Load) Stats() Stats {
	var n [kinds]int64
	var out Stats
	for _, w := range l.workers {
		for k := range n {
			n[k] += w.counts[k].Load()
		}
		out.Longest = max(out.Longest, time.Duration(w.longest.Load()), w.underWay())
	}
	out.Requests, out.Verified, out.Found, out.Lost, out.Wrong, out.Failed = n[requests], n[verified], n[found], n[lost], n[wrong], n[failed]
	l.mu.Lock()
	defer l.mu.Unlock()
	out.Findings = append(out.Findings, l.findings...)
	return out
}

// ResetLongest has Stats.Longest begin anew; what is under way counts from its
// beginning all the same.
func (l *Load) ResetLongest() {
	for _, w := range l.workers {
		w.longest.Store(0)
	}
}

// note keeps a finding.
func (l *Load) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.findings) < findingsMax {
		l.findings = append(l.findings, fmt.Sprintf(format, args...))
	}
}

// work does requests, half of them writes, until ctx ends.
func (w *worker) work(ctx context.Context) {
	next := time.Now()
	for ctx.Err() == nil {
		i := w.rand.IntN(len(w.blocks))
		if w.rand.IntN(2) == 0 {
			w.write(i)
		} else {
			w.read(i)
		}
		if w.l.region.RateMax == 0 {
			continue
		}
		// What a stall kept from being done is not made up for.
		next = later(next.Add(time.Second*Workers/time.Duration(w.l.region.RateMax)), time.Now())
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(next)):
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// number is a block's number on the disk.
func (w *worker) number(i int) uint64 {
	return uint64(w.l.region.From/Block + w.first + int64(i)*Workers)
}

// underWay is how long the present request takes already.
func (w *worker) underWay() time.Duration {
	began := w.began.Load()
	if began == 0 {
		return 0
	}
	return time.Since(base) - time.Duration(began)
}

// do does a request, and counts and times it. A failure is noted, unless the disk
// was closed: it was not the target's.
func (w *worker) do(what string, i int, f func(p []byte, off int64) error) error {
	w.began.Store(max(1, int64(time.Since(base))))
	err := f(w.buf, int64(w.number(i))*Block)
	w.longest.Store(max(w.longest.Load(), int64(w.underWay())))
	w.began.Store(0)
	switch {
	case err == nil:
		w.counts[requests].Add(1)
	case !errors.Is(err, errClosed):
		w.counts[requests].Add(1)
		w.counts[failed].Add(1)
		w.l.note("%s block %d: %v", what, w.number(i), err)
	}
	return err
}

// write stamps a block anew. After a failure it may hold either stamp.
func (w *worker) write(i int) {
	b := &w.blocks[i]
	b.writes++
	b.stamp = stamp{w.l.run, w.number(i), b.writes}
	b.put(w.buf)
	b.known = w.do("write", i, w.l.disk.WriteAt) == nil
}

// read reads a block and judges it.
func (w *worker) read(i int) {
	if w.do("read", i, w.l.disk.ReadAt) != nil {
		return
	}
	b := &w.blocks[i]
	got, whole := stampOf(w.buf)
	right := whole && (got == stamp{} || got.block == w.number(i))
	switch {
	case right && !b.known:
		if got != (stamp{}) && got.run != w.l.run {
			w.counts[found].Add(1)
		}
		w.counts[verified].Add(1)
	case right && got == b.stamp:
		w.counts[verified].Add(1)
	case right && (got.run != w.l.run || got.version < b.version):
		w.counts[lost].Add(1)
		w.l.note("block %d has version %d of run %x; version %d was acknowledged", w.number(i), got.version, got.run, b.version)
	default:
		w.counts[wrong].Add(1)
		w.l.note("block %d, whose version is %d, holds what was not written to it: %x ...", w.number(i), b.version, w.buf[:40])
	}
	b.stamp, b.known = got, right // each is told once
}
