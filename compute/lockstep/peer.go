package lockstep

import "time"

// peer is what a side knows of the other one, and of time.
type peer struct {
	limits   Limits
	now      Instant
	skew     Instant     // what a clock that went back is behind
	ran      Instant     // when this side was run last
	woke     Instant     // when it was, after a while in which it was not
	spared   bool        // and that was forgiven since something was heard
	heard    Instant     // when something came, on either link
	heardLog Instant     // when something came on the log's
	beaten   Instant     // when a heartbeat was sent
	ended    [Links]bool // connections that have
	damage   error       // what the log's ended for
	effects
	broken Flaw
}

// effects are collected during a step.
type effects struct{ list []Effect }

func (e *effects) do(list ...Effect) { e.list = append(e.list, list...) }

// both sends on both links.
func (e *effects) both(m Message) {
	for l := range Link(Links) {
		e.do(Send{Link: l, Message: m})
	}
}

// wake notes the time. A clock that goes back is one that has stood still. Of one that was
// not run for a while itself, what the other said meanwhile may wait to be read: silence begins
// anew, once. (One that is never run in time would else wait for ever.)
func (p *peer) wake(now Instant) {
	if now += p.skew; now < p.now {
		p.skew += p.now - now
		now = p.now
	}
	if now.Sub(p.ran) >= p.limits.Silence/2 && !p.spared {
		p.heard, p.heardLog, p.woke, p.spared = now, now, now, true
	}
	p.now, p.ran, p.list = now, now, nil
}

// hear notes that the other one lives.
func (p *peer) hear(l Link) {
	p.heard, p.spared = p.now, false
	if l == Logging {
		p.heardLog = p.now
	}
}

func (p *peer) silent() bool { return p.now.Sub(p.heard) >= p.limits.Silence }

// since is how long ago something was, but for the time in which this side was not run.
func (p *peer) since(at Instant) time.Duration { return p.now.Sub(max(at, p.woke)) }

// beat sends a heartbeat, if it is time for one, and tells whether it has. Any input gives rise to
// it, not a Tick alone: whoever is run can say so, when the goroutine of the clock has to wait.
func (p *peer) beat() bool {
	if p.now.Sub(p.beaten) < p.limits.BeatEvery {
		return false
	}
	p.beaten = p.now
	p.both(Beat{})
	return true
}
