package mirror

import (
	"maps"
	"time"

	"steadfast/cluster/group"
)

// ledger finds positions of this node's store up to which everything is on both
// nodes. Changes complete in any order, and the store gives them their positions
// late; so now and then it marks the greatest position it has heard of and
// what is under way then. When all of that is complete, so is everything up to
// the mark: a change below it had begun before.
type ledger struct {
	last      Position        // greatest heard of
	open      map[uint64]bool // begun, not complete on both
	marked    bool
	mark      Position
	waits     map[uint64]bool // open when the mark was made
	when      group.Instant
	closed    bool // no mark may be made now
	candidate Position
	flushes   map[uint64]Position // what a flush under way will have made stable
}

func newLedger(p Position) ledger {
	return ledger{last: p, candidate: p, open: map[uint64]bool{}, flushes: map[uint64]Position{}}
}

// begin notes a change of this node's store.
func (l *ledger) begin(id uint64) { l.open[id] = true }

// entered notes where the store entered a change.
func (l *ledger) entered(p Position) { l.last = max(l.last, p) }

// complete notes that a change is on both nodes.
func (l *ledger) complete(id uint64) {
	delete(l.open, id)
	delete(l.waits, id)
}

// look makes a mark, or takes the one that is complete.
func (l *ledger) look(now group.Instant, every time.Duration) {
	if l.marked && len(l.waits) == 0 {
		l.candidate, l.marked = max(l.candidate, l.mark), false
	}
	if !l.marked && !l.closed && l.last > l.candidate && now >= l.when.Add(every) {
		l.marked, l.mark, l.waits, l.when = true, l.last, maps.Clone(l.open), now
	}
}

// flushing notes that a flush begins on this node.
func (l *ledger) flushing(id uint64) {
	if !l.closed {
		l.flushes[id] = l.candidate
	}
}

// whole notes, for a flush that begins, that all that is here is on both nodes.
func (l *ledger) whole(id uint64) { l.flushes[id] = l.last }

// flushed returns what a flush, complete on both nodes, has made stable.
func (l *ledger) flushed(id uint64) Position {
	p := l.flushes[id]
	delete(l.flushes, id)
	return p
}

// pause ends marking: what completes from now on is on this node only.
func (l *ledger) pause() {
	l.marked, l.closed = false, true
	clear(l.flushes)
}

// restart is pause, and forgets what is under way: whether that is on both is
// not known, and may never be.
func (l *ledger) restart() {
	l.pause()
	clear(l.open)
}

// resume lets marks be made: all that is under way is in open, and both nodes
// have the rest.
func (l *ledger) resume() { l.closed = false }
