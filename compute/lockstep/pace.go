package lockstep

import "time"

// This file is how fast the machine of a Primary may go: while it is copied, and
// while a secondary follows.

// copied follows a round of pages. The machine stands still for the last ones when they
// take no longer than PauseMax at the pace of this round.
func (p *Primary) copied(c Copied) {
	if p.state != Copying {
		return
	}
	took := max(p.now.Sub(p.copyAt), 1)
	p.copyAt, p.progress = p.now, p.now
	round := p.round + 1
	p.round = round
	// Left at Bytes per took: within PauseMax?
	if float64(c.Left)*float64(took) <= float64(c.Bytes)*float64(p.limits.PauseMax) {
		p.state = Pausing
		p.pause(false)
		return
	}
	if round >= p.limits.RoundsMax {
		p.lose(WhyTooFast, nil)
		return
	}
	p.do(Copy{Round: round + 1})
}

func (p *Primary) pause(digest bool) {
	p.paused = true
	p.do(Pause{digest})
}

func (p *Primary) resume() {
	if p.paused {
		p.paused = false
		p.do(Resume{})
	}
}

// Lag is how far a secondary is behind.
type Lag struct {
	// Bytes of the log and Counts of the machine were not executed.
	Bytes, Counts uint64
	// Time is how long ago the machine was where what is not executed begins.
	Time time.Duration
}

// Lag returns how far the secondary is behind, as far as it has said.
func (p *Primary) Lag() Lag {
	if !p.logs() {
		return Lag{}
	}
	lag := Lag{Bytes: p.logSize, Counts: p.count - min(p.at, p.count)}
	switch {
	case len(p.log) > 0:
		lag.Time = p.now.Sub(p.log[0].since)
	case p.count > p.horizon:
		lag.Time = p.now.Sub(p.ahead)
	}
	return lag
}

// behind is the lag that slows the machine: not that of a secondary which still loads, for it
// could not go on anyway, nor that of one which is being parted from.
func (p *Primary) behind() time.Duration {
	switch {
	case p.state == PrimaryLoading && !p.ready, p.state == Parting:
		return 0
	case len(p.log) > 0:
		return p.since(p.log[0].since)
	default:
		return 0
	}
}

// setPace slows the machine: from half of a bound on, down to nothing at it. What
// the secondary has not executed it would have to, before it goes on; what waits is
// memory. While it catches up with what happened when it loaded, the machine does not stand.
func (p *Primary) setPace() {
	pace := 100
	switch {
	case p.logs() || len(p.held) > 0:
		behind := eighths(uint64(p.behind()), uint64(p.limits.LagTime))
		if p.state == PrimaryLoading {
			behind = min(behind, 7)
		}
		r := max(behind, eighths(p.logSize, p.limits.LagBytes), eighths(p.heldSize, p.limits.HeldBytes))
		pace = [9]int{100, 100, 100, 100, 75, 60, 45, 25, 0}[r]
	case p.state == Copying && p.round >= p.limits.RoundsMax*3/4:
		pace = 25
	case p.state == Copying && p.round >= p.limits.RoundsMax/2:
		pace = 50
	}
	if pace == p.pace {
		return
	}
	if pace == 0 {
		p.progress = p.now // it has as long as StuckAfter
	}
	if p.pace = pace; pace < 100 && p.count > p.horizon {
		p.tellHorizon() // else it could not catch up
	}
	p.do(Pace{pace})
}

// eighths is v in eighths of its bound, at most 8.
func eighths(v, most uint64) int { return int(min(v/max(most/8, 1), 8)) }
