package mirror

import "time"

// A resync yields to clients: how many copies are under way follows from what
// clients feel. Now and then no copy is begun for a moment, and it is measured how
// long clients' operations take then. While they take more than Slowdown percent
// of that with copies under way, there are half as many; while it is well below,
// a few more. Below one copy there are pauses between them, of a copy's own length
// at most: a resync ends. When no client asks
// for anything there are as many as there may be.

// Sixteenths of a copy: what the governor counts in.
const shareOne = 16

// shareLeast bounds how much a resync yields: a pair that is busy day and night is
// to be whole again some time, and until then one failure is all it can bear.
const shareLeast = shareOne / 2

// How often the governor decides, how often and how long at most it measures
// without copies, and what many operations it wants to have seen.
const (
	governEvery = 100 * time.Millisecond
	probeEvery  = 5 * time.Second
	probeMax    = 250 * time.Millisecond
	probeWants  = 16
	governWants = 4
)

// ratioMax bounds what one operation counts, in percent.
const ratioMax = 1000

// feeling sums how long operations took.
type feeling struct {
	sum   time.Duration
	count int
}

// classes of operations that take about as long: reads and changes, small and
// large.
const classes = 4

func class(k Kind, count uint64) (c int) {
	if k != Read {
		c = 2
	}
	if count > 16 {
		c++
	}
	return c
}

// governor decides how many copies are under way.
type governor struct {
	share   int // sixteenths of a copy
	base    [classes]feeling
	ratios  int // sum of percents of base
	ratio   int // last decided on
	count   int // of ratios
	seen    int // operations that ended since the last decision
	decided int64
	probing bool
	probe   int64 // when the present or last probe began
	quiet   bool  // no copy is under way any more
	next    int64 // no copy is begun before, when share is below one
}

// restart begins a resync: what clients felt before was of other times.
func (g *governor) restart(m *Mirror) {
	*g = governor{share: shareOne, probing: true, probe: int64(m.now), decided: int64(m.now)}
}

// feel notes how long a client's operation took.
func (g *governor) feel(m *Mirror, k Kind, count uint64, took time.Duration) {
	s := m.stream
	if m.cfg.Slowdown == 0 || s == nil || s.phase > phaseCopying || k == Flush || k == Barrier {
		return
	}
	b := &g.base[class(k, count)]
	if g.probing {
		if s.phase == phaseCopying && (!g.quiet || int64(m.now)-int64(took) < g.probe) {
			return // it felt copies
		}
		g.seen++
		b.sum += took
		b.count++
		return
	}
	g.seen++
	if b.count > 0 {
		g.ratios += int(min(100*took/max(1, b.sum/time.Duration(b.count)), ratioMax))
		g.count++
	}
}

// copied notes how long a copy took.
func (g *governor) copied(m *Mirror, took time.Duration) {
	if g.share < shareOne {
		g.next = int64(m.now) + int64(took)*int64(shareOne-g.share)/int64(g.share)
	}
}

// copies tells whether one more may begin when so many are under way.
func (g *governor) copies(m *Mirror, under int) bool {
	if m.cfg.Slowdown == 0 {
		return under < m.cfg.Copies
	}
	g.measure(m, under)
	if g.probing {
		return false
	}
	g.decide(m)
	if g.share < shareOne {
		return under == 0 && int64(m.now) >= g.next
	}
	return under < min(g.share/shareOne, m.cfg.Copies)
}

// measure begins and ends what is measured without copies.
func (g *governor) measure(m *Mirror, under int) {
	now := int64(m.now)
	switch {
	case !g.probing && now >= g.probe+int64(probeEvery) && g.share < m.cfg.Copies*shareOne:
		// What was felt before fades.
		for i := range g.base {
			b := &g.base[i]
			b.sum, b.count = b.sum/2, b.count/2
		}
		g.probing, g.quiet, g.probe, g.seen = true, false, now, 0
	case g.probing && under == 0 && !g.quiet:
		g.quiet, g.probe, g.seen = true, now, 0
	case g.probing && g.quiet && (g.seen >= probeWants || now >= g.probe+int64(probeMax)):
		g.probing, g.probe, g.decided = false, now, now
		g.ratios, g.count = 0, 0
	}
}

// decide changes the share.
func (g *governor) decide(m *Mirror) {
	now := int64(m.now)
	if now < g.decided+int64(governEvery) {
		return
	}
	most := m.cfg.Copies * shareOne
	switch {
	case g.seen == 0 && !m.waiting():
		g.share = most
	case g.count < governWants:
		return // for more
	default:
		g.ratio = g.ratios / g.count
		switch limit := m.cfg.Slowdown; {
		case g.ratio > limit*3/4:
			g.share = max(shareLeast, g.share/2)
		case g.ratio < limit*5/8:
			g.share = min(most, g.share+max(1, g.share/8))
		}
	}
	g.decided, g.seen, g.ratios, g.count = now, 0, 0, 0
}

// waiting tells whether a client waits for something.
func (m *Mirror) waiting() bool {
	for _, o := range m.ops {
		if o.client {
			return true
		}
	}
	return false
}
