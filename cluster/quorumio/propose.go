package quorumio

import (
	"context"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// Bounds of the proposals under way.
const (
	asksMax      = 1024
	asksBytesMax = 32 << 20
)

// repeatTicks is after how many ticks a proposal that nobody answers is offered
// again, and retryTicks the same for one that found no leader.
const (
	repeatTicks = 10
	retryTicks  = 1
)

// ask is a proposal under way.
type ask struct {
	ctx     context.Context
	command quorum.Command
	done    func(error) // called once, from the loop; must not block

	encoded []byte
	again   uint64 // tick
}

// proposals are the member's own, by number; the loop owns them.
type proposals struct {
	seq     uint64 // newest number given
	asked   map[uint64]*ask
	waiting []*ask // until the life has begun for the quorum too
}

func (p *proposals) init() { p.asked = map[uint64]*ask{} }

// full tells whether a proposal of so many bytes is too much.
func (p *proposals) full(bytes int) bool {
	for _, a := range p.asked {
		bytes += len(a.encoded)
	}
	for _, a := range p.waiting {
		bytes += len(a.encoded)
	}
	return len(p.asked)+len(p.waiting) >= asksMax || bytes > asksBytesMax
}

// Propose has the quorum decide on a command, and returns what it made of it:
// nil, or the error of quorum.State.Apply. By is this life when it is empty. It
// returns fault.Unreachable when ctx ends before, or when this member was so far
// behind that it learnt of the state and not of the decision, and fault.Canceled
// after Close: then the command may be decided or not, and State will tell. When
// it returns what was made of the command, State has it.
func (m *Member) Propose(ctx context.Context, c quorum.Command) error {
	if c.Kind.OfRoll() {
		return fault.New(fault.Invalid, "%s: the membership has its own calls", c.Kind)
	}
	return m.propose(ctx, c)
}

// Edit has the inventory changed, all of the edits or none, if it is at revision
// base still. Fails as Propose does: with fault.Stale when it is not.
func (m *Member) Edit(ctx context.Context, base quorum.Revision, edits ...quorum.Edit) error {
	return m.Propose(ctx, quorum.Command{Kind: quorum.KindEdit, Revision: base, Edits: edits})
}

func (m *Member) propose(ctx context.Context, c quorum.Command) error {
	if (c.By == quorum.Incarnation{}) {
		c.By = m.self
	}
	encoded, err := c.Encode()
	switch {
	case err != nil:
		return fault.Wrap(fault.Invalid, err, "a command")
	case len(encoded) > proposalBytesMax:
		return fault.New(fault.Limit, "a command of %d bytes, the bound is %d", len(encoded), proposalBytesMax)
	case c.By != m.self:
		return fault.New(fault.Invalid, "%s of %s life %d, at %s life %d", c.Kind, c.By.Member, c.By.Boot, m.self.Member, m.self.Boot)
	}
	// done has room, so that the loop never waits for a caller who has gone.
	done := make(chan error, 1)
	a := &ask{ctx: ctx, command: c, encoded: encoded, done: func(err error) { done <- err }}
	select {
	case m.inbox <- a:
	case <-ctx.Done():
		return undecided(ctx, c)
	case <-m.ended:
		return m.why
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return undecided(ctx, c)
	case <-m.ended:
		select {
		case err := <-done: // it was decided before the end
			return err
		default:
			return m.why
		}
	}
}

func undecided(ctx context.Context, c quorum.Command) error {
	return fault.Wrap(fault.Unreachable, context.Cause(ctx), "the quorum has not decided on "+string(c.Kind)+" in time, and still may")
}

// boot proposes that the life begins. What was asked before waits for it: the
// quorum refuses a life that it does not know.
func (l *loop) boot() {
	l.put(&ask{
		ctx: context.Background(), done: func(error) {},
		command: quorum.Command{Kind: quorum.KindBoot, By: l.m.self},
	})
}

// ask takes a proposal.
func (l *loop) ask(a *ask) {
	switch {
	case l.full(len(a.encoded)):
		a.done(fault.New(fault.Busy, "%d proposals are under way", len(l.asked)+len(l.waiting)))
	case !l.begun() && a.command.Kind != quorum.KindBoot:
		l.waiting = append(l.waiting, a)
	default:
		l.put(a)
	}
}

// begun tells whether the quorum knows this life.
func (l *loop) begun() bool { return l.machine.state.Boots[l.m.self.Member] == l.m.self.Boot }

// superseded fails when the quorum knows a later life of this member: the
// directory is an old copy, and the member has forgotten what it promised.
func (l *loop) superseded() error {
	if l.lingers != 0 {
		return nil // leaving ended all its lives
	}
	if b := l.machine.state.Boots[l.m.self.Member]; b > l.m.self.Boot {
		return fault.New(fault.Stale, "this is life %d of a member whose life %d has begun: its directory is an old copy", l.m.self.Boot, b)
	}
	return nil
}

// put gives a proposal its number, and offers it.
func (l *loop) put(a *ask) {
	if a.encoded == nil {
		a.encoded, _ = a.command.Encode() // our own commands have no form that JSON lacks
	}
	l.seq++
	l.asked[l.seq] = a
	l.offer(l.seq, a)
}

// offer gives a proposal to raft, which passes it on to the leader.
func (l *loop) offer(seq uint64, a *ask) {
	data := encodeProposal(tag{l.m.id.Self().ID, l.m.self.Boot, seq}, a.encoded)
	var err error
	if change := raftChange(a.command); change != nil {
		change.Context = data
		err = l.raft.ProposeConfChange(proto.CloneOf(change))
	} else {
		err = l.raft.Propose(data)
	}
	a.again = l.ticks + repeatTicks
	if err != nil { // no leader, or one that is about to go
		a.again = l.ticks + retryTicks
	}
}

// repeat offers again what seems lost, and forgets what nobody waits for.
func (l *loop) repeat() {
	for _, seq := range slices.Sorted(maps.Keys(l.asked)) {
		a := l.asked[seq]
		switch {
		case a.ctx.Err() != nil:
			delete(l.asked, seq)
		case l.ticks >= a.again:
			l.offer(seq, a)
		}
	}
	l.waiting = slices.DeleteFunc(l.waiting, func(a *ask) bool { return a.ctx.Err() != nil })
}

// settle tells a proposer what became of its proposal.
func (l *loop) settle(out outcome) {
	if out.void || out.tag.member != l.m.id.Self().ID || out.tag.boot != l.m.self.Boot {
		return
	}
	if a := l.asked[out.tag.seq]; a != nil {
		delete(l.asked, out.tag.seq)
		a.done(out.err)
	}
	l.overtaken(out.tag.seq)
	l.release()
}

// overtaken numbers anew what was asked before a proposal that has been applied:
// under their numbers they are void for ever.
func (l *loop) overtaken(seq uint64) {
	for _, old := range slices.Sorted(maps.Keys(l.asked)) {
		if old >= seq {
			return
		}
		a := l.asked[old]
		delete(l.asked, old)
		l.put(a)
	}
}

// release puts forward what waited for the life to begin.
func (l *loop) release() {
	if !l.begun() {
		return
	}
	waiting := l.waiting
	l.waiting = nil
	for _, a := range waiting {
		l.put(a)
	}
}

// afterSnapshot settles what a snapshot has left out: what it covers was applied
// or overtaken, and nobody can say which.
func (l *loop) afterSnapshot() {
	if k := l.machine.last[l.m.id.Self().ID]; k.Boot == l.m.self.Boot {
		for seq, a := range l.asked {
			if seq <= k.Seq {
				delete(l.asked, seq)
				a.done(fault.New(fault.Unreachable, "this member was behind and has not seen what the quorum made of %s", a.command.Kind))
			}
		}
	}
	l.release()
}
