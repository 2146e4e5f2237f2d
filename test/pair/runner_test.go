package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"steadfast/test/verify"
)

// fakePair is a pair in memory: it takes over after a while, or never, and may
// forget or fail while it does.
type fakePair struct {
	Pair
	takes  time.Duration
	never  bool
	forget bool
	fail   bool // requests, rather than hold them up

	mu     sync.Mutex // one request at a time, so that blocks stay whole
	data   []byte
	away   bool
	back   *sync.Cond // of mu: away has ended
	status Status
}

func (f *fakePair) Status(context.Context) (Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status, nil
}

func (f *fakePair) Kill(m Member) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	epoch := f.status.Epoch
	f.status = Status{Epoch: epoch}
	if f.never {
		return nil
	}
	f.away = true
	time.AfterFunc(f.takes, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.forget {
			clear(f.data[:len(f.data)/2])
		}
		f.away = false
		f.status = Status{Owner: m.other(), Epoch: epoch + 1}
		f.back.Broadcast()
	})
	return nil
}

func (f *fakePair) Start(context.Context, Member) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Whole = f.status.Owner != ""
	return nil
}

// fakeDisk is a connection to a fakePair.
type fakeDisk struct{ *fakePair }

func (d fakeDisk) answer(do func()) error {
	time.Sleep(50 * time.Microsecond)
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.away {
		if d.fail {
			return errors.New("input/output error")
		}
		d.back.Wait()
	}
	do()
	return nil
}

func (d fakeDisk) Size() int64  { return int64(len(d.data)) }
func (d fakeDisk) Flush() error { return d.answer(func() {}) }
func (d fakeDisk) Close() error { return nil }

func (d fakeDisk) ReadAt(p []byte, off int64) error {
	return d.answer(func() { copy(p, d.data[off:]) })
}

func (d fakeDisk) WriteAt(p []byte, off int64, _ bool) error {
	return d.answer(func() { copy(d.data[off:], p) })
}

// try runs one kill-owner round on a fake.
func try(t *testing.T, f *fakePair) (Row, error) {
	t.Helper()
	f.data = make([]byte, 48<<20)
	f.status = Status{Owner: NodeA, Epoch: 1, Whole: true}
	f.back = sync.NewCond(&f.mu)
	disk := fakeDisk{f}
	r := &runner{pair: f, times: times{quiet: 50 * time.Millisecond, spread: time.Millisecond, whole: 500 * time.Millisecond, settled: time.Second}}
	l, err := startLocal(t.Context(), verify.NewJudge(1, disk.Size()), 0, func(context.Context) (verify.Disk, error) { return disk, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	r.loads = []*load{{client: "qemu", loader: l}}
	k := kind{name: "kill-owner", do: func(ctx context.Context, rd *round) error {
		rd.fault()
		if err := rd.pair.Kill(rd.owner); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if err := rd.newOwner(ctx); err != nil {
			return err
		}
		return rd.pair.Start(ctx, rd.owner)
	}}
	rows, err := r.round(t.Context(), k, 0)
	if len(rows) != 1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	return rows[0], err
}

func TestRoundOnRightPair(t *testing.T) {
	row, err := try(t, &fakePair{takes: 300 * time.Millisecond})
	if err != nil || row.Failed != "" {
		t.Fatalf("%v, %+v", err, row)
	}
	if row.StallQD1 < 290 || row.StallQD32 < 290 || row.OwnerMS < 290 || row.WholeMS < row.OwnerMS || row.IOs == 0 {
		t.Errorf("%+v", row)
	}
	if row.BeforeQD1 == 0 || row.BeforeQD1 > 290 {
		t.Errorf("before: %v ms", row.BeforeQD1)
	}
}

func TestRoundFindsLoss(t *testing.T) {
	row, err := try(t, &fakePair{takes: 10 * time.Millisecond, forget: true})
	if err != nil {
		t.Fatal(err)
	}
	if row.Lost+row.Stale == 0 || !strings.Contains(row.Failed, "wrong answers") {
		t.Errorf("%+v", row)
	}
}

func TestRoundFindsErrors(t *testing.T) {
	row, err := try(t, &fakePair{takes: 150 * time.Millisecond, fail: true})
	if err != nil {
		t.Fatal(err)
	}
	if row.Errors == 0 || row.Failed == "" {
		t.Errorf("%+v", row)
	}
}

func TestRoundFindsNoOwner(t *testing.T) {
	row, err := try(t, &fakePair{never: true})
	if err == nil || !strings.Contains(row.Failed, "no new owner") {
		t.Errorf("%v, %+v", err, row)
	}
}
