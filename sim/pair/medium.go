package pair

import (
	"time"

	"steadfast/san/mirror"
)

// medium is what a node keeps its copy of the group on. It outlives the node's
// lives. Each of its methods happens at one instant; how long it took is delay's.
type medium interface {
	// begin begins a life, and returns the position that was kept; or it cannot, yet.
	begin(n *node) (kept mirror.Position, ok bool)
	// end ends one; with power, what was not stable may be gone.
	end(power bool)
	// ended tells that the node's life is over: it ended in the middle of what the
	// medium was asked for last.
	ended() bool

	change(n *node, e mirror.Apply) mirror.Applied
	load(n *node, e mirror.Load) mirror.Applied
	sync(n *node) (failed bool)
	list(n *node, e mirror.List) []mirror.Range
	save(p mirror.Position)
	// keepState keeps the state before a resync, if none is kept, and dropState
	// gives it back.
	keepState() (ok bool)
	stateKept() bool
	dropState()
	delay(flush bool) time.Duration

	// calm ends the faults below.
	calm()
	// slowDown adds up to so much to each access; breakNext has the drive fail;
	// squeeze takes the room away, or gives it back.
	slowDown(most time.Duration)
	breakNext()
	squeeze(on bool)
	rot()
	// repair undoes damage that nobody could heal.
	repair()
	// renew empties the medium: the node was replaced.
	renew()
}
