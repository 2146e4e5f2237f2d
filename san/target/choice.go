package target

import "time"

// choice finds out which of two ways of executing a lone session's commands is
// the faster: by the reader, or by a worker. Which it is depends on the drive,
// on what else the machine does and on how it switches threads, so it is not
// reckoned but tried: windows of commands go one way, and now and then one goes
// the other. What counts is the time from one command to the next, for that is
// what the initiator gets.
type choice struct {
	worker   bool // the way in use
	trial    bool // this window goes the other way
	n        int  // commands in this window
	cost     time.Duration
	usual    time.Duration // what a window last cost the way in use
	windows  int           // since the last trial
	interval int           // windows between trials
}

// A window's length in commands, and the bounds of the windows between trials:
// while a trial pays they are frequent, and else they become rare.
const (
	windowCommands = 32
	intervalMin    = 4
	intervalMax    = 64
)

// cycleMax bounds what one command counts: an initiator that pauses says
// nothing about us.
const cycleMax = 10 * time.Millisecond

// byWorker reports whether the next command is a worker's.
func (c *choice) byWorker() bool { return c.worker != c.trial }

// note takes the time from the last command to this one.
func (c *choice) note(cycle time.Duration) {
	c.cost += min(cycle, cycleMax)
	if c.n++; c.n < windowCommands {
		return
	}
	cost := c.cost
	c.n, c.cost = 0, 0
	switch {
	case !c.trial:
		c.usual = cost
		c.windows++
		c.interval = max(c.interval, intervalMin)
		c.trial = c.windows >= c.interval
	case cost < c.usual-c.usual/16: // by more than chance
		c.worker, c.trial, c.windows, c.interval, c.usual = !c.worker, false, 0, intervalMin, cost
	default:
		c.trial, c.windows, c.interval = false, 0, min(2*c.interval, intervalMax)
	}
}

// drop forgets the window under way: the session was not alone all the time.
func (c *choice) drop() { c.n, c.cost = 0, 0 }
