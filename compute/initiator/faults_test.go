package initiator

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"steadfast/compute/initiator/initiatortest"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run TestSeeds with this seed only")
	seedsFlag = flag.Int("seeds", 8, "how many seeds TestSeeds runs")
)

// strikes tells whether a fault means anything at a step.
func strikes(s initiatortest.Step, f initiatortest.Fault) bool {
	switch {
	case f > initiatortest.Statuses || f == initiatortest.Late:
		return s == initiatortest.Command
	case s == initiatortest.Accept || s == initiatortest.Command || s == initiatortest.Data:
		return f <= initiatortest.Silence || f == initiatortest.Garbage
	case f == initiatortest.Odd:
		return s == initiatortest.LoginFirst || s == initiatortest.LoginLast
	}
	return true
}

// TestEveryFaultAtEveryStep strikes once, in the middle of a short life of a
// disk, with every fault at every step: the life goes on as if nothing was.
func TestEveryFaultAtEveryStep(t *testing.T) {
	for s := range initiatortest.Steps {
		for f := initiatortest.Drop; f < initiatortest.Faults; f++ {
			if !strikes(s, f) || f == initiatortest.Statuses {
				continue
			}
			for _, digests := range []bool{false, true} {
				if digests && (testing.Short() || f != initiatortest.BadDigest && f != initiatortest.Torn) {
					continue
				}
				t.Run(fmt.Sprintf("%d-%d-%v", s, f, digests), func(t *testing.T) {
					t.Parallel()
					everyFault(t, s, f, digests)
				})
			}
		}
	}
}

func everyFault(t *testing.T, s initiatortest.Step, f initiatortest.Fault, digests bool) {
	var armed atomic.Bool
	var struck atomic.Int64
	r := newRig(t, initiatortest.Options{Seed: uint64(s)<<8 | uint64(f), Strike: func(_ uint16, at initiatortest.Step) initiatortest.Fault {
		if at == s && armed.CompareAndSwap(true, false) {
			struck.Add(1)
			return f
		}
		return initiatortest.None
	}}, func(c *Config) { c.HeaderDigest, c.DataDigest = digests, digests })
	cut := func() {
		// These steps are passed by a login, or by silence.
		if s <= initiatortest.LoginLast {
			r.target.Cut(1, false)
		}
	}
	for i := range byte(3) {
		armed.Store(true)
		cut()
		life(r, i)
	}
	if s == initiatortest.Ping {
		r.until("a ping", func() bool { return struck.Load() > 0 })
		life(r, 9)
	}
	if s == initiatortest.Farewell {
		r.must("close", r.disk.Close)
	}
	if struck.Load() == 0 {
		t.Error("the fault never struck")
	}
}

// life has one of everything.
func life(r *rig, seed byte) {
	r.Helper()
	p, q := pattern(40<<10, seed), make([]byte, 40<<10)
	r.must("write", func() error { return r.disk.WriteAt(p, 4096, 0) })
	r.must("read", func() error { return r.disk.ReadAt(q, 4096) })
	if !bytes.Equal(p, q) {
		r.Fatal("read what was not written")
	}
	old, fresh := p[:512], pattern(512, seed+100)
	r.must("compare and write", func() error {
		at, err := r.disk.CompareAndWrite(4096, old, fresh, 0)
		if errors.Is(err, ErrUnknown) {
			one := make([]byte, 512)
			if err = r.disk.ReadAt(one, 4096); err == nil && !bytes.Equal(one, old) && !bytes.Equal(one, fresh) {
				err = errors.New("neither old nor new")
			}
			return err
		}
		if err == nil && at != -1 {
			err = fmt.Errorf("differs at %d", at)
		}
		return err
	})
	r.must("zero", func() error { return r.disk.Zero(8192, 8192, 0) })
	clear(q[4096 : 4096+8192])
	r.must("flush", r.disk.Flush)
	got := make([]byte, len(q)-4096)
	r.must("read", func() error { return r.disk.ReadAt(got, 8192) })
	if !bytes.Equal(got, q[4096:]) {
		r.Fatal("read what was not written")
	}
}

// TestSeeds has a disk of two paths used by several at once while faults of all
// kinds strike at all steps, and judges it by a model; then the faults stop,
// and everything must come to its end.
func TestSeeds(t *testing.T) {
	first, n := uint64(1), *seedsFlag
	if testing.Short() {
		n = min(n, 3)
	}
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	for seed := first; seed < first+uint64(n); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { seedRun(t, seed) })
	}
}

func seedRun(t *testing.T, seed uint64) {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 2))
	calm := true
	strike := func(_ uint16, s initiatortest.Step) initiatortest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if calm || rng.IntN(60) != 0 {
			return initiatortest.None
		}
		for {
			f := initiatortest.Fault(1 + rng.IntN(int(initiatortest.Faults)-1))
			if f == initiatortest.Statuses || !strikes(s, f) {
				continue
			}
			if f == initiatortest.Silence && rng.IntN(4) != 0 {
				continue // it costs more time than it finds
			}
			return f
		}
	}
	p := initiatortest.DefaultParams()
	p.InitialR2T, p.ImmediateData = seed%2 == 0, seed%3 != 0
	r := newRig(t, initiatortest.Options{Groups: []uint16{1, 2}, Params: p, Seed: seed, Strike: strike},
		func(c *Config) { c.HeaderDigest, c.DataDigest = seed%4 == 0, seed%4 == 1 })
	mu.Lock()
	calm = false
	mu.Unlock()

	const users, area = 6, 64 << 10
	models := make([][]byte, users)
	var all sync.WaitGroup
	for u := range users {
		models[u] = make([]byte, area)
		all.Go(func() { use(r, rand.New(rand.NewPCG(seed, uint64(10+u))), int64(u*area), models[u]) })
	}
	// Three more write to one place at the same time: what overlaps must never
	// be under way twice, as the target sees to.
	const shared = users * area
	stamps := make([][]byte, 3)
	for u := range stamps {
		all.Go(func() {
			for i := range 40 {
				stamps[u] = pattern(3<<10, byte(u*64+i))
				if err := r.disk.WriteAt(stamps[u], shared+int64(u)*512, 0); err != nil {
					r.Errorf("shared write: %v", err)
				}
			}
		})
	}
	r.must("all users", func() error { all.Wait(); return nil })
	mu.Lock()
	calm = true
	mu.Unlock()
	for u, m := range models {
		got := make([]byte, area)
		r.must("read", func() error { return r.disk.ReadAt(got, int64(u*area)) })
		if !bytes.Equal(got, m) {
			t.Errorf("user %d: the disk differs from what was answered", u)
		}
	}
	last := make([]byte, 4<<10)
	r.must("read", func() error { return r.disk.ReadAt(last, shared) })
	whole := false
	for u, s := range stamps {
		whole = whole || bytes.Equal(last[u*512:u*512+len(s)], s)
	}
	if !whole {
		t.Error("none of the last writes is there as a whole")
	}
	s := r.disk.State()
	t.Logf("seed %d: %d logins, %d retries, %d unknown, %v of pauses", seed, s.Logins, s.Retries, s.Unknown, s.Paused)
}

// use works on an area of its own, and keeps its model.
func use(r *rig, rng *rand.Rand, base int64, model []byte) {
	sectors := len(model) / 512
	touched := make([]string, sectors)
	for i := range 60 {
		at := rng.IntN(sectors) * 512
		n := (1 + rng.IntN(min(40, sectors-at/512))) * 512
		off := base + int64(at)
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		var err error
		touch := func(what string, n int) {
			for s := at / 512; s < (at+n)/512; s++ {
				touched[s] = fmt.Sprintf("%d: %s of %d at %d", i, what, n, off)
			}
		}
		switch rng.IntN(8) {
		case 0, 1, 2:
			touch("write", n)
			if err = r.disk.WriteAt(p, off, 0); err == nil {
				copy(model[at:], p)
			}
		case 3, 4, 5:
			if err = r.disk.ReadAt(p, off); err == nil && !bytes.Equal(p, model[at:at+n]) {
				for s := range n / 512 {
					if !bytes.Equal(p[s*512:s*512+512], model[at+s*512:at+s*512+512]) {
						r.Errorf("read %d of %d bytes at %d is wrong at %d, touched last by %s", i, n, off, off+int64(s*512), touched[at/512+s])
						break
					}
				}
				return
			}
		case 6:
			p = p[:min(n, 16*512)]
			touch("compare", len(p))
			old := bytes.Clone(model[at : at+len(p)])
			_, err = r.disk.CompareAndWrite(off, old, p, 0)
			if errors.Is(err, ErrUnknown) {
				now := make([]byte, len(p))
				if err = r.disk.ReadAt(now, off); err == nil && !bytes.Equal(now, old) && !bytes.Equal(now, p) {
					r.Errorf("neither old nor new at %d", off)
					return
				}
				p = now
			}
			if err == nil {
				copy(model[at:], p)
			}
		default:
			if rng.IntN(2) == 0 {
				err = r.disk.Flush()
				break
			}
			touch("trim", n)
			if err = r.disk.Trim(off, int64(n)); err == nil {
				clear(model[at : at+n])
			}
		}
		if err != nil {
			r.Errorf("an error that was none of ours: %v", err)
			return
		}
	}
}
