package machine

// Pacer keeps a machine's time with its host's, by the rate of the machine's clock. Times
// are nanoseconds of a host clock that does not step (CLOCK_BOOTTIME).
//
// The guest's time follows a line that goes with the host's clock. While the machine
// runs, each synchronisation sets the rate so that the guest will be on the line at the
// next one if the host goes on executing at the pace it did: so it is off by what
// a few milliseconds can change, and that is not carried on. When it is found far behind
// (the host was stopped, or had no time for it), the line is put where the guest is: what
// was lost is made up for at SlewPPM, so that the guest sees a clock that is a little
// fast, and no step. A guest that is ahead of the line has to wait.
type Pacer struct {
	// The line is at guest when the host's clock is at host.
	host, guest uint64
	busy        uint64 // nanoseconds spent executing since
	lag         uint64 // how far the line is behind by stalls
	// pace is nanoseconds of the host an instruction takes, times 2^32.
	pace uint64
	rate uint64
}

// Bounds of a Pacer.
const (
	// SlewPPM is at most how much faster than the host's clock the line goes to make up
	// for a lag, in millionths.
	SlewPPM = 500
	// SyncEvery is how often a busy machine's time is looked at, in nanoseconds.
	SyncEvery = 4_000_000
	// StallMin is how far behind the line a guest is that was not executed.
	StallMin = 10_000_000
	// littleNS is how far off the line the guest may be before that is made good.
	littleNS = 500_000
	// rateSlack is how much the rate may be off before it is set anew: one in so many.
	rateSlack = 64
)

// NewPacer keeps time from now on: the guest's time is right at the host's. rate is the
// clock's.
func NewPacer(host, guest, rate uint64) *Pacer {
	return &Pacer{host: host, guest: guest, pace: rate, rate: rate}
}

// Target is what the guest's time should be at a host's time.
func (p *Pacer) Target(host uint64) uint64 {
	elapsed := host - p.host
	return p.guest + elapsed + p.made(elapsed)
}

// made is how much of the lag is made up for in a time.
func (p *Pacer) made(elapsed uint64) uint64 { return min(p.lag, elapsed*SlewPPM/1_000_000) }

// Lag is how far the guest's clock is behind the host's by stalls, in nanoseconds.
func (p *Pacer) Lag() uint64 { return p.lag }

// Executed notes that the host has spent some time on executing.
func (p *Pacer) Executed(ns uint64) { p.busy += ns }

// Due tells whether it is time to synchronise.
func (p *Pacer) Due(host uint64) bool { return host-p.host >= SyncEvery }

// Sync looks at the host's time and the guest's. executed is how many instructions were
// executed since the last time, those not counted that it would have while it waited.
// It returns the rate that the clock is to have from now on, and whether that is another.
func (p *Pacer) Sync(host, guest, executed uint64) (rate uint64, change bool) {
	target := p.Target(host)
	p.lag -= p.made(host - p.host)
	if target > guest+StallMin {
		p.lag += target - guest
		target = guest
	}
	if executed > 0 && p.busy > 0 {
		pace := p.busy << 32 / executed
		p.pace = max((3*p.pace+pace)/4, 1)
	}
	// On the line stands target; what the guest is off is made good in one interval, in
	// which it goes at least at a quarter of the host's pace and at most at four times.
	// A little is left alone: it would be a record in the log each time.
	want := uint64(SyncEvery)
	switch {
	case target > guest+littleNS:
		want = min(want+(target-guest), 4*SyncEvery)
	case guest > target+littleNS:
		want = max(want-min(guest-target, want), SyncEvery/4)
	}
	p.host, p.guest, p.busy = host, target, 0
	next := min(max(p.pace/SyncEvery*want+p.pace%SyncEvery*want/SyncEvery, RateMin), RateMax)
	if diff := max(next, p.rate) - min(next, p.rate); diff <= p.rate/rateSlack {
		return p.rate, false
	}
	p.rate = next
	return next, true
}
