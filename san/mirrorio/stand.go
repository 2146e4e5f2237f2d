package mirrorio

import (
	"math"
	"slices"

	"steadfast/cluster/group"
)

// Readings of serves and reads that are no time.
const (
	never  = 0
	always = math.MaxInt64
)

// stand makes known what the node is after a step.
func (g *Group) stand() {
	s := g.core.Standing()
	until, unlimited, ok := g.core.ServesUntil()
	serves, reads := int64(never), int64(never)
	switch {
	case !ok:
	case unlimited && len(s.Others) > 0: // each read is asked for
		serves = always
	case unlimited:
		serves, reads = always, always
	default:
		serves, reads = int64(until), int64(until)
	}
	g.serves.Store(serves)
	g.reads.Store(reads)
	if same(s, g.standing) { // only the driver writes it
		return
	}
	g.mu.Lock()
	g.standing = s
	g.mu.Unlock()
	if g.opt.Stood != nil {
		g.opt.Stood(s)
	}
}

func same(a, b group.Standing) bool {
	return a.Role == b.Role && a.Epoch == b.Epoch && a.Revision == b.Revision && a.Owner == b.Owner && a.Serving == b.Serving && slices.Equal(a.Others, b.Others)
}

// Standing tells what this node is to the group.
func (g *Group) Standing() group.Standing {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.standing
}

// ServesUntil tells until when this node, as the owner, may answer: until the
// first of the others' promises ends, on the clock of Options.Now. unlimited:
// nobody can succeed it, for it is alone in the set; or the group confirms each
// read (group.Config.Confirm), and no time counts: then it says only that this
// node believes to be the owner. ok is false when the node may not answer now. It
// takes no lock, and is as of the core's last step: an earlier answer stays right.
//
// A grant that is refreshed from it should be short when unlimited, too: who is
// admitted to the set may succeed this node when it has been silent for a while.
func (g *Group) ServesUntil() (until group.Instant, unlimited, ok bool) {
	switch n := g.serves.Load(); n {
	case never:
		return 0, false, false
	case always:
		return 0, true, true
	default:
		return group.Instant(n), false, group.Instant(n) > g.opt.Now()
	}
}
