// Package group decides, on each node and for each resource group, what the
// node may do: answer reads, acknowledge writes, succeed the owner. It proposes
// changes to the quorum and keeps the promises that reads stand on. Pure: time
// and messages are inputs, proposals and messages are effects.
//
// # Roles
//
//	         Admit                    Succeed, Hand, Yield
//	Out  ------------->   Entry   --------------------------->   Owner
//	 ^                      |                                      |
//	 +----------------------+--------------------------------------+
//	         Remove, restart; another's Succeed, Revive
//
// A node learns its role only from what the quorum has decided, and it may
// learn late. So each role is safe to believe in for too long:
//
//   - An owner acknowledges a write when every other entry has it. Who
//     succeeded it was an entry, and takes nothing from it any more.
//   - An owner answers reads while every other entry's promise lasts. Who
//     succeeds it has waited for its promise to end.
//   - An owner that is the only entry can be succeeded by nobody.
//   - From proposing to admit a member until it knows the outcome, the owner
//     counts it as an entry: that member may know first.
//   - From proposing to hand over until it knows the outcome, it does nothing.
//
// # Promises
//
// The owner sends Renew with its clock's reading. An entry answers Promise,
// which says: I will not propose to succeed you, or to revive the group, before
// Lease and a margin for drift have passed on my clock. The owner counts Lease
// from when it sent the question. An entry that has proposed to succeed never
// promises again at that revision: a proposal may be late, but never counts as
// lost. Restarting does not end a promise: a new life waits a whole lease first.
// A proof that the owner's life is over ends the wait.
//
// With Config.Confirm no promise's time counts. A read is answered when each
// other entry has answered a Renew that was sent after the read came: it had not
// proposed to succeed by then. That is safe even where a node may be stopped
// together with its clock.
//
// It trusts each clock to run at 1 +- Drift of real time (CLOCK_BOOTTIME).
package group

import (
	"slices"
	"time"

	"steadfast/cluster/quorum"
)

// Instant is a reading of the node's clock: nanoseconds of CLOCK_BOOTTIME.
type Instant int64

// Add returns t a duration later.
func (t Instant) Add(d time.Duration) Instant { return t + Instant(d) }

// Config is what an agent is made with.
type Config struct {
	Me    quorum.Incarnation
	Group string
	// Lease is how long a promise lasts, Renew how often it is renewed, and
	// Silence after what time without a word another entry is missed. Renew <
	// Silence < Lease, so that an owner that reaches the quorum has the first say.
	Lease, Renew, Silence time.Duration
	// Stall is after what time without any input, ticks included, the node counts
	// itself as one that did not run: what it did not hear meanwhile is not the
	// others' silence. Zero: never. A matter of patience, not of safety.
	Stall time.Duration
	// Drift bounds how wrong a clock's rate may be, in parts per million.
	Drift int64
	// Revive is how long a restarted member waits for a word of entries that are
	// not known to be dead.
	Revive time.Duration
	// Retry is after what time without an outcome a proposal is made again.
	Retry time.Duration
	// Confirm asks for each read instead of trusting clocks.
	Confirm bool
}

// Role is what a node is to a group.
type Role uint8

// Roles, as the package doc draws them.
const (
	Out Role = iota
	Entry
	Owner
)

// Message goes from agent to agent.
type Message struct {
	Kind  MessageKind
	Epoch quorum.Epoch
	// Stamp is the owner's clock when it asked; the answer repeats it.
	Stamp Instant
}

// MessageKind tells messages apart.
type MessageKind uint8

// Kinds of messages.
const (
	Renew   MessageKind = iota + 1 // the owner asks for a promise
	Promise                        // an entry gives it
)

// Input is what happens to an agent.
type Input interface{ input() }

// Inputs.
type (
	// Tick is the passing of time.
	Tick struct{}
	// Decided is a newer state of the quorum. It is not changed afterwards.
	Decided struct{ State *quorum.State }
	// Received is a message of another agent.
	Received struct {
		From quorum.Incarnation
		Message
	}
	// Heard is any other word of an incarnation.
	Heard struct{ From quorum.Incarnation }
	// Died is proof that an incarnation's life is over.
	Died struct{ Who quorum.Incarnation }
	// Synced tells the owner that Who has everything and is sent everything.
	Synced struct{ Who quorum.Incarnation }
	// Broken tells that this node cannot store or read any more.
	Broken struct{}
	// Move asks the owner to hand over to another entry.
	Move struct{}
	// Drained tells that nothing is under way since Standing.Serving ended.
	Drained struct{}
)

func (Tick) input()     {}
func (Decided) input()  {}
func (Received) input() {}
func (Heard) input()    {}
func (Died) input()     {}
func (Synced) input()   {}
func (Broken) input()   {}
func (Move) input()     {}
func (Drained) input()  {}

// Effect is what an agent wants done.
type Effect interface{ effect() }

// Effects.
type (
	// Propose puts a command to the quorum. It may be lost, or be late.
	Propose struct{ quorum.Command }
	// Send sends a message to an incarnation. It may be lost.
	Send struct {
		To quorum.Incarnation
		Message
	}
)

func (Propose) effect() {}
func (Send) effect()    {}

// Standing is what the node is to the group now.
type Standing struct {
	Role     Role
	Epoch    quorum.Epoch
	Revision quorum.Revision
	Owner    quorum.Incarnation
	// Others are those that a write of the owner must have reached.
	Others []quorum.Incarnation
	// Serving: as the owner, it may begin what clients ask for.
	Serving bool
}

// Agent is one node's part in one group.
type Agent struct {
	cfg   Config
	state *quorum.State
	group *quorum.Group // of state, nil when there is none

	heard map[quorum.Incarnation]Instant // last word
	last  Instant                        // of the latest input
	died  map[quorum.Incarnation]bool    // proven
	born  Instant

	// As an entry.
	bound    Instant         // proposes nothing against the owner before
	refusing quorum.Revision // promises nothing at this revision

	// As the owner.
	joining  *quorum.Incarnation // counted as an entry until the outcome is known
	synced   *quorum.Incarnation
	promises map[quorum.Incarnation]Instant // the latest Stamp each answered, in this epoch
	asked    Instant                        // the latest Stamp
	moving   bool                           // it is to hand over, once who joins has joined
	handing  bool
	drained  bool
	broken   bool

	proposed quorum.Command // the last one, while its revision stands
	when     Instant        // it was made
}

// New returns the agent of a life that begins now.
func New(cfg Config, now Instant) *Agent {
	a := &Agent{cfg: cfg, state: quorum.NewState(), born: now, last: now, heard: map[quorum.Incarnation]Instant{}, died: map[quorum.Incarnation]bool{}, promises: map[quorum.Incarnation]Instant{}}
	a.bound = now.Add(a.wait()) // what the life before promised
	return a
}

// wait is how long a promise binds its giver: Lease on the owner's clock may be
// longer on ours.
func (a *Agent) wait() time.Duration {
	return a.cfg.Lease + a.cfg.Lease/1_000_000*time.Duration(4*a.cfg.Drift) + time.Millisecond
}

// Step takes one input and returns what is to be done.
func (a *Agent) Step(now Instant, in Input) (out []Effect) {
	a.stalled(now)
	switch in := in.(type) {
	case Tick:
	case Decided:
		a.decided(now, in.State)
	case Received:
		a.heard[in.From] = now
		out = a.received(now, in)
	case Heard:
		a.heard[in.From] = now
	case Died:
		a.died[in.Who] = true
	case Synced:
		a.synced = &in.Who
	case Broken:
		a.broken = true
	case Move:
		a.moving = true
	case Drained:
		a.drained = a.handing
	}
	return append(out, a.act(now)...)
}

// stalled makes up for a time in which this node did not run: others may have
// spoken, and it has not listened yet.
func (a *Agent) stalled(now Instant) {
	gap := time.Duration(now - a.last)
	a.last = now
	if a.cfg.Stall == 0 || gap < a.cfg.Stall {
		return
	}
	for i, at := range a.heard {
		a.heard[i] = min(at.Add(gap), now)
	}
}

// Standing returns what the node is now.
func (a *Agent) Standing() Standing {
	if a.group == nil {
		return Standing{}
	}
	s := Standing{Role: a.role(), Epoch: a.group.Epoch, Revision: a.group.Revision, Owner: a.group.Owner}
	if s.Role == Owner {
		s.Others, s.Serving = a.others(), !a.handing && !a.broken
	}
	return s
}

// MayRead tells whether a read may be answered now from what is here. asked is
// the Stamp of a Renew that was sent when or after the read came; it counts
// with Confirm only.
func (a *Agent) MayRead(now, asked Instant) bool {
	if a.role() != Owner || a.broken || a.handing && a.drained {
		return false
	}
	for _, o := range a.others() {
		stamp, ok := a.promises[o]
		switch {
		case !ok:
			return false
		case a.cfg.Confirm && stamp < asked, !a.cfg.Confirm && now >= stamp.Add(a.cfg.Lease):
			return false
		}
	}
	return true
}

// Ask sends a Renew at once, and returns its Stamp for MayRead.
func (a *Agent) Ask(now Instant) (Instant, []Effect) {
	a.asked = max(a.asked+1, now) // two questions never have the same stamp
	var out []Effect
	for _, o := range a.others() {
		out = append(out, Send{o, Message{Renew, a.group.Epoch, a.asked}})
	}
	return a.asked, out
}

func (a *Agent) role() Role {
	switch {
	case a.group == nil:
		return Out
	case a.group.Owner == a.cfg.Me:
		return Owner
	case a.group.Has(a.cfg.Me):
		return Entry
	}
	return Out
}

// others are the entries beside this one, and who may have become one.
func (a *Agent) others() (out []quorum.Incarnation) {
	if a.role() != Owner {
		return nil
	}
	for _, e := range a.group.Set {
		if e != a.cfg.Me {
			out = append(out, e)
		}
	}
	if a.joining != nil && !slices.Contains(out, *a.joining) {
		out = append(out, *a.joining)
	}
	return out
}

// decided takes a newer state. A new revision voids what was proposed before.
func (a *Agent) decided(now Instant, s *quorum.State) {
	if s.Index < a.state.Index {
		return
	}
	old := a.group
	a.state, a.group = s, s.Group[a.cfg.Group]
	if old != nil && a.group != nil && old.Revision == a.group.Revision {
		return
	}
	a.joining, a.handing, a.drained, a.proposed = nil, false, false, quorum.Command{}
	if a.group == nil {
		return
	}
	if old == nil || old.Epoch != a.group.Epoch {
		clear(a.promises)
	}
	for _, e := range a.group.Set {
		if _, ok := a.heard[e]; !ok {
			a.heard[e] = now // its silence is counted from here
		}
	}
}

// received answers a question, or notes an answer.
func (a *Agent) received(now Instant, m Received) []Effect {
	switch m.Kind {
	case Renew:
		if !a.mayPromise(m) {
			return nil
		}
		a.bound = max(a.bound, now.Add(a.wait()))
		return []Effect{Send{m.From, Message{Promise, m.Epoch, m.Stamp}}}
	case Promise:
		if a.role() == Owner && m.Epoch == a.group.Epoch && slices.Contains(a.others(), m.From) && m.Stamp <= a.asked {
			a.promises[m.From] = max(a.promises[m.From], m.Stamp)
		}
	}
	return nil
}

// mayPromise tells whether a promise can be given: the asker may be the owner,
// and this node has not set out to succeed it.
func (a *Agent) mayPromise(m Received) bool {
	if a.group == nil || m.Epoch > a.group.Epoch {
		// It knows more than this node, which has set out for nothing newer.
		return a.group == nil || a.refusing != a.group.Revision
	}
	return m.Epoch == a.group.Epoch && m.From == a.group.Owner && a.role() != Owner && a.refusing != a.group.Revision
}

// act does what is due.
func (a *Agent) act(now Instant) (out []Effect) {
	if a.state.Boots[a.cfg.Me.Member] < a.cfg.Me.Boot {
		return a.propose(now, quorum.Command{Kind: quorum.KindBoot})
	}
	switch a.role() {
	case Owner:
		if a.moving && a.joining == nil {
			a.moving, a.handing = false, len(a.others()) > 0
		}
		out = a.rule(now)
		if a.due(now) {
			_, ask := a.Ask(now)
			out = append(out, ask...)
		}
		return out
	case Entry:
		a.moving = false
		return a.watch(now)
	default:
		a.moving = false
		return a.comeBack(now)
	}
}

// due tells whether to ask for promises: in time, and at once of an entry that
// has given none in this epoch, for reads wait for it.
func (a *Agent) due(now Instant) bool {
	for _, o := range a.others() {
		_, promised := a.promises[o]
		if now >= a.asked.Add(a.cfg.Renew) || !promised && now >= a.asked.Add(a.cfg.Renew/10) {
			return true
		}
	}
	return false
}

// rule proposes what an owner has to.
func (a *Agent) rule(now Instant) []Effect {
	for _, e := range a.group.Set {
		if e != a.cfg.Me && a.gone(now, e) {
			return a.propose(now, quorum.Command{Kind: quorum.KindRemove, Who: e})
		}
	}
	if a.joining != nil {
		if a.gone(now, *a.joining) {
			return a.propose(now, quorum.Command{Kind: quorum.KindSettle})
		}
		return a.propose(now, quorum.Command{Kind: quorum.KindAdmit, Who: *a.joining})
	}
	others := a.others()
	switch {
	case a.broken && len(others) > 0:
		return a.propose(now, quorum.Command{Kind: quorum.KindYield, Who: others[0]})
	case a.handing && a.drained && len(others) > 0:
		return a.propose(now, quorum.Command{Kind: quorum.KindHand, Who: others[0]})
	case a.handing || a.broken || a.synced == nil:
		return nil
	}
	who := *a.synced
	a.synced = nil
	if _, there := a.group.Entry(who.Member); there || a.state.Boots[who.Member] != who.Boot || a.gone(now, who) {
		return nil
	}
	a.joining = &who
	return a.propose(now, quorum.Command{Kind: quorum.KindAdmit, Who: who})
}

// watch proposes what an entry has to: to succeed an owner that is missed.
func (a *Agent) watch(now Instant) []Effect {
	owner := a.group.Owner
	switch {
	case a.broken:
		return a.propose(now, quorum.Command{Kind: quorum.KindRemove, Who: a.cfg.Me})
	case a.over(owner):
	case now < a.bound || now < a.heard[owner].Add(a.cfg.Silence):
		if a.refusing != a.group.Revision {
			return nil
		}
		// It has set out already, and the owner cannot read any more.
	}
	a.refusing = a.group.Revision
	return a.propose(now, quorum.Command{Kind: quorum.KindSucceed})
}

// comeBack revives a group that this member was last in, when nobody in it
// lives. The member of the last owner goes first: both may be back.
func (a *Agent) comeBack(now Instant) []Effect {
	if a.group == nil || a.broken {
		return nil
	}
	mine, ok := a.group.Entry(a.cfg.Me.Member)
	if !ok {
		return nil
	}
	over, silent := true, true
	for _, e := range a.group.Set {
		if e != mine {
			over = over && a.over(e)
			silent = silent && now >= a.heard[e].Add(a.cfg.Revive)
		}
	}
	patience := a.born.Add(a.cfg.Revive)
	switch {
	case over && (a.group.Owner.Member == a.cfg.Me.Member || now >= patience):
	case silent && now >= patience && now >= a.bound:
	case a.refusing == a.group.Revision:
	default:
		return nil
	}
	a.refusing = a.group.Revision
	return a.propose(now, quorum.Command{Kind: quorum.KindRevive})
}

// over tells whether a life is known to be over.
func (a *Agent) over(i quorum.Incarnation) bool { return a.died[i] || a.state.Dead(i) }

// gone tells whether an entry is to be removed.
func (a *Agent) gone(now Instant, i quorum.Incarnation) bool {
	return a.over(i) || now >= a.heard[i].Add(a.cfg.Silence)
}

// propose makes a proposal, unless it was made just now.
func (a *Agent) propose(now Instant, c quorum.Command) []Effect {
	c.By = a.cfg.Me
	if c.Kind != quorum.KindBoot {
		c.Group, c.Revision = a.cfg.Group, a.group.Revision
	}
	if c.Equal(a.proposed) && now < a.when.Add(a.cfg.Retry) {
		return nil
	}
	a.proposed, a.when = c, now
	return []Effect{Propose{c}}
}

// Missed tells whether i is dead or has been silent for too long.
func (a *Agent) Missed(now Instant, i quorum.Incarnation) bool { return a.gone(now, i) }

// ServesUntil tells until when the owner may answer what it has: the end of the
// earliest promise of the other entries. unlimited: nobody can succeed it, for it
// is alone in the set; or Config.Confirm is set, and no time counts. ok is false
// when it may not answer now, or is not the owner.
func (a *Agent) ServesUntil() (until Instant, unlimited, ok bool) {
	if a.role() != Owner || a.broken || a.handing && a.drained {
		return 0, false, false
	}
	others := a.others()
	if len(others) == 0 || a.cfg.Confirm {
		return 0, true, true
	}
	for i, o := range others {
		stamp, promised := a.promises[o]
		if !promised {
			return 0, false, false
		}
		if end := stamp.Add(a.cfg.Lease); i == 0 || end < until {
			until = end
		}
	}
	return until, false, true
}
