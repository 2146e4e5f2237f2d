package node

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/group"
	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/compute/host"
	"steadfast/fault"
	"steadfast/node/control"
	"steadfast/node/guard"
	"steadfast/node/ha"
	"steadfast/san/aliasio"
	"steadfast/san/store"
	"steadfast/san/target"
)

// secretsPurpose names the key that shared secrets are sealed with.
const secretsPurpose = "steadfast initiator secrets 1"

// editTime bounds one change of the cluster's inventory, and editTries how often it
// is made again when others write there.
const (
	editTime  = 10 * time.Second
	editTries = 5
)

// retryCluster is how long a node waits before it tries again to take part.
const retryCluster = time.Second

// cluster is this node's membership.
type cluster struct {
	id     *identity.Identity
	member *quorumio.Member
	groups *ha.Groups // nil on who stores nothing
	holder *aliasio.Holder
	shares *sharedRecords
	access membersAccess // of storage nodes
	paths  *paths        // to machines' volumes, as a member
	stop   func()        // ends following the quorum
	api    *apiListener
	guard  *guard.Guard // nil: there is none
	// hosting runs machines; nil on who is no host.
	hosting *host.Host
	// guarded is the revision of the membership that the guard knows. Of decided
	// alone.
	guarded quorum.Revision
	reached string // address that was kept. Of decided alone
	// placer decides where machines run; nil on who stores nothing. placed is the
	// inventory's revision that it was woken for. Of decided alone.
	placer  *placer
	placed  quorum.Revision
	unplace func() // ends the placer
	// logging has the node listen at its logging link; nil on who is no host.
	logging *loggingLink
}

// role is what the node is in a cluster.
func (n *Node) role() quorum.Role {
	switch {
	case n.cfg.Cluster.Witness:
		return quorum.RoleWitness
	case n.cfg.Cluster.Host:
		return quorum.RoleHost
	}
	return quorum.RoleNode
}

// clusterDir is where the membership is kept.
func (n *Node) clusterDir() string { return filepath.Join(n.cfg.DataDir, "cluster") }

// inCluster returns the node's membership. Fails with fault.NotFound when it has
// none, and with what keeps it from taking part.
func (n *Node) inCluster() (*cluster, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	switch {
	case n.cluster != nil:
		return n.cluster, nil
	case n.clusterProblem != "":
		return nil, fault.New(fault.Failed, "this node cannot take part in its cluster: %s", n.clusterProblem)
	}
	return nil, fault.New(fault.NotFound, "this node is in no cluster; make one with \"steadfast cluster init\", or join one with \"steadfast cluster join\"")
}

// openCluster takes part in the cluster that the data directory has a membership
// of. What hinders it is told, and does not keep the node from its other work.
func (n *Node) openCluster() error {
	dir := n.clusterDir()
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	id, err := identity.Load(dir)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err == nil {
		err = n.beMember(id, false)
	}
	if err != nil {
		n.hinderCluster(err)
	}
	if fault.Is(err, fault.Busy) {
		n.tryCluster()
	}
	return nil
}

// tryCluster tries to take part until that is hindered by something else than another
// process: one that has the address, or the member's files, may end. stopTrying ends it.
func (n *Node) tryCluster() {
	ctx, cancel := context.WithCancel(n.ctx)
	ended := make(chan struct{})
	n.stopTrying = func() {
		cancel()
		<-ended
	}
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryCluster):
			}
			if !n.tryOnce() {
				return
			}
		}
	}()
}

// tryOnce tries to take part, and tells whether to try again: not when there is nothing left to
// be part of, or the node has become a member by another way meanwhile.
func (n *Node) tryOnce() (again bool) {
	n.membership.Lock()
	defer n.membership.Unlock()
	if _, err := n.inCluster(); err == nil {
		return false
	}
	id, err := identity.Load(n.clusterDir())
	if fault.Is(err, fault.NotFound) {
		return false
	}
	if err == nil {
		err = n.beMember(id, false)
	}
	switch {
	case err == nil:
		n.publish("cluster-member", "", "", "this node takes part in its cluster again")
	case fault.Is(err, fault.Busy):
		return true
	default:
		n.hinderCluster(err)
	}
	return false
}

func (n *Node) hinderCluster(err error) {
	n.mu.Lock()
	n.clusterProblem = err.Error()
	n.mu.Unlock()
	n.events.publish(&steadfastv1.Event{Severity: severityError, Kind: "cluster-hindered", Text: "this node cannot take part in its cluster: " + err.Error()})
}

// beMember begins a life in the cluster. fresh: the node has just become a
// member.
func (n *Node) beMember(id *identity.Identity, fresh bool) error {
	c, err := n.openMember(id)
	if err != nil {
		return err
	}
	return n.takePart(c, fresh)
}

// openMember opens the membership. Nothing else of the node knows of it yet.
func (n *Node) openMember(id *identity.Identity) (c *cluster, err error) {
	c = &cluster{id: id, api: newAPIListener()}
	c.member, err = quorumio.Open(quorumio.Options{
		Dir: n.clusterDir(), Identity: id, Listen: n.listensAt(), Log: n.log,
		Serve: map[string]func(*tls.Conn, identity.Peer){
			ha.ProtoMirror: func(conn *tls.Conn, from identity.Peer) {
				if gs := n.haGroups(); gs != nil {
					gs.ServeMirror(conn, from)
				}
			},
			ha.ProtoUnit: func(conn *tls.Conn, from identity.Peer) {
				if gs := n.haGroups(); gs != nil {
					gs.ServeUnit(conn, from)
				}
			},
			protoAPI:           func(conn *tls.Conn, from identity.Peer) { c.api.serve(conn, from) },
			host.ProtoLockstep: n.servePair,
			guard.Proto:        func(conn *tls.Conn, from identity.Peer) { n.mourn(conn, from.Name) },
		},
	})
	if err == nil {
		c.paths = newPaths(c, n.cfg.Cluster.AliasPort, n.log)
	}
	return c, err
}

// takePart has the node do what a member does.
func (n *Node) takePart(c *cluster, fresh bool) (err error) {
	n.serve(c.api, n.apiMux())
	c.shares = &sharedRecords{member: c.member}
	if n.cfg.Cluster.Stores() {
		if err := n.shareState(c, c.id, fresh); err != nil {
			return errors.Join(err, c.api.Close(), c.member.Close())
		}
	}
	if n.cfg.Cluster.Host {
		c.logging = &loggingLink{n: n, c: c, wakes: make(chan struct{}, 1)}
		if c.hosting, err = n.beginHosting(c); err != nil {
			return errors.Join(err, c.api.Close(), c.member.Close())
		}
		n.background.Go(func() { c.logging.run(n.ctx) })
	}
	if n.guard != "" {
		if c.guard, err = guard.Start(n.guard, n.log); err != nil {
			n.log.Warn("without a guard this node's death is noticed later", "error", err)
		}
	}
	if n.cfg.Cluster.Stores() {
		c.unplace = n.place(c)
	}
	n.mu.Lock()
	n.cluster, n.clusterProblem = c, ""
	n.mu.Unlock()
	if n.cfg.Cluster.Stores() {
		n.openGroups(c)
	}
	c.stop = c.member.Watch(n.decided)
	n.background.Go(func() { n.watchMember(c) })
	return nil
}

// listensAt returns where the node is to listen for members: as configured, or
// where it was last reached. Empty: where the quorum's log says.
func (n *Node) listensAt() string {
	if n.cfg.Cluster.Listen != "" {
		return string(n.cfg.Cluster.Listen)
	}
	b, err := os.ReadFile(filepath.Join(n.clusterDir(), "address"))
	if err != nil {
		return "" // there was no change yet
	}
	return string(b)
}

// keepAddress keeps where the node is reached, when that was changed, for its next
// start: the log tells it too late.
func (n *Node) keepAddress(c *cluster, state *quorum.State) {
	r := state.Roll.Members[c.member.Self().Member]
	if r == nil || r.Address == c.reached {
		return
	}
	path := filepath.Join(n.clusterDir(), "address")
	err := os.WriteFile(path+".new", []byte(r.Address), 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		n.log.Error("the node's address cannot be kept for its next start", "error", err)
		return
	}
	c.reached = r.Address
}

// shareState joins the control state to the cluster's inventory.
func (n *Node) shareState(c *cluster, id *identity.Identity, fresh bool) error {
	key, err := id.DerivedKey(secretsPurpose)
	if err != nil {
		return err
	}
	if fresh {
		return n.state.Give(c.shares, key)
	}
	return n.state.Share(c.shares, key)
}

// openGroups begins this node's part in the resource groups.
func (n *Node) openGroups(c *cluster) {
	cfg := ha.Config{
		Member: c.member, Units: n.units.Server, Targets: n.targets, Port: n.cfg.Cluster.AliasPort, Log: n.log, Now: bootTime,
		Pool:  n.poolNamed,
		Offer: n.offerGroup, Withdraw: n.withdrawGroup,
		Publish: func(e ha.Event) {
			n.events.publish(&steadfastv1.Event{Severity: e.Severity, Kind: e.Kind, Group: e.Group, Volume: e.Volume, Text: e.Text})
		},
	}
	var holder *aliasio.Holder
	if !n.cfg.Cluster.HandedAliases {
		var err error
		if holder, err = holdAliases(); err != nil {
			n.events.publish(&steadfastv1.Event{Severity: severityError, Kind: "alias-hindered", Text: "alias addresses cannot be held on this node: " + err.Error()})
			cfg.Aliases = noAliases{err}
		} else {
			cfg.Aliases = holder
		}
	}
	n.background.Go(func() { n.tellPortals(c) })
	groups := ha.Open(cfg)
	n.mu.Lock()
	c.groups, c.holder = groups, holder
	n.mu.Unlock()
}

// clearingMax is how long the guard of the life before may take to clear away what that left.
const clearingMax = 2 * time.Second

// holdAliases opens the holder of alias addresses.
func holdAliases() (*aliasio.Holder, error) {
	for end := time.Now().Add(clearingMax); ; time.Sleep(clearingMax / 100) {
		h, err := aliasio.Open(aliasio.Options{Grant: ha.Grant})
		if !fault.Is(err, fault.Busy) || time.Now().After(end) {
			return h, err
		}
	}
}

// tellPortals enters the tags of the node's portals in the cluster's inventory, as
// soon as the quorum answers.
func (n *Node) tellPortals(c *cluster) {
	for n.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(n.ctx, editTime)
		err := ha.TellPortals(ctx, c.member, c.member.Self().Member, n.ownTags())
		cancel()
		if err == nil || fault.Is(err, fault.Canceled) {
			return
		}
		select {
		case <-n.ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// haGroups returns the resource groups of this node, or nil.
func (n *Node) haGroups() *ha.Groups {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.cluster == nil {
		return nil
	}
	return n.cluster.groups
}

// wakeGroups has groups look again at the pools.
func (n *Node) wakeGroups() {
	if gs := n.haGroups(); gs != nil {
		gs.Wake()
	}
}

// poolNamed returns an open pool, or nil.
func (n *Node) poolNamed(name string) *store.Pool {
	for _, p := range n.allPools() {
		if p.name == name {
			return p.opened()
		}
	}
	return nil
}

// connectionChanged tells the groups of a connection to one of their aliases.
func (n *Node) connectionChanged(e target.ConnectionEvent) {
	if gs := n.haGroups(); gs != nil {
		gs.Connection(e)
	}
}

// connClosing has the end of a connection be heard: on an alias the gate would
// keep it back.
func (n *Node) connClosing(conn net.Conn) {
	n.mu.RLock()
	var holder *aliasio.Holder
	if n.cluster != nil {
		holder = n.cluster.holder
	}
	n.mu.RUnlock()
	tcp, ok := conn.(*net.TCPConn)
	if holder == nil || !ok {
		return
	}
	if err := holder.Clean(tcp); err != nil {
		n.log.Debug("a connection's end may not be heard", "error", err)
	}
}

// decided follows what the quorum decides.
func (n *Node) decided(state *quorum.State) {
	n.mu.RLock()
	c := n.cluster
	n.mu.RUnlock()
	if c != nil {
		n.brief(c, state)
		n.keepAddress(c, state)
		if c.placer != nil && c.placed != state.Inventory.Revision {
			c.placed = state.Inventory.Revision
			c.placer.wake()
		}
		if c.logging != nil {
			c.logging.wake()
		}
	}
	unlock, err := n.change() // which takes in what is new
	if err == nil {
		unlock()
	}
}

// brief tells the guard whom to tell of this node's death.
func (n *Node) brief(c *cluster, state *quorum.State) {
	if c.guard == nil || c.guarded == state.Roll.Revision {
		return
	}
	me := c.member.Self()
	w := guard.Ward{Dir: n.clusterDir(), Boot: me.Boot, Member: me.Member, Aliases: n.cfg.Cluster.Stores() && !n.cfg.Cluster.HandedAliases}
	for _, r := range state.Roll.Sorted() {
		// Hosts are told of hosts: their machines may be on both.
		if r.Name != me.Member && (r.Role == quorum.RoleNode || r.Role == quorum.RoleHost && n.cfg.Cluster.Host) {
			w.Others = append(w.Others, *r)
		}
	}
	if err := c.guard.Tell(w); err != nil {
		n.log.Warn("without its guard this node's death is noticed later", "error", err)
		return
	}
	c.guarded = state.Roll.Revision
}

// mourn takes in that a life of another member is over, by its guard's word.
func (n *Node) mourn(conn *tls.Conn, from quorum.Member) {
	o, err := guard.Receive(conn)
	if err != nil {
		n.log.Warn("a guard was not understood", "from", from, "error", err)
		return
	}
	dead := quorum.Incarnation{Member: from, Boot: o.Boot}
	if gs := n.haGroups(); gs != nil {
		gs.Died(dead)
	}
	n.events.publish(&steadfastv1.Event{Severity: severityWarning, Kind: "member-died", Text: "the process of member " + string(from) + " has ended"})
	n.hostDied(dead)
	if h, err := n.hosted(); err == nil {
		h.MemberDied(string(from))
	}
}

// watchMember tells when the member ends by itself.
func (n *Node) watchMember(c *cluster) {
	select {
	case <-n.ctx.Done():
	case err := <-c.member.Failed():
		if err == nil {
			return
		}
		n.hinderCluster(err)
		// It can prove nothing any more: what the groups do ends with the others'
		// promises, and the process makes room for a life that can.
		n.log.Error("the member has ended; the node gives up its groups", "error", err)
		if gs := n.haGroups(); gs != nil {
			if err := gs.Close(); err != nil {
				n.log.Error("a group cannot be closed", "error", err)
			}
		}
	}
}

// closeCluster ends the membership's present life.
func (n *Node) closeCluster() error {
	n.mu.Lock()
	c := n.cluster
	n.mu.Unlock()
	if c == nil {
		return nil
	}
	if c.stop != nil {
		c.stop()
	}
	if c.unplace != nil {
		c.unplace()
	}
	var err error
	if c.hosting != nil {
		err = n.endHosting(c.hosting)
	}
	if c.groups != nil {
		err = errors.Join(err, c.groups.Close())
	}
	if c.holder != nil {
		err = errors.Join(err, c.holder.Close())
	}
	err = errors.Join(err, c.api.Close(), c.member.Close())
	if c.guard != nil && !n.isClosing() {
		err = errors.Join(err, c.guard.Dismiss()) // the process goes on without the cluster
	}
	n.mu.Lock()
	n.cluster = nil
	n.mu.Unlock()
	return err
}

// isClosing tells whether the node is stopping.
func (n *Node) isClosing() bool {
	n.admin.Lock()
	defer n.admin.Unlock()
	return n.closing
}

// bootTime reads CLOCK_BOOTTIME, which goes on while the machine sleeps.
func bootTime() group.Instant {
	var t unix.Timespec
	// It fails only for a clock that there is not.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return group.Instant(t.Nano())
}

// sharedRecords is the cluster's inventory as the control state wants it.
type sharedRecords struct {
	member *quorumio.Member
	seen   atomic.Uint64 // revision that was read last
	// torn: the control state could not take in what was read last. Under
	// Node.admin.
	torn bool

	mu   sync.Mutex
	base map[string][]byte // the entries of that revision
}

// held returns the entries that were read last.
func (i *sharedRecords) held() map[string][]byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.base
}

// moved tells whether there is a newer revision than was read last.
func (i *sharedRecords) moved() bool {
	return uint64(i.member.State().Inventory.Revision) != i.seen.Load()
}

// Entries implements control.Inventory.
func (i *sharedRecords) Entries() map[string][]byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	inv := i.member.State().Inventory
	i.base = inv.Entries
	i.seen.Store(uint64(inv.Revision))
	return inv.Entries
}

// Edit implements control.Inventory.
func (i *sharedRecords) Edit(edits map[string][]byte) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), editTime)
	defer cancel()
	var list []quorum.Edit
	for key, value := range edits {
		list = append(list, quorum.Edit{Key: key, Value: value})
	}
	revision := quorum.Revision(i.seen.Load())
	err := i.member.Edit(ctx, revision, list...)
	for tries := 0; tries < editTries && fault.Is(err, fault.Stale); tries++ {
		// What the caller looked at may be as it was: groups and nodes write there, too.
		now := i.member.State().Inventory
		if !control.SameShared(i.base, now.Entries) {
			break
		}
		i.base, revision = now.Entries, now.Revision
		err = i.member.Edit(ctx, revision, list...)
	}
	if fault.Is(err, fault.Stale) {
		return fault.Wrap(fault.Busy, err, "the cluster was changed at the same moment; look again, and try again")
	}
	if fault.Is(err, fault.Unreachable) {
		return fault.Wrap(fault.Unreachable, err, "the cluster cannot decide: two of its three members must run and reach one another; see \"steadfast cluster show\"")
	}
	return err
}

// noAliases refuses to hold aliases, with the reason.
type noAliases struct{ err error }

// Hold implements ha.Aliases.
func (a noAliases) Hold(context.Context, aliasio.Alias, aliasio.Instant) error { return a.err }

// Refresh implements ha.Aliases.
func (a noAliases) Refresh(netip.Addr, aliasio.Instant) error { return a.err }

// Shut implements ha.Aliases.
func (a noAliases) Shut(netip.Addr) error { return nil }

// Reopen implements ha.Aliases.
func (a noAliases) Reopen(netip.Addr, aliasio.Instant) error { return a.err }

// Mend implements ha.Aliases.
func (a noAliases) Mend(netip.Addr) (bool, error) { return false, a.err }

// Release implements ha.Aliases.
func (a noAliases) Release(netip.Addr) error { return nil }

// Tickle implements ha.Aliases.
func (a noAliases) Tickle(context.Context, []aliasio.Session) error { return a.err }
