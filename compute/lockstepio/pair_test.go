package lockstepio

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/machineio"
	"steadfast/fault"
)

// TestKilled: the primary dies at any moment, and its secondary goes on: everything that the
// guest did was done once, and what it said was never something else.
func TestKilled(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			w := newWorld(t, seed, patience)
			p := w.boot()
			w.work(2)
			s, _ := w.follow(p, 1, nil)
			w.work(1 + r.IntN(5))
			w.event("1 protected")
			w.event("0 protected")
			after := time.Duration(r.IntN(20_000)) * time.Microsecond
			time.AfterFunc(after, func() {
				p.kill()
				<-p.ended
				s.s.Gone()
			})
			w.work(12)
			p.waits(t)
			w.event("1 took over")
			// It gets another secondary, and that takes over, too.
			s2, _ := w.follow(s, 2, nil)
			w.event("1 protected")
			w.event("2 protected")
			w.work(3)
			s.kill()
			s.waits(t)
			s2.s.Gone()
			w.work(3)
			w.judge(s2)
		})
	}
}

// TestHandOver: on demand the secondary goes on, and nobody is suspected.
func TestHandOver(t *testing.T) {
	w := newWorld(t, 1, patience)
	p := w.boot()
	w.work(2)
	s, _ := w.follow(p, 1, nil)
	w.event("0 protected")
	p.p.HandOver()
	p.waits(t)
	if !fault.Is(p.err, fault.Fenced) {
		t.Errorf("the first host's life ended: %v", p.err)
	}
	w.event("1 took over")
	w.work(3)
	w.judge(s)
}

// TestFinished: a guest that ends while it is on two hosts has ended on both, also when the first
// one's process is gone at once, and the second one is slow to read.
func TestFinished(t *testing.T) {
	w := newWorld(t, 1, patience)
	p := w.boot()
	s, _ := w.follow(p, 1, bend(func(*bent) func([]byte) []byte {
		return func(p []byte) []byte {
			time.Sleep(5 * time.Millisecond)
			return p
		}
	}, nil))
	w.event("0 protected")
	w.work(3)
	w.judge(p)
	_ = s.far.close()
	s.waits(t)
	var over *Over
	if !errors.As(s.err, &over) || over.Why != lockstep.WhyFinished {
		t.Errorf("the secondary: %v", s.err)
	}
}

// TestCopiesWaiting: a machine that waits for something is copied all the same, and not by a part
// each time that it is woken.
func TestCopiesWaiting(t *testing.T) {
	w := newWorld(t, 1, patience)
	w.full, w.kernel = bytes.Repeat([]byte{1}, 128<<20), machinetest.Patient()
	p := w.boot()
	w.follow(p, 1, nil)
	w.event("0 protected")
	p.kill()
}

// TestTurnOff: a secondary that is not wanted any more ends, and the machine goes on.
func TestTurnOff(t *testing.T) {
	w := newWorld(t, 1, patience)
	p := w.boot()
	s, _ := w.follow(p, 1, nil)
	w.event("0 protected")
	if err := p.p.TurnOn(Links{}, lockstep.Session{}, owners[2]); !fault.Is(err, fault.Busy) {
		t.Errorf("a second secondary: %v", err)
	}
	p.p.TurnOff()
	w.event("0 unprotected")
	s.waits(t)
	w.work(3)
	w.judge(p)
}

// outputRule cuts the links while the lock cannot be reached, has the guest do something, and
// returns how many outputs left meanwhile that somebody sees, when one did that nobody sees.
func outputRule(t *testing.T, w *world, p *host, cut func()) int {
	t.Helper()
	w.work(2)
	w.san.setAway(true)
	cut()
	time.Sleep(50 * time.Millisecond) // what was on its way has come
	w.mu.Lock()
	asks, held := w.asks, w.held
	w.mu.Unlock()
	w.typed('d')
	deadline := time.Now().Add(patience)
	for {
		w.mu.Lock()
		is := w.asks
		w.mu.Unlock()
		if is > asks {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the guest does not read")
		}
		time.Sleep(time.Millisecond)
	}
	// It goes on: it has read, and has said and written what it read.
	for at := p.count(t); p.count(t) < at+500_000; {
		time.Sleep(time.Millisecond)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held - held
}

// count is where the machine is.
func (h *host) count(t *testing.T) (n uint64) {
	t.Helper()
	if !h.live.Call(func(m *machine.Machine) { n = m.Count() }) {
		t.Fatal("it has ended")
	}
	return n
}

// TestOutputRule: what the secondary was not told does not leave, and leaves when it can
// take over no more.
func TestOutputRule(t *testing.T) {
	w := newWorld(t, 2, 2*time.Second)
	w.o.Limits.LagTime = time.Hour // it is to go on for as long as it is looked at
	p := w.boot()
	s, cut := w.follow(p, 1, nil)
	w.event("0 protected")
	if n := outputRule(t, w, p, cut); n > 0 {
		t.Errorf("%d outputs left", n)
	}
	w.event("0 waiting")
	w.san.setAway(false)
	last := w.survivor(p, s)
	w.work(3)
	w.judge(last)
}

// survivor waits until one of two has given up, and returns the other.
func (w *world) survivor(p, s *host) *host {
	w.t.Helper()
	select {
	case <-p.ended:
		if !fault.Is(p.err, fault.Fenced) {
			w.t.Errorf("the first one has ended: %v", p.err)
		}
		w.event("1 took over")
		return s
	case <-s.ended:
		var over *Over
		if !errors.As(s.err, &over) {
			w.t.Errorf("the secondary has ended: %v", s.err)
		}
		w.event("0 unprotected")
		return p
	case <-time.After(patience):
		w.t.Fatal("neither gives up")
	}
	return nil
}

// TestOutputRuleBroken: the test above would notice.
func TestOutputRuleBroken(t *testing.T) {
	w := newWorld(t, 2, patience)
	w.o.Limits.LagTime = time.Hour
	w.o.broken = lockstep.Flaws()["output-early"]
	p := w.boot()
	_, cut := w.follow(p, 1, nil)
	w.event("0 protected")
	if n := outputRule(t, w, p, cut); n == 0 {
		t.Error("no output left early, although the rule was broken")
	}
}

// TestCut: the links fail, in both ways that they can, and both hosts are alive: exactly one
// goes on.
func TestCut(t *testing.T) {
	won := map[int]int{}
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, seed, time.Second)
			w.o.Limits.Silence += time.Duration(seed) * 100 * time.Millisecond
			p := w.boot()
			s, cut := w.follow(p, 1, nil)
			w.event("0 protected")
			w.work(3)
			switch seed % 3 {
			case 0:
				cut()
			case 1:
				_ = s.s.opt.Links.close()
			case 2: // one is told that the other has ended, and it is not so
				cut()
				if seed < 3 {
					p.p.Gone()
				} else {
					s.s.Gone()
				}
			}
			last := w.survivor(p, s)
			won[last.number]++
			w.work(3)
			w.judge(last)
		})
	}
	t.Logf("went on, by host: %v", won)
	if won[0]+won[1] == 6 && (won[0] == 0 || won[1] == 0) {
		t.Errorf("it is always the same one that goes on: %v", won)
	}
}

// TestDiverged: a secondary that is not the same machine any more, in what was stored or in
// what nobody stored to, is found out, and dropped.
func TestDiverged(t *testing.T) {
	for name, spoil := range map[string]func(m *machine.Machine){
		"stored": func(m *machine.Machine) {
			m.RAM().Touch(m.RAM().Pages() - 2)
			m.RAM().Data(m.RAM().Pages() - 2)[5] ^= 1
		},
		"by itself": func(m *machine.Machine) { m.RAM().Data(m.RAM().Pages() - 2)[5] ^= 1 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3, patience)
			p := w.boot()
			n := 0
			s, _ := w.follow(p, 1, func(o *SecondaryOptions) {
				o.spoil = func(m *machine.Machine) {
					if n++; n == 50 {
						spoil(m)
					}
				}
			})
			w.event("0 protected")
			w.event("1 diverged")
			w.event("0 diverged")
			w.event("0 unprotected")
			s.waits(t)
			var over *Over
			if !errors.As(s.err, &over) || over.Why != lockstep.WhyDiverged {
				t.Errorf("the secondary: %v", s.err)
			}
			w.until("the log is kept", func() bool { return w.kept[0].log != nil })
			w.sameFrom(spoil)
			w.work(1)
			// It gets another secondary.
			s, _ = w.follow(p, 2, nil)
			w.event("2 protected")
			w.work(2)
			w.judge(p)
			s.waits(t)
		})
	}
}

// sameFrom holds that what was kept of the secondary's machine is, by the primary's log, what was kept
// of the primary's, but for what was spoilt; and that the log shows it.
func (w *world) sameFrom(spoil func(m *machine.Machine)) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	p, err := machine.Restore(&w.kept[0].state)
	must(w.t, err)
	defer func() { must(w.t, p.Release()) }()
	s, err := machine.Restore(&w.kept[1].state)
	must(w.t, err)
	defer func() { must(w.t, s.Release()) }()
	ends, err := machineio.Survey(bytes.NewReader(w.kept[1].log))
	if err != nil || !ends.Whole || ends.Damage != nil || ends.Last != s.Count() || s.Count() > p.Count() {
		w.t.Errorf("the secondary's log ends at %d, and its machine is at %d, and the primary's at %d: %v %v", ends.Last, s.Count(), p.Count(), err, ends.Damage)
	}
	spoil(s) // once more, and it is as it was
	log, err := machine.ReadLog(bytes.NewReader(w.kept[0].log))
	must(w.t, err)
	r, err := machine.NewReplay(s, log)
	must(w.t, err)
	must(w.t, r.Run(1<<64-1))
	if s.Count() != p.Count() || s.HashAnew() != p.HashAnew() {
		w.t.Errorf("the secondary's machine comes to %d, and is another than the primary's at %d", s.Count(), p.Count())
	}
}

// TestRefusesCopy: a machine that a host cannot take is refused, and goes on alone.
func TestRefusesCopy(t *testing.T) {
	w := newWorld(t, 3, patience)
	p := w.boot()
	s, _ := w.follow(p, 1, func(o *SecondaryOptions) {
		o.Accept = func(cfg machine.Config) error { return fault.New(fault.Full, "no room for %d bytes", cfg.Memory) }
	})
	w.event("0 unprotected")
	s.waits(t)
	var over *Over
	if !errors.As(s.err, &over) || over.Why != lockstep.WhyFailed || !fault.Is(over.Err, fault.Full) {
		t.Errorf("the secondary: %v", s.err)
	}
	w.work(3)
	w.judge(p)
}

// TestPaced: a secondary that is slow holds the primary up, to the bound, and no answer is lost.
func TestPaced(t *testing.T) {
	w := newWorld(t, 4, patience)
	p := w.boot()
	slow := make(chan struct{})
	s, _ := w.follow(p, 1, func(o *SecondaryOptions) {
		o.spoil = func(*machine.Machine) {
			select {
			case <-slow:
			default:
				time.Sleep(20 * time.Millisecond)
			}
		}
	})
	w.event("0 protected")
	// How far it is behind when the machine stands is for the processors to say, too: core and pace
	// are judged by lockstep.TestPace.
	stood := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		p.p.mu.Lock()
		if p.p.orders.pace == 0 && time.Duration(p.p.status.LagNS) >= w.o.Limits.LagTime {
			stood++
		}
		p.p.mu.Unlock()
	}
	if stood == 0 {
		t.Error("the machine never stood for its secondary")
	}
	close(slow)
	w.work(3)
	p.kill()
	p.waits(t)
	s.s.Gone()
	w.work(3)
	w.judge(s)
}
