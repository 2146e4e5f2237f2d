package ha

import (
	"crypto/tls"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/san/mirrorio"
)

// Reason is why a group has another owner than before.
type Reason string

// Reasons. The quorum's record tells some of them; who took over from an owner
// that says nothing any more knows the rest, for it proposed that itself.
const (
	Unknown  Reason = "unknown"  // it was decided before this life of the node
	Created  Reason = "created"  // the group is new
	Moved    Reason = "moved"    // handed over, planned: nothing was under way
	Yielded  Reason = "yielded"  // the owner's store had failed, and it gave the group up
	Died     Reason = "died"     // the owner's life is over, proven
	Silent   Reason = "silent"   // the owner was not heard of until its promises had run out
	Revived  Reason = "revived"  // every node of the set had died, and one is back
	Promoted Reason = "promoted" // by an administrator, without the newest copy
)

// Reasons lists all reasons there are.
func Reasons() []Reason {
	return []Reason{Unknown, Created, Moved, Yielded, Died, Silent, Revived, Promoted}
}

// turn is a change of the group's owner.
type turn struct {
	epoch    quorum.Epoch
	from, to quorum.Incarnation
	reason   Reason
	sign     time.Time // the first sign of it that this node had
	decided  time.Time // this node learned of it
}

// history keeps why and how quickly the group changed its owner, for events and
// metrics. Nothing is decided by it. Its lock is a leaf.
type history struct {
	me   quorum.Incarnation
	name string
	born time.Time

	mu       sync.Mutex
	record   *quorum.Group // the newest
	turn     turn          // the newest
	proposed map[quorum.Kind]quorum.Revision
	dead     quorum.Incarnation // whose death was proven last, and when
	deadAt   time.Time
	conn     *tls.Conn // the mirror link, or nil
	lostAt   time.Time // it ended
	counts   map[Reason]uint64
	counted  quorum.Epoch
	last     time.Duration // of the newest takeover
}

func newHistory(me quorum.Incarnation, name string, s *quorum.State) *history {
	now := time.Now()
	h := &history{me: me, name: name, born: now, proposed: map[quorum.Kind]quorum.Revision{}, counts: map[Reason]uint64{}}
	h.decided(s, now)
	return h
}

// decided takes in a newer state of the quorum. It comes before the mirror's, so
// that a turn is known when it is acted on.
func (h *history) decided(s *quorum.State, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old, next := h.record, s.Group[h.name]
	h.record = next
	if next == nil || old != nil && old.Epoch == next.Epoch {
		return
	}
	h.turn = turn{epoch: next.Epoch, to: next.Owner, reason: Unknown, sign: now, decided: now}
	if old == nil {
		if next.Epoch == 1 {
			h.turn.reason = Created
		}
		return
	}
	h.turn.from = old.Owner
	h.turn.reason = h.reason(s, old, next)
	h.turn.sign = h.sign(now)
}

// reason tells why the owner is another one. Under mu.
func (h *history) reason(s *quorum.State, old, next *quorum.Group) Reason {
	since := func(k quorum.Kind) bool { return h.proposed[k] >= old.Revision }
	switch {
	case next.Promoted > old.Promoted:
		return Promoted
	case next.Revived > old.Revived:
		return Revived
	case next.Has(old.Owner): // a hand over leaves the set as it is
		return Moved
	case h.me == next.Owner && !since(quorum.KindSucceed):
		// It was given the group. A yield is one step, and leaves the owner out of
		// the set; after a hand over it takes another step.
		if next.Revision == old.Revision+1 {
			return Yielded
		}
		return Moved
	case h.me == old.Owner && since(quorum.KindYield):
		return Yielded
	case h.me == old.Owner && since(quorum.KindHand):
		return Moved
	case s.Dead(old.Owner) || h.dead == old.Owner:
		return Died
	}
	return Silent
}

// sign returns when this node had the first sign of the newest turn. Under mu.
func (h *history) sign(now time.Time) time.Time {
	sign := now
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(sign) {
			sign = t
		}
	}
	switch h.turn.reason {
	case Revived:
		earlier(h.born)
	case Died, Silent:
		if h.dead == h.turn.from {
			earlier(h.deadAt)
		}
		if h.conn == nil {
			earlier(h.lostAt)
		} else if quiet, ok := quietFor(h.conn); ok {
			earlier(now.Add(-quiet))
		}
	default: // there is none but the decision
	}
	return sign
}

// proposing notes what this node proposes.
func (h *history) proposing(c quorum.Command) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.proposed[c.Kind] = c.Revision
}

// died notes a proof that a life is over.
func (h *history) died(i quorum.Incarnation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dead != i {
		h.dead, h.deadAt = i, time.Now()
	}
}

// linked notes that there is a mirror link, until the returned function is
// called.
func (h *history) linked(conn *tls.Conn) (ended func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn = conn
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.conn == conn { // it was not replaced
			h.conn, h.lostAt = nil, time.Now()
		}
	}
}

// quietFor tells how long ago something came in on a connection.
func quietFor(conn *tls.Conn) (quiet time.Duration, ok bool) {
	c, ok := conn.NetConn().(syscall.Conn)
	if !ok {
		return 0, false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, false
	}
	var info *unix.TCPInfo
	cerr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	if err != nil || cerr != nil {
		return 0, false // it has just ended
	}
	return time.Duration(info.Last_data_recv) * time.Millisecond, true
}

// served notes that this node serves the group in an epoch. first is false when
// it did so before in the same one, or when the turn to it is not known.
func (h *history) served(epoch quorum.Epoch) (t turn, took time.Duration, first bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t = h.turn
	if t.epoch != epoch || h.counted >= epoch {
		return t, 0, false
	}
	h.counted = epoch
	h.counts[t.reason]++
	h.last = time.Since(t.sign)
	return t, h.last, true
}

// newest returns the newest turn.
func (h *history) newest() turn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.turn
}

// severity is what an event of the turn has.
func (t turn) severity() string {
	switch t.reason {
	case Promoted:
		return Error
	case Yielded, Died, Silent, Revived:
		return Warning
	default:
		return Info
	}
}

// why says the turn's reason, for people.
func (t turn) why() string {
	switch t.reason {
	case Created:
		return "it is new"
	case Moved:
		return fmt.Sprintf("handed over by node %s, as planned", t.from.Member)
	case Yielded:
		return fmt.Sprintf("given up by node %s, whose store had failed", t.from.Member)
	case Died:
		return fmt.Sprintf("the process of node %s (life %d) has ended, which is proven", t.from.Member, t.from.Boot)
	case Silent:
		return fmt.Sprintf("node %s was not heard of, and its promises have run out", t.from.Member)
	case Revived:
		return "every node that was in sync had ended, and this one is back"
	case Promoted:
		return fmt.Sprintf("promoted by an administrator; writes that only node %s had are lost", t.from.Member)
	default:
		return "as was decided before this node started"
	}
}

// tellServing publishes that this node serves the group now, why, and how long
// that took. began is when the node began to.
func (g *Group) tellServing(s *service, began time.Time) {
	me := g.cfg.Member.Self().Member
	t, took, first := g.history.served(s.epoch)
	if !first {
		g.publish(Info, "group-serving", "", "node %s serves it in epoch %d, %v after it was told to", me, s.epoch, brief(time.Since(began)))
		return
	}
	text := fmt.Sprintf("node %s serves it in epoch %d: %s; %v after it was told to", me, s.epoch, t.why(), brief(time.Since(began)))
	switch t.reason {
	case Died, Silent:
		text += fmt.Sprintf(", %v after the last word of node %s", brief(took), t.from.Member)
	case Revived:
		text += fmt.Sprintf(", %v after the group's start here", brief(took))
	default: // the decision was the first that was known of it
	}
	g.publish(t.severity(), "group-serving", "", "%s", text)
	if t.reason == Revived {
		g.tellRevived(s.spec)
	}
}

// tellRevived says what may be lost when every node had died: what was in
// memory, of volumes with a write cache, unless only the processes had ended.
func (g *Group) tellRevived(spec *Spec) {
	var cached []string
	for _, v := range spec.Volumes {
		if v.WriteCache {
			cached = append(cached, v.Name)
		}
	}
	if len(cached) == 0 {
		g.publish(Info, "group-revived", "", "every node had ended; nothing that was acknowledged is lost")
		return
	}
	g.publish(Error, "group-revived", "", "every node had ended; writes to %s (write cache on) that no flush had followed may be gone, if the machines had lost power or crashed; "+
		"nothing else that was acknowledged is lost", strings.Join(cached, ", "))
}

// tellLeft publishes that this node does not serve the group any more, and why.
func (g *Group) tellLeft(s *service, served time.Duration) {
	t, why := g.history.newest(), "its part here ends"
	if t.epoch > s.epoch {
		switch t.reason {
		case Moved:
			why = fmt.Sprintf("handed over to node %s, as planned", t.to.Member)
		case Yielded:
			why = fmt.Sprintf("this node's store has failed, and node %s goes on", t.to.Member)
		default:
			why = fmt.Sprintf("node %s has taken it over, for it had not heard of this node", t.to.Member)
		}
	}
	severity := Info
	if t.epoch > s.epoch && t.reason != Moved {
		severity = Warning
	}
	g.publish(severity, "group-left", "", "node %s serves it no longer, after %v: %s", g.cfg.Member.Self().Member, served.Round(time.Second), why)
}

// brief rounds a time for people.
func brief(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// Stats is what a group is at on this node, for metrics.
type Stats struct {
	Owner    bool // the mirror's word
	Serving  bool // and everything that clients need is there, and may be answered
	Hindered bool // something keeps it from what it is to be
	// Aliases that the group has, and those that live on this node.
	Aliases, Held int
	Mirror        mirrorio.Status // of the zero value while there is none
	// Takeovers counts the times that this node came to serve the group, and
	// LastTakeover how long the newest took from its first sign; 0: there was
	// none.
	Takeovers    map[Reason]uint64
	LastTakeover time.Duration
}

// Stats returns what the group is at. It asks the mirror's loop, and so waits
// for a moment.
func (g *Group) Stats() Stats {
	g.mu.Lock()
	out := Stats{Owner: g.standing.Role == group.Owner, Hindered: g.problem != "", Aliases: len(g.spec.Aliases)}
	m, s := g.mirror, g.current
	g.mu.Unlock()
	if s != nil {
		out.Held = len(s.holding())
		if g.cfg.Aliases == nil {
			out.Held = out.Aliases // they were given
		}
	}
	if m != nil {
		out.Mirror = m.Status()
		// An owner that is cut off has units and sessions, and no right to answer.
		_, _, may := m.ServesUntil()
		out.Serving = s != nil && may
	}
	h := g.history
	h.mu.Lock()
	defer h.mu.Unlock()
	out.LastTakeover, out.Takeovers = h.last, map[Reason]uint64{}
	for _, r := range Reasons() {
		out.Takeovers[r] = h.counts[r]
	}
	return out
}
