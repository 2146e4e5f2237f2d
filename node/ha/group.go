package ha

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/san/lun"
	"steadfast/san/mirror"
	"steadfast/san/mirrorio"
	"steadfast/san/store"
)

// How often a group looks at what nobody tells it.
const (
	lookEvery  = time.Second
	mirrorTick = 10 * time.Millisecond
)

// tryAgain is how long a group stays after a move came to nothing, if nobody asks.
const tryAgain = time.Minute

// stallOf is a pause between two ticks that only a node makes that did not run.
const stallOf = 8 * mirrorTick

// proposeTime bounds one proposal to the quorum; the mirror makes it again.
const proposeTime = 2 * time.Second

// proposalsMax bounds those under way at once.
const proposalsMax = 8

// Bounds of a resync: copies under way, blocks of one, what clients' operations may
// take meanwhile in percent of what they take without, and how far ahead of the
// other node's disk the owner may be, in blocks.
const (
	copiesMax   = 16
	copyBlocks  = 64
	slowdown    = 200
	aheadBlocks = 16384
)

// Group is one resource group on this node.
type Group struct {
	gs   *Groups
	cfg  *Config
	name string
	ctx  context.Context
	stop context.CancelFunc
	over chan struct{} // closed when run has ended

	kick      chan struct{} // holds one token: look again
	stood     chan struct{} // holds one token: the standing is another
	history   *history
	proposals chan struct{} // places of proposalsMax

	actions sync.Mutex // one action of both nodes after the other

	mu       sync.Mutex
	spec     *Spec // the newest
	gone     bool  // it is to be deleted here
	state    *quorum.State
	standing group.Standing
	mirror   *mirrorio.Group
	store    *mirrorio.PoolStore
	pool     *store.Pool
	resyncs  sync.Mutex // held while what a resync keeps is made or deleted
	problem  string
	since    time.Time // of the owner's part
	current  *service  // serving, for others than run
	opens    *service  // may have an alias open: from before serving until after
	toMove   bool      // asked for
	late     []late    // snapshots that are to be deleted here
	// verifications are comparisons of this node that go on, by their snapshot's name.
	verifications map[string]bool

	// Of run alone.
	serving  *service
	left     bool                    // a volume may be left that is to be deleted
	listens  []string                // alias portals that are open
	inSync   time.Time               // since when the other node is in sync; zero: it is not
	moving   time.Time               // since when the other node is to have the group
	stayed   time.Time               // when it did not take it
	standbys map[uint32]*lun.Standby // units that the other node serves, by number
}

func newGroup(gs *Groups, spec *Spec) *Group {
	g := &Group{
		gs: gs, cfg: &gs.cfg, name: spec.Name, over: make(chan struct{}), kick: make(chan struct{}, 1), stood: make(chan struct{}, 1),
		proposals: make(chan struct{}, proposalsMax), spec: spec, state: gs.cfg.Member.State(), standbys: map[uint32]*lun.Standby{},
		verifications: map[string]bool{},
	}
	g.history = newHistory(gs.cfg.Member.Self(), g.name, g.state)
	g.ctx, g.stop = context.WithCancel(gs.ctx)
	return g
}

// Name returns the group's name.
func (g *Group) Name() string { return g.name }

// Spec returns what the group is to be. It is not changed afterwards.
func (g *Group) Spec() *Spec {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.spec
}

// mirrored returns the group's mirror, or nil while there is none.
func (g *Group) mirrored() *mirrorio.Group {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mirror
}

// decided takes in a newer state of the quorum; a nil spec: the group was
// deleted.
func (g *Group) decided(spec *Spec, s *quorum.State) {
	g.history.decided(s, time.Now())
	g.mu.Lock()
	g.state = s
	if spec != nil {
		g.spec = spec
	}
	g.gone = spec == nil
	m := g.mirror
	g.mu.Unlock()
	if m != nil {
		m.Decided(s)
	}
	g.wake()
}

func (g *Group) wake() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// stoodAs is called by the mirror's loop.
func (g *Group) stoodAs(st group.Standing) {
	g.mu.Lock()
	if st.Role == group.Owner && (g.standing.Role != group.Owner || g.standing.Epoch != st.Epoch) {
		g.since = time.Now()
	}
	g.standing = st
	g.mu.Unlock()
	select {
	case g.stood <- struct{}{}:
	default:
	}
}

// run owns what the group has here, until it is closed or deleted.
func (g *Group) run() {
	defer close(g.over)
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		if g.look() {
			g.end()
			g.gs.forget(g)
			g.stop()
			return
		}
		select {
		case <-g.kick:
		case <-g.stood:
			if err := g.follow(); err != nil {
				g.tell(err)
			}
			continue
		case <-t.C:
		case <-g.ctx.Done():
			g.end()
			return
		}
	}
}

// close ends the group's part here and waits for it.
func (g *Group) close() error {
	g.stop()
	<-g.over
	return nil
}

// look brings about what the spec asks for, as far as it goes, and reports
// whether the group is gone.
func (g *Group) look() (gone bool) {
	g.mu.Lock()
	spec, state, deleted := g.spec, g.state, g.gone
	g.mu.Unlock()
	if deleted {
		return g.delete(spec, state)
	}
	err := g.prepare(spec, state)
	if err == nil {
		err = g.publishTarget(spec)
	}
	if err == nil {
		following := g.follow()
		g.move()
		g.place(spec, state)
		g.dropLate()
		g.tidy()
		err = errors.Join(following, g.standBy(spec))
	}
	g.tell(err)
	return false
}

// tell keeps what hinders the group, and publishes it when it is new.
func (g *Group) tell(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	g.mu.Lock()
	old := g.problem
	g.problem = text
	g.mu.Unlock()
	if text != "" && text != old {
		g.publish(Error, "group-hindered", "", "%s", text)
	}
}

func (g *Group) publish(severity, kind, volume, format string, args ...any) {
	g.cfg.Publish(Event{Severity: severity, Kind: kind, Group: g.name, Volume: volume, Text: fmt.Sprintf("group %q: ", g.name) + fmt.Sprintf(format, args...)})
}

// prepare opens what the group needs on this node: its pool, its volumes, its
// mirror.
func (g *Group) prepare(spec *Spec, state *quorum.State) error {
	me := g.cfg.Member.Self().Member
	mine, ok := spec.Node(me)
	if !ok {
		return fault.New(fault.NotFound, "node %s has no part in it any more", me)
	}
	pool := g.cfg.Pool(mine.Pool)
	g.mu.Lock()
	was := g.pool
	g.mu.Unlock()
	if was != nil && pool != was {
		g.end() // its pool was closed
	}
	if pool == nil {
		return fault.New(fault.Failed, "pool %q is not open on node %s; see \"steadfast pool list\" there", mine.Pool, me)
	}
	id := hexID(pool.Status().ID)
	switch mine.PoolID {
	case id:
	case "":
		return g.claimPool(spec, me, id)
	default:
		return fault.New(fault.Invalid, "pool %q on node %s is not the one that holds the group's copy; bring that one back, or have the node begin anew with \"steadfast group set %s --replace %s --with %s\"",
			mine.Pool, me, g.name, me, me)
	}
	if err := errors.Join(g.dropLeft(spec, pool, state), g.haveVolumes(spec, pool)); err != nil {
		return err
	}
	if g.mirrored() == nil {
		if err := g.open(spec, pool, state); err != nil {
			return err
		}
	}
	g.haveRecord(spec, state)
	return nil
}

// claimPool enters the identifier of this node's pool in the spec.
func (g *Group) claimPool(spec *Spec, me quorum.Member, id string) error {
	return g.gs.Change(g.ctx, g.name, func(s *Spec) error {
		for i := range s.Nodes {
			if s.Nodes[i].Name == me && s.Nodes[i].PoolID == "" {
				s.Nodes[i].PoolID = id
			}
		}
		return nil
	})
}

// open starts the mirror.
func (g *Group) open(spec *Spec, pool *store.Pool, state *quorum.State) error {
	var err error
	if g.left, err = dropOrphans(pool, spec, state); err != nil {
		return err
	}
	names := map[uint32]string{0: spec.stateName()}
	for _, v := range spec.Volumes {
		names[v.Number] = v.Name
	}
	ps, kept, err := mirrorio.OpenStore(pool, names)
	if err != nil {
		return err
	}
	t := g.cfg.Timing
	m := mirrorio.Start(mirrorio.Options{
		Mirror: mirror.Config{
			Agent: group.Config{
				Me: g.cfg.Member.Self(), Group: g.name, Lease: t.Lease, Renew: t.Renew, Silence: t.Silence, Stall: stallOf, Drift: 1000,
				Revive: 10 * t.Lease, Retry: t.Lease, Confirm: spec.Confirm,
			},
			Position: kept, Copies: copiesMax, CopyBlocks: copyBlocks, Slowdown: slowdown, AheadBlocks: aheadBlocks, Settle: time.Second, Pause: time.Second,
		},
		Store: copyOf{ps, g}, Now: g.cfg.Now, Propose: g.propose, Stood: g.stoodAs, Act: func(b []byte) error { return g.act(pool, b) }, Undo: func(b []byte) error { return g.undo(pool, b) },
		Healed: g.healed, ResyncBegins: func() error { return g.keepState(pool) }, ResyncEnded: func(ok bool) { g.dropState(pool, ok) },
		Log: g.cfg.Log, Tick: mirrorTick,
	})
	g.mu.Lock()
	g.pool, g.store, g.mirror = pool, ps, m
	newest := g.state
	g.mu.Unlock()
	// What waits for the mirror must not keep run from ending.
	context.AfterFunc(g.ctx, m.Close)
	m.Decided(newest)
	g.publish(Info, "group-open", "", "its copy on node %s is open", g.cfg.Member.Self().Member)
	return nil
}

// propose puts a command to the quorum without waiting for it.
func (g *Group) propose(c quorum.Command) {
	g.history.proposing(c)
	select {
	case g.proposals <- struct{}{}:
	default:
		return // the mirror proposes again
	}
	g.gs.tasks.Go(func() {
		defer func() { <-g.proposals }()
		if c.Kind == quorum.KindHand || c.Kind == quorum.KindYield {
			g.mu.Lock()
			s := g.opens
			g.mu.Unlock()
			if s != nil && g.cfg.Aliases != nil {
				s.shut()
			}
		}
		ctx, cancel := context.WithTimeout(g.ctx, proposeTime)
		defer cancel()
		if err := g.cfg.Member.Propose(ctx, c); err != nil {
			g.cfg.Log.Debug("a proposal came to nothing", "group", g.name, "kind", string(c.Kind), "error", err)
		}
	})
}

// haveRecord has the quorum make the group's record, if there is none yet: the
// preferred node is its first owner.
func (g *Group) haveRecord(spec *Spec, state *quorum.State) {
	record := state.Group[g.name]
	switch {
	case record == nil && spec.Preferred == g.cfg.Member.Self().Member:
		g.propose(quorum.Command{Kind: quorum.KindCreate, Group: g.name, Members: spec.Members()})
	case record != nil && record.Owner == g.cfg.Member.Self() && !slices.Equal(record.Members, spec.Members()):
		g.propose(quorum.Command{Kind: quorum.KindAssign, Group: g.name, Revision: record.Revision, Members: spec.Members()})
	}
}

// end gives up the group's part here, from the outside in.
func (g *Group) end() {
	g.leave()
	g.unpublishTarget()
	if err := g.dropStandbys(func(uint32) bool { return false }); err != nil {
		g.cfg.Log.Error("a standby unit cannot be taken away", "group", g.name, "error", err)
	}
	g.mu.Lock()
	m, ps := g.mirror, g.store
	g.mirror, g.store, g.pool, g.standing = nil, nil, nil, group.Standing{}
	g.mu.Unlock()
	if m != nil {
		m.Close()
	}
	if ps != nil {
		if err := ps.Close(); err != nil {
			g.cfg.Log.Error("the group's volumes cannot be closed", "group", g.name, "error", err)
		}
	}
}

// delete ends a deleted group here: the owner has its record deleted, and each
// node its volumes. Reports whether nothing is left to do.
func (g *Group) delete(spec *Spec, state *quorum.State) bool {
	record := state.Group[g.name]
	me := g.cfg.Member.Self()
	if record != nil {
		if record.Owner == me {
			g.propose(quorum.Command{Kind: quorum.KindDelete, Group: g.name, Revision: record.Revision})
		}
		return false
	}
	mine, _ := spec.Node(me.Member)
	pool := g.cfg.Pool(mine.Pool)
	g.end()
	if err := g.cfg.Withdraw(spec); err != nil {
		g.tell(err)
	}
	if pool == nil || hexID(pool.Status().ID) != mine.PoolID {
		return true // what is on it is not reached any more: nothing of it was in use
	}
	if err := pool.DeleteVolume(spec.stateName(), true); err != nil && !fault.Is(err, fault.NotFound) {
		g.tell(err)
		return false
	}
	g.publish(Info, "group-deleted", "", "it is gone from node %s", me.Member)
	return true
}

// place moves the group where it belongs: away from a drained node, and back to
// the preferred one when that is to be automatic.
func (g *Group) place(spec *Spec, state *quorum.State) {
	g.mu.Lock()
	st, m := g.standing, g.mirror
	g.mu.Unlock()
	if m == nil || st.Role != group.Owner || len(st.Others) == 0 {
		g.inSync = time.Time{}
		return
	}
	if g.inSync.IsZero() {
		g.inSync = time.Now()
	}
	me, other := g.cfg.Member.Self().Member, st.Others[0].Member
	inv := state.Inventory.Entries
	after := spec.FailbackAfter()
	switch {
	case Drained(inv, other), time.Since(g.stayed) < tryAgain:
	case Drained(inv, me):
		g.handOver()
	case spec.Preferred == other && after >= 0 && time.Since(g.inSync) >= after && g.moving.IsZero():
		g.publish(Info, "group-failback", "", "it goes back to its preferred node %s", other)
		g.handOver()
	}
}
