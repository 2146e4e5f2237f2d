package ha

import (
	"context"
	"time"

	"steadfast/cluster/group"
	"steadfast/fault"
	"steadfast/san/aliasio"
	"steadfast/san/statevol"
)

// Times of a planned move: how long commands that run are waited for, and after
// what time without an outcome the group is served here again.
const (
	drainCommands = 500 * time.Millisecond
	moveGivesUp   = 3 * time.Second
)

// Move hands the group over to its other node, planned. It returns when that was
// asked for; the quorum's record tells when it has come about. Fails with
// fault.Fenced when this node does not serve it.
func (g *Group) Move() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mirror == nil || g.standing.Role != group.Owner {
		return fault.New(fault.Fenced, "this node does not own group %q", g.name)
	}
	g.toMove = true
	g.wake()
	return nil
}

// move does what Move has asked for, and ends a move that nothing comes of.
func (g *Group) move() {
	g.mu.Lock()
	asked, owner := g.toMove, g.standing.Role == group.Owner
	g.toMove = false
	g.mu.Unlock()
	switch {
	case !owner:
		g.moving = time.Time{}
	case asked:
		g.handOver()
	case !g.moving.IsZero() && time.Since(g.moving) > moveGivesUp:
		g.moving = time.Time{}
		g.stay()
	}
}

// handOver readies the initiators and has the mirror hand the group over: what
// runs is answered, what comes is not begun, and each is told to come back at
// once. The other node's tickles make them.
func (g *Group) handOver() {
	m := g.mirrored()
	if m == nil || !g.moving.IsZero() {
		return
	}
	g.moving = time.Now()
	if s := g.serving; s != nil {
		ctx, cancel := context.WithTimeout(g.ctx, drainCommands)
		g.cfg.Targets.PrepareMove(ctx, s.tag)
		for _, c := range g.cfg.Targets.Connections(s.tag) {
			s.enter(statevol.Session{Alias: c.Local, Client: c.Remote})
		}
		if err := s.state.Sessions().Sync(); err != nil {
			g.cfg.Log.Debug("the clients are not all entered", "group", g.name, "error", err)
		}
		cancel()
	}
	m.Move()
}

// stay serves the group on after a move that came to nothing: the initiators,
// which wait to be reset, are.
func (g *Group) stay() {
	s := g.serving
	g.stayed = time.Now()
	if s == nil {
		return
	}
	tag := s.tag
	var list []aliasio.Session
	for _, c := range g.cfg.Targets.Connections(tag) {
		list = append(list, aliasio.Session{Alias: c.Local, Client: c.Remote})
	}
	g.cfg.Targets.DropPortalGroup(tag)
	g.cfg.Targets.AdmitLogins(tag)
	g.publish(Warning, "move-failed", "", "the other node did not take it over; node %s serves it on", g.cfg.Member.Self().Member)
	s.tasks.Go(func() { s.tell(list) })
}
