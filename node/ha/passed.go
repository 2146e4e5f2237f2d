package ha

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/san/lun"
)

// What initiators send to a unit through the portal of a node that does not serve
// it, and what changes the unit (san/lun, passed.go), is brought to the node that
// does, over a connection of its own for each:
//
//	standby                              owner
//	   | ------- TLS, ProtoUnit ----------> |
//	   | <------ ready -------------------- |  from here on it counts
//	   | ------- request -----------------> |  performs it, unless passedBegin is over
//	   | <------ answer ------------------- |
//
// Each message is four bytes of length, big-endian, and JSON.
//
// The standby's patience (passedTime) begins before it dials, the owner's count
// after: so when the owner still begins, the standby has not given up, whatever
// their clocks say of the time of day. One that gives up earlier, for its unit goes,
// closes the connection, and the owner does not begin then either. When the
// connection breaks after the request nobody here knows what became of it, and the
// initiator is told to look. A standby that becomes the owner meanwhile need not
// know: the former one can save nothing any more.
//
// The way back, for attentions that other initiators cause, is the same with the
// owner as who asks. Who cannot be told keeps for the nexus's next home what there
// is to tell, which is in the unit's state anyway.

// ProtoUnit is the ALPN of connections that bring commands of standby units to
// their owner, and unit attentions to standby units.
const ProtoUnit = "steadfast-unit/1"

// Of what is passed on.
const (
	unitVersion   = 1
	unitBytesMax  = 1 << 20
	passedTime    = 10 * time.Second      // who asks gives up, after each try
	passedBegin   = 8 * time.Second       // who is asked does not begin any more
	passedRetry   = 3 * time.Second       // for how long what was not performed is tried again
	passedPause   = 20 * time.Millisecond // between two tries
	passedMax     = 16                    // under way at once of one unit
	attentionTime = 2 * time.Second
	attentionsMax = 1024 // of one unit on their way
)

// unitReady is what the asked says first.
type unitReady struct {
	Version int `json:"version"`
}

// unitRequest is a command, a function, or attentions.
type unitRequest struct {
	Group     string       `json:"group"`
	Volume    string       `json:"volume"`
	Passed    *lun.Passed  `json:"passed,omitempty"`
	Attention []lun.Notice `json:"attention,omitempty"`
}

// unitAnswer is what became of it. With Refused nothing was done.
type unitAnswer struct {
	Refused string       `json:"refused,omitempty"`
	Answer  *lun.Answer  `json:"answer,omitempty"`
	Heard   []lun.Notice `json:"heard,omitempty"`
}

func writeUnit(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > unitBytesMax {
		return fault.New(fault.Limit, "a message of %d bytes", len(b))
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func readUnit(r io.Reader, v any) error {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > unitBytesMax {
		return fault.New(fault.Invalid, "a message of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return fault.Wrap(fault.Invalid, json.Unmarshal(b, v), "a message")
}

// unitDial connects to a node.
type unitDial func(context.Context) (net.Conn, error)

// dialUnit connects and returns when the other node is ready for a request. What
// fails until then has done nothing there.
func dialUnit(ctx context.Context, dial unitDial) (net.Conn, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	defer cutWith(ctx, conn)()
	var ready unitReady
	err = readUnit(conn, &ready)
	if err == nil && ready.Version != unitVersion {
		err = fault.New(fault.Invalid, "it speaks version %d of this, and this node %d: bring both to the same release", ready.Version, unitVersion)
	}
	if err != nil {
		_ = conn.Close() // it is of no use
		return nil, err
	}
	return conn, nil
}

// cutWith ends what waits on conn with ctx, until stop is called.
func cutWith(ctx context.Context, conn net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // fails when it has ended
}

// askUnit asks another node, for so long. sent: the request may have been performed,
// so that nobody knows what became of it if there is an error.
func askUnit(ctx context.Context, patience time.Duration, dial unitDial, ask unitRequest) (answer unitAnswer, sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := dialUnit(ctx, dial)
	if err != nil {
		return answer, false, err
	}
	defer func() { _ = conn.Close() }() // all that matters was read
	defer cutWith(ctx, conn)()
	if err = writeUnit(conn, ask); err == nil {
		err = readUnit(conn, &answer)
	}
	switch {
	case err != nil:
		return answer, true, err
	case answer.Refused != "":
		return answer, false, fault.New(fault.Denied, "it refuses: %s", answer.Refused)
	}
	return answer, true, nil
}

// unitOf dials a node for askUnit.
func (g *Group) unitOf(node quorum.Member) unitDial {
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := g.cfg.Member.Dial(ctx, node, ProtoUnit)
		if err != nil {
			return nil, err
		}
		return conn, nil
	}
}

// passOn brings to the group's owner what came through a port of this node.
func (g *Group) passOn(ctx context.Context, p lun.Passed) (lun.Answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(g.ctx, cancel)()
	owner := func() unitDial {
		g.mu.Lock()
		defer g.mu.Unlock()
		if o := g.standing.Owner.Member; o != "" && o != g.cfg.Member.Self().Member {
			return g.unitOf(o)
		}
		return nil
	}
	answer, err := passOn(ctx, owner, unitRequest{Group: g.name, Volume: hexID(p.Volume), Passed: &p})
	if err != nil {
		g.cfg.Log.Warn("a command was not passed on, or has no answer", "group", g.name, "initiator", p.Nexus.Initiator, "error", err)
	}
	return answer, err
}

// passOn asks the owner. While there is none, or none that can be reached, it tries
// for a little: the group may be moving. What may have been performed is never sent
// again.
func passOn(ctx context.Context, owner func() unitDial, ask unitRequest) (lun.Answer, error) {
	for began := time.Now(); ; {
		err := fault.New(fault.Busy, "the group has no owner that could be asked")
		if dial := owner(); dial != nil {
			answer, sent, asked := askUnit(ctx, passedTime, dial, ask)
			if asked == nil && answer.Answer != nil {
				return *answer.Answer, nil
			}
			if sent {
				return lun.Answer{}, fault.Wrap(fault.Unreachable, cmp.Or(asked, errNoAnswer), "nobody knows what became of it")
			}
			err = fault.Wrap(fault.Unreachable, asked, "the group's owner")
		}
		if time.Since(began) > passedRetry {
			return lun.Answer{}, err
		}
		select {
		case <-ctx.Done():
			return lun.Answer{}, err
		case <-time.After(passedPause):
		}
	}
}

// errNoAnswer is of an owner that has nothing to say.
var errNoAnswer error = fault.New(fault.Corrupt, "an answer without content")

// ServeUnit answers another node that brings a command or attentions, and returns
// when that is done.
func (gs *Groups) ServeUnit(conn *tls.Conn, from identity.Peer) {
	defer cutWith(gs.ctx, conn)()
	err := answerUnit(conn, gs.cfg.Now, func(ask unitRequest, late func() bool) (unitAnswer, error) {
		return gs.takePassed(from.Name, ask, late)
	})
	if err != nil {
		gs.cfg.Log.Debug("what another node passed on was not answered", "from", from.Name, "error", err)
	}
}

// answerUnit takes one request from conn and answers it with what take returns.
// late is whether who asks may have given up.
func answerUnit(conn net.Conn, now func() group.Instant, take func(ask unitRequest, late func() bool) (unitAnswer, error)) error {
	if err := conn.SetDeadline(time.Now().Add(passedTime)); err != nil {
		return err
	}
	ready := now() // before who asks can know that it may
	if err := writeUnit(conn, unitReady{Version: unitVersion}); err != nil {
		return err
	}
	var ask unitRequest
	if err := readUnit(conn, &ask); err != nil {
		return err
	}
	var gone atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = conn.Read(make([]byte, 1)) // nothing comes: it returns when the connection ends
		gone.Store(true)
	}()
	defer func() {
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // fails when it has ended already
		<-ended
	}()
	answer, err := take(ask, func() bool { return gone.Load() || now()-ready > group.Instant(passedBegin) })
	if err != nil {
		answer = unitAnswer{Refused: err.Error()}
	}
	if err := conn.SetWriteDeadline(time.Now().Add(passedTime)); err != nil {
		return err
	}
	return writeUnit(conn, answer)
}

// takePassed does what another node asks for.
func (gs *Groups) takePassed(from quorum.Member, ask unitRequest, late func() bool) (unitAnswer, error) {
	g, err := gs.Group(ask.Group)
	if err != nil {
		return unitAnswer{}, err
	}
	spec := g.Spec()
	id, err := parseID(ask.Volume)
	if err != nil {
		return unitAnswer{}, err
	}
	if spec.Other(gs.cfg.Member.Self().Member) != from || !slices.ContainsFunc(spec.Volumes, func(v Volume) bool { return v.ID == ask.Volume }) {
		return unitAnswer{}, fault.New(fault.Denied, "%s has no part in that volume of group %q", from, ask.Group)
	}
	if ask.Passed == nil {
		heard, err := gs.cfg.Units.Hear(id, ask.Attention)
		return unitAnswer{Heard: heard}, err
	}
	p := *ask.Passed
	p.Volume = id
	g.mu.Lock()
	tags := portalTags(g.state.Inventory.Entries, from)
	g.mu.Unlock()
	// A node speaks for what comes through its own portals, and for nothing else.
	if p.Nexus.Port.Target != spec.Target || !slices.Contains(tags, p.Nexus.Port.Tag) {
		return unitAnswer{}, fault.New(fault.Denied, "port %d of %s is none of %s", p.Nexus.Port.Tag, p.Nexus.Port.Target, from)
	}
	answer, err := gs.cfg.Units.Perform(p, late)
	return unitAnswer{Answer: &answer}, err
}

// Tell implements lun.Teller: what initiators of the other node's portals are to be
// told is on its way, in the order in which it came.
func (u *unit) Tell(list []lun.Notice) <-chan struct{} {
	s := u.s
	s.mu.Lock()
	multipath := s.spec.Multipath
	s.mu.Unlock()
	if !multipath {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, n := range list {
		// A second one of a kind says nothing that the first does not.
		if !slices.Contains(u.notices, n) && len(u.notices) < attentionsMax {
			u.notices = append(u.notices, n)
		}
	}
	if len(u.notices) == 0 {
		return nil
	}
	if u.brought == nil {
		u.brought = make(chan struct{})
	}
	if !u.telling {
		u.telling = true
		s.tasks.Go(u.bring)
	}
	return u.brought
}

// bring brings attentions to the other node until there are none left.
func (u *unit) bring() {
	for {
		u.mu.Lock()
		list, brought := u.notices, u.brought
		u.notices, u.brought = nil, nil
		u.telling = len(list) > 0
		u.mu.Unlock()
		if len(list) == 0 {
			return
		}
		g := u.s.g
		ask := unitRequest{Group: g.name, Volume: hexID(u.id), Attention: list}
		answer, _, err := askUnit(u.s.ctx, attentionTime, g.unitOf(g.Spec().Other(g.cfg.Member.Self().Member)), ask)
		close(brought)
		if err != nil {
			g.cfg.Log.Debug("attentions wait for their initiators to come", "group", g.name, "volume", u.Name(), "error", err)
			continue
		}
		g.cfg.Units.Heard(u.id, answer.Heard)
	}
}

// newStandby returns what this node has of a volume that the other one serves.
func (g *Group) newStandby(m lun.Metadata, load func() ([]byte, error)) *lun.Standby {
	v := lun.NewStandby(m, load)
	places := make(chan struct{}, passedMax)
	v.PassOn(func(ctx context.Context, p lun.Passed) (lun.Answer, error) {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
			return g.passOn(ctx, p)
		case <-ctx.Done():
			return lun.Answer{}, fault.Wrap(fault.Canceled, ctx.Err(), "the unit is another now")
		}
	})
	return v
}

var _ lun.Teller = (*unit)(nil)
