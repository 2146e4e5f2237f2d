// Package ha runs this node's part of the cluster's resource groups: it joins
// the mirror (san/mirrorio) to the quorum, the pools, the logical units, the
// target and the alias addresses.
//
//	inventory: what groups are to be        quorum: who may act
//	            \                             /
//	             v                           v
//	        Groups ---- one Group each ---- mirrorio.Group <--- mutual TLS ---> the other node
//	                     |      |      \
//	                     v      v       v
//	            store.Pool   lun+target   aliasio
//
// A Group goes through these states on each of its nodes:
//
//	waiting -----------> standing by ------------> serving
//	for its pool, or     its copy is kept          it owns the group: alias
//	for its record       up to date                addresses, units, sessions
//	                          ^                        |
//	                          +------ not the owner ---+
//
// # The order of a takeover
//
// The gate of the alias opens, the state volume is read, the units are made, then
// logins that waited are let on, and the clients of the former owner are told by
// tickles. The other way: nothing more is sent to initiators, the gate is shut,
// the sessions are dropped when what they had under way has landed, the units go.
//
// # What it trusts
//
// Standing is the mirror's word on what this node may do; it may be believed too
// long (cluster/group says why that is safe). A grant of an alias is never asked
// for longer than the others' promises last.
//
// # Goroutines and locks
//
// Each Group has one goroutine that changes it (run), one that dials, and while
// it serves one that prolongs the aliases' grants. Groups.mu and Group.mu are
// leaves: nothing is called with one of them held.
package ha

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
	"steadfast/san/aliasio"
	"steadfast/san/lun"
	"steadfast/san/store"
	"steadfast/san/target"
)

// ProtoMirror is the ALPN of mirror links.
const ProtoMirror = "steadfast-mirror/1"

// Severities of events, as the node's event log has them.
const (
	Info    = "info"
	Warning = "warning"
	Error   = "error"
)

// Event is something about a group that someone should know.
type Event struct {
	Severity, Kind, Group, Volume, Text string
}

// Aliases makes alias addresses live here: an aliasio.Holder.
type Aliases interface {
	Hold(ctx context.Context, a aliasio.Alias, until aliasio.Instant) error
	Refresh(address netip.Addr, until aliasio.Instant) error
	Shut(address netip.Addr) error
	Reopen(address netip.Addr, until aliasio.Instant) error
	Mend(address netip.Addr) (bool, error)
	Release(address netip.Addr) error
	Tickle(ctx context.Context, sessions []aliasio.Session) error
}

// Config is what groups stand on. All are required but Aliases, without which
// alias addresses are taken to be there already (on loopback).
type Config struct {
	Member *quorumio.Member
	// Pool returns an open pool of this node, or nil.
	Pool    func(name string) *store.Pool
	Units   *lun.Server
	Targets *target.Server
	Aliases Aliases
	// Port is where alias portals listen.
	Port uint16
	// Offer makes a group's target known with what its initiators see, and
	// Withdraw takes it away. Both may be repeated.
	Offer    func(*Spec) error
	Withdraw func(*Spec) error
	Publish  func(Event)
	Log      *slog.Logger
	// Now reads CLOCK_BOOTTIME.
	Now    func() group.Instant
	Timing Timing
}

// Timing is how long things take. The zero value takes the defaults; tests are
// more patient.
type Timing struct {
	Lease, Renew, Silence time.Duration // see group.Config
}

func (t *Timing) complete() {
	if t.Lease == 0 {
		t.Lease, t.Renew, t.Silence = 500*time.Millisecond, 80*time.Millisecond, 350*time.Millisecond
	}
}

// Groups are the resource groups that this node has a part in.
type Groups struct {
	cfg   Config
	ctx   context.Context
	stop  context.CancelFunc
	tasks sync.WaitGroup
	watch func() // ends following the quorum

	mu     sync.Mutex
	groups map[string]*Group
	closed bool
}

// Open begins to follow the quorum's state. Close ends it.
func Open(cfg Config) *Groups {
	cfg.Timing.complete()
	gs := &Groups{cfg: cfg, groups: map[string]*Group{}}
	gs.ctx, gs.stop = context.WithCancel(context.Background())
	gs.watch = cfg.Member.Watch(gs.decided)
	return gs
}

// Close ends every group's part on this node, as cleanly as it may: what it owns
// is left to be taken over.
func (gs *Groups) Close() error {
	gs.watch()
	gs.mu.Lock()
	gs.closed = true
	list := gs.sorted()
	gs.mu.Unlock()
	gs.stop()
	var errs []error
	for _, g := range list {
		errs = append(errs, g.close())
	}
	gs.tasks.Wait()
	return errors.Join(errs...)
}

// Leave hands every group that this node owns to its other node, as far as that
// is in sync, and waits for it until ctx ends.
func (gs *Groups) Leave(ctx context.Context) {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for asked := map[*Group]bool{}; ; {
		left := false
		for _, g := range gs.List() {
			g.mu.Lock()
			st, serving := g.standing, g.current != nil
			g.mu.Unlock()
			owns := st.Role == group.Owner && len(st.Others) > 0
			if owns && !asked[g] {
				asked[g] = g.Move() == nil
			}
			left = left || owns || st.Role != group.Owner && serving
		}
		if !left {
			return
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// sorted lists the groups by name. Under mu.
func (gs *Groups) sorted() []*Group {
	var list []*Group
	for _, g := range gs.groups {
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b *Group) int { return strings.Compare(a.name, b.name) })
	return list
}

// List returns the groups that this node has a part in, by name.
func (gs *Groups) List() []*Group {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return gs.sorted()
}

// Group returns a group that this node has a part in. Fails with
// fault.NotFound.
func (gs *Groups) Group(name string) (*Group, error) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if g := gs.groups[name]; g != nil {
		return g, nil
	}
	return nil, fault.New(fault.NotFound, "this node has no part in a group %q", name)
}

// decided follows a newer state of the quorum.
func (gs *Groups) decided(s *quorum.State) {
	specs, err := Specs(s.Inventory.Entries)
	if err != nil {
		gs.cfg.Log.Error("the inventory cannot be read whole", "error", err)
	}
	me := gs.cfg.Member.Self().Member
	gs.mu.Lock()
	if gs.closed {
		gs.mu.Unlock()
		return
	}
	there := map[string]bool{}
	var told []func()
	for _, spec := range specs {
		if _, mine := spec.Node(me); !mine {
			continue
		}
		there[spec.Name] = true
		g := gs.groups[spec.Name]
		if g == nil {
			g = newGroup(gs, spec)
			gs.groups[spec.Name] = g
			gs.tasks.Go(g.run)
			gs.tasks.Go(g.dialOn)
		}
		told = append(told, func() { g.decided(spec, s) })
	}
	for name, g := range gs.groups {
		if !there[name] && err == nil {
			told = append(told, func() { g.decided(nil, s) })
		}
	}
	gs.mu.Unlock()
	for _, tell := range told {
		tell()
	}
}

// forget takes a group out that is not this node's any more. Its goroutines end.
func (gs *Groups) forget(g *Group) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if gs.groups[g.name] == g {
		delete(gs.groups, g.name)
	}
}

// Wake has every group look again at what it stands on: a pool was opened, or is
// about to be closed.
func (gs *Groups) Wake() {
	for _, g := range gs.List() {
		g.wake()
	}
}

// Died tells every group of a proof that an incarnation's life is over.
func (gs *Groups) Died(i quorum.Incarnation) {
	for _, g := range gs.List() {
		g.history.died(i)
		if m := g.mirrored(); m != nil {
			m.Died(i)
		}
	}
}

// ServeMirror answers a mirror link of another node, and returns when it ends.
func (gs *Groups) ServeMirror(conn *tls.Conn, from identity.Peer) {
	if err := gs.serveMirror(conn, from.Name); err != nil {
		gs.cfg.Log.Debug("a mirror link has ended", "from", from.Name, "error", err)
	}
}

// Connection tells of a client's connection that has begun or ended.
func (gs *Groups) Connection(e target.ConnectionEvent) {
	for _, g := range gs.List() {
		if g.Spec().Tag() == e.Group {
			g.connection(e)
		}
	}
}
