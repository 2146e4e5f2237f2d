package machine

import (
	"math/rand/v2"
	"testing"
)

// pacing is a machine whose host executes at some pace, without a machine.
type pacing struct {
	t     *testing.T
	p     *Pacer
	clock Clock
	host  uint64
	count uint64
	last  uint64 // count at the last synchronisation
	syncs int
}

func newPacing(t *testing.T) *pacing {
	g := &pacing{t: t, clock: Clock{rate: rateStart}, host: 1_000_000_000_000}
	g.p = NewPacer(g.host, 0, g.clock.Rate())
	return g
}

// run executes for a time, at some nanoseconds an instruction, as the life of a machine
// does: in turns, waiting when the guest is ahead. It returns how far the guest's clock
// was off the host's at most, what was lost by stalls not counted.
func (g *pacing) run(ns uint64, pace float64) (drift uint64) {
	for end := g.host + ns; g.host < end; {
		guest, target := g.clock.Now(g.count), g.p.Target(g.host)
		drift = max(drift, max(guest, target)-min(guest, target))
		if g.p.Due(g.host) {
			if rate, change := g.p.Sync(g.host, guest, g.count-g.last); change {
				g.clock.SetRate(g.count, rate)
				g.syncs++
			}
			g.last = g.count
			if again := g.clock.Now(g.count); again != guest {
				g.t.Fatalf("a synchronisation made %d of %d", again, guest)
			}
		}
		if guest > target+2_000_000 {
			g.host += 100_000
			continue
		}
		const turn = 100_000
		g.count += uint64(turn / pace)
		g.host += turn
		g.p.Executed(turn)
	}
	return drift
}

// TestPacer: the guest's clock stays within ten milliseconds of the host's while its
// machine runs, however fast the host executes it.
func TestPacer(t *testing.T) {
	g := newPacing(t)
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		pace := 0.5 + 12*r.Float64() // nanoseconds an instruction
		if drift := g.run(r.Uint64N(100_000_000), pace); drift > 10_000_000 {
			t.Fatalf("off by %d ns at %.1f ns an instruction", drift, pace)
		}
	}
	if g.p.Lag() != 0 {
		t.Errorf("a lag of %d ns without a stall", g.p.Lag())
	}
}

// TestPacerSteady: a host of an even pace needs few changes of the rate.
func TestPacerSteady(t *testing.T) {
	g := newPacing(t)
	g.run(1_000_000_000, 4)
	g.syncs = 0
	g.run(10_000_000_000, 4)
	if g.syncs > 100 {
		t.Errorf("%d changes in ten seconds", g.syncs)
	}
}

// TestPacerStall: what the guest lost while nobody executed it is made up for slowly.
func TestPacerStall(t *testing.T) {
	g := newPacing(t)
	g.run(1_000_000_000, 5)
	before := g.host
	off := g.host - g.clock.Now(g.count)
	g.host += 2_000_000_000
	g.run(10_000_000, 5)
	if lag := g.p.Lag(); lag < 1_950_000_000 || lag > 2_020_000_000 {
		t.Fatalf("a lag of %d ns", lag)
	}
	began := g.host
	g.run(60_000_000_000, 5)
	made := 2_000_000_000 - g.p.Lag()
	if most := (g.host-began)*SlewPPM/1_000_000 + 30_000_000; made > most || made < most-60_000_000 {
		t.Errorf("%d ns were made up for in %d s", made, (g.host-began)/1_000_000_000)
	}
	if now := g.host - g.clock.Now(g.count); now-off+20_000_000 < g.p.Lag() || before == 0 {
		t.Errorf("the guest's clock is %d ns behind, of which %d are said", now-off, g.p.Lag())
	}
}
