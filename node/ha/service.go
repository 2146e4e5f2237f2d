package ha

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/san/aliasio"
	"steadfast/san/statevol"
	"steadfast/san/target"
)

// Times of the alias addresses.
const (
	holdTime    = 2 * time.Second
	refreshTime = 60 * time.Millisecond // a promise may be nearly over
	mendEvery   = time.Second
	tickleTime  = 3 * time.Second
	busyPause   = 10 * time.Millisecond
)

// givenTime bounds how long an operation that this node could not answer waits for
// its unit to be on standby. A host gives a command 30 s.
const givenTime = 2 * time.Second

// Grant is how long an alias stays open without being refreshed. It is shorter than
// Silence: an owner that is alone asks nobody, and a member that it has just admitted
// may succeed it after that much silence.
const Grant = 300 * time.Millisecond

// service is what a group has while this node owns and serves it.
type service struct {
	g     *Group
	epoch quorum.Epoch
	began time.Time
	tag   uint16
	spec  *Spec // under mu; run changes it
	unfit bool  // something of spec is not brought about yet. Of run alone
	ctx   context.Context
	stop  context.CancelFunc
	tasks sync.WaitGroup

	state  *statevol.State
	former []statevol.Session // clients of who served the group before
	tidied atomic.Bool        // what comparisons have left is deleted, or is being

	given chan struct{} // closed when the units of a group with several paths are on standby

	mu    sync.Mutex
	units map[uint32]*unit // by number
	held  map[netip.Addr]bool

	// holds is held while an alias is made live, prolonged, shut or released, and
	// over the question for the right to it. The mirror ends that right before it
	// proposes to give the group up: so nothing opens an alias after shut.
	holds sync.Mutex
}

// follow does what a change of the standing asks for.
func (g *Group) follow() error {
	g.mu.Lock()
	st, spec := g.standing, g.spec
	g.mu.Unlock()
	if g.serving != nil && (st.Role != group.Owner || st.Epoch != g.serving.epoch) {
		g.leave()
	}
	if st.Role != group.Owner {
		return nil
	}
	if g.serving == nil {
		if err := g.serve(st, spec); err != nil {
			return err
		}
	}
	g.serving.refit(spec)
	return nil
}

// serve begins to serve the group. What fails is tried again when the group is
// looked at next; logins wait meanwhile.
func (g *Group) serve(st group.Standing, spec *Spec) error {
	began := time.Now()
	s := &service{g: g, epoch: st.Epoch, began: began, tag: spec.Tag(), spec: spec, given: make(chan struct{}), units: map[uint32]*unit{}, held: map[netip.Addr]bool{}}
	s.ctx, s.stop = context.WithCancel(g.ctx)
	g.mu.Lock()
	g.opens = s
	g.mu.Unlock()
	holding := make(chan error, 1)
	go func() { holding <- s.hold() }()
	err := s.open()
	if err == nil {
		err = s.addUnits()
	}
	err = errors.Join(err, <-holding)
	if err != nil {
		g.leaveAs(s)
		return err
	}
	g.setServing(s)
	for _, c := range g.cfg.Targets.Connections(s.tag) { // they came before the table was open
		s.enter(statevol.Session{Alias: c.Local, Client: c.Remote})
	}
	g.cfg.Targets.AdmitLogins(spec.Tag())
	s.tasks.Go(s.prolong)
	s.tasks.Go(s.tickle)
	g.tellServing(s, began)
	return nil
}

// leave ends serving the group.
func (g *Group) leave() {
	if g.serving == nil {
		return
	}
	s := g.serving
	g.setServing(nil)
	g.leaveAs(s)
	g.tellLeft(s, time.Since(s.began))
}

func (g *Group) setServing(s *service) {
	g.serving = s
	g.mu.Lock()
	g.current = s
	g.mu.Unlock()
}

// leaveAs ends a service, whether or not it got far. Nobody hears an error of
// what was under way: the connections are silent before it fails.
func (g *Group) leaveAs(s *service) {
	g.cfg.Targets.Mute(s.tag)
	s.stop()
	for _, a := range s.spec.Aliases {
		s.release(a.Address.Addr())
	}
	if s.spec.Multipath { // now, for tasks wait for it that DropPortalGroup waits for
		g.giveUnits(s)
	}
	close(s.given)
	g.cfg.Targets.DropPortalGroup(s.tag)
	g.giveUnits(s)
	s.tasks.Wait()
	g.mu.Lock()
	g.opens = nil
	g.mu.Unlock()
	if s.state != nil {
		s.state.Close()
	}
}

// giveUnits ends serving the service's units.
func (g *Group) giveUnits(s *service) {
	s.mu.Lock()
	units := s.units
	s.units = map[uint32]*unit{}
	s.mu.Unlock()
	for _, u := range units {
		if err := g.giveUnit(u, s.spec); err != nil && !fault.Is(err, fault.NotFound) {
			g.cfg.Log.Error("a unit cannot be taken away", "group", g.name, "volume", u.Name(), "error", err)
		}
	}
}

// awaitGiven returns when initiators that come by this node's own portals are told
// to go to the other node's, or soon: at once, where a group has no such paths.
func (s *service) awaitGiven() {
	s.mu.Lock()
	several := s.spec.Multipath
	s.mu.Unlock()
	if !several {
		return
	}
	t := time.NewTimer(givenTime)
	defer t.Stop()
	select {
	case <-s.given:
	case <-s.g.ctx.Done(): // the units go
	case <-t.C:
	}
}

// open reads the group's state volume.
func (s *service) open() error {
	m := s.g.mirrored()
	if m == nil {
		return fault.New(fault.Fenced, "the group is closing")
	}
	dev := m.Volume(0, func() int64 { return statevol.Size }, func() bool { return true })
	state, err := statevol.Open(dev)
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, "the group's state volume")
	}
	s.state = state
	s.former = state.Sessions().List()
	return nil
}

// addUnits makes the group's volumes logical units.
func (s *service) addUnits() error {
	for _, v := range s.spec.Volumes {
		if err := s.addUnit(v); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) addUnit(v Volume) error {
	u, err := newUnit(s, v)
	if err != nil {
		return err
	}
	if err := s.g.takeUnit(u, s.spec); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "volume "+v.Name)
	}
	s.mu.Lock()
	s.units[v.Number] = u
	s.mu.Unlock()
	return nil
}

// refit follows a change of the spec: volumes that came, and what changed of
// the others.
func (s *service) refit(spec *Spec) {
	if spec == s.spec && !s.unfit {
		return
	}
	s.unfit = false
	s.mu.Lock()
	s.spec = spec
	s.mu.Unlock()
	for _, v := range spec.Volumes {
		s.mu.Lock()
		u := s.units[v.Number]
		s.mu.Unlock()
		if u != nil {
			u.follow(v)
			continue
		}
		if err := s.addUnit(v); err != nil {
			s.unfit = true // it is tried again when the group is looked at next
			s.g.tell(err)
		}
	}
	want := map[netip.Addr]bool{}
	for _, a := range spec.Aliases {
		want[a.Address.Addr()] = true
		if err := s.holdOne(a); err != nil {
			s.g.tell(err)
		}
	}
	for _, addr := range s.holding() {
		if !want[addr] {
			s.release(addr)
		}
	}
}

// withdrawUnit takes away the unit of a volume that is to be deleted.
func (g *Group) withdrawUnit(number uint32) {
	if g.serving == nil {
		return
	}
	s := g.serving
	s.mu.Lock()
	u := s.units[number]
	delete(s.units, number)
	s.mu.Unlock()
	if u == nil {
		return
	}
	if err := g.cfg.Units.RemoveVolume(u.id); err != nil && !fault.Is(err, fault.NotFound) {
		g.cfg.Log.Error("a unit cannot be taken away", "group", g.name, "volume", u.Name(), "error", err)
	}
	// Its number is never given again, so what is left of it is nobody's.
}

// changed tells a unit that its volume on this node is another size, or the like.
func (g *Group) changed(v Volume) {
	if g.serving != nil {
		g.serving.mu.Lock()
		u := g.serving.units[v.Number]
		g.serving.mu.Unlock()
		if u != nil {
			u.follow(v)
		}
	}
}

// right returns until when the alias may be answered here; zero: for as long as
// it is asked for. Fails with fault.Fenced when the group is not this node's now.
func (s *service) right() (aliasio.Instant, error) {
	m := s.g.mirrored()
	if m == nil {
		return 0, fault.New(fault.Fenced, "the group is closing")
	}
	until, unlimited, ok := m.ServesUntil()
	s.g.mu.Lock()
	st := s.g.standing
	s.g.mu.Unlock()
	switch {
	case !ok || st.Epoch != s.epoch: // of a later epoch of ours is another service
		return 0, fault.New(fault.Fenced, "the group is not this node's")
	case unlimited:
		return 0, nil
	}
	return aliasio.Instant(until), nil
}

// firstRight is right for a node that has just become the owner: the first
// promise of the other node is on its way.
func (s *service) firstRight(ctx context.Context) (aliasio.Instant, error) {
	t := time.NewTicker(time.Millisecond)
	defer t.Stop()
	for {
		until, err := s.right()
		if err == nil {
			return until, nil
		}
		s.g.mu.Lock()
		st := s.g.standing
		s.g.mu.Unlock()
		if st.Role != group.Owner || st.Epoch != s.epoch {
			return 0, err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return 0, err
		}
	}
}

// hold makes the group's aliases live here. One that cannot be does not keep
// clients from the others; it is tried again each second. Fails when none can.
func (s *service) hold() error {
	var errs []error
	for _, a := range s.spec.Aliases {
		if err := s.holdOne(a); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 && len(errs) < len(s.spec.Aliases) {
		s.g.publish(Error, "alias-lost", "", "%v", errors.Join(errs...))
		return nil
	}
	return errors.Join(errs...)
}

// holdOne makes an alias live here, unless it is.
func (s *service) holdOne(a Alias) error {
	s.holds.Lock() // the holder takes one at a time
	defer s.holds.Unlock()
	addr := a.Address.Addr()
	s.mu.Lock()
	have := s.held[addr] || !slices.Contains(s.spec.Aliases, a)
	s.mu.Unlock()
	if have || s.g.cfg.Aliases == nil {
		return nil
	}
	name, err := interfaceOf(a)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.ctx, holdTime)
	defer cancel()
	// Who had the group before may answer for it until its grant ends: a node that
	// has just handed it over learns that this one has it no sooner than this one.
	err = whileBusy(ctx, s.g.cfg.Timing.Lease, func() error {
		until, err := s.firstRight(ctx)
		if err != nil {
			return err
		}
		return s.g.cfg.Aliases.Hold(ctx, aliasio.Alias{Interface: name, Address: a.Address}, until)
	})
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, "alias "+a.Address.String())
	}
	s.mu.Lock()
	s.held[addr] = true
	s.mu.Unlock()
	return nil
}

// whileBusy tries again for a while what fails with fault.Busy.
func whileBusy(ctx context.Context, patience time.Duration, try func() error) error {
	for began := time.Now(); ; {
		err := try()
		if !fault.Is(err, fault.Busy) || time.Since(began) >= patience {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(busyPause):
		}
	}
}

// release ends an alias here.
func (s *service) release(addr netip.Addr) {
	s.holds.Lock()
	defer s.holds.Unlock()
	s.mu.Lock()
	have := s.held[addr]
	delete(s.held, addr)
	s.mu.Unlock()
	if !have {
		return
	}
	if err := s.g.cfg.Aliases.Release(addr); err != nil && !fault.Is(err, fault.NotFound) {
		s.g.cfg.Log.Error("an alias cannot be released; its grant ends by itself", "group", s.g.name, "alias", addr, "error", err)
	}
}

func (s *service) holding() (list []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := range s.held {
		list = append(list, a)
	}
	return list
}

// prolong keeps the aliases' grants alive for as long as the group is served.
func (s *service) prolong() {
	t := time.NewTicker(refreshTime)
	defer t.Stop()
	mended := time.Now()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		for _, addr := range s.holding() {
			s.prolongOne(addr)
		}
		if time.Since(mended) >= mendEvery {
			mended = time.Now()
			s.mend()
		}
	}
}

// prolongOne prolongs a grant; one that has ended is asked for again.
func (s *service) prolongOne(addr netip.Addr) {
	err := s.refresh(addr)
	if err == nil || s.ctx.Err() != nil {
		return
	}
	s.g.cfg.Log.Warn("a grant was not prolonged", "group", s.g.name, "alias", addr, "error", err)
	s.mu.Lock()
	delete(s.held, addr)
	spec := s.spec
	s.mu.Unlock()
	for _, a := range spec.Aliases {
		if a.Address.Addr() != addr {
			continue
		}
		err := s.holdOne(a)
		switch {
		case err == nil: // holding it anew ended its connections, and told nobody
			s.tasks.Go(func() { s.tellGone(s.state.Sessions().List()) })
		case !fault.Is(err, fault.Fenced) && s.ctx.Err() == nil:
			s.g.publish(Error, "alias-lost", "", "alias %s cannot be held: %v", addr, err)
		}
	}
}

// refresh prolongs the grant of an alias that is held; one that has ended because
// this process was late is opened again. It is no error when there is no right to
// it now: the mirror tells when that is for good.
func (s *service) refresh(addr netip.Addr) error {
	s.holds.Lock()
	defer s.holds.Unlock()
	until, err := s.right()
	if err != nil {
		return nil
	}
	if err = s.g.cfg.Aliases.Refresh(addr, until); err == nil {
		return nil
	}
	// The right is there still, so nobody else was here.
	until, rerr := s.right()
	if rerr != nil {
		return nil
	}
	if rerr := s.g.cfg.Aliases.Reopen(addr, until); rerr != nil {
		return errors.Join(err, rerr)
	}
	s.g.publish(Warning, "alias-late", "", "alias %s was shut for a moment: this node was too busy to prolong its grant in time", addr)
	return nil
}

// shut ends the grants at once, before this node asks the quorum to make another
// the owner: the other may act as soon as that is decided, and this one learns it
// later.
func (s *service) shut() {
	s.g.cfg.Targets.Mute(s.tag)
	s.holds.Lock()
	defer s.holds.Unlock()
	for _, addr := range s.holding() {
		if err := s.g.cfg.Aliases.Shut(addr); err != nil {
			s.g.cfg.Log.Error("an alias cannot be shut; its grant ends by itself", "group", s.g.name, "alias", addr, "error", err)
			time.Sleep(Grant) // and is waited for
		}
	}
}

// mend adds addresses again that somebody took away, and those that could not be
// held before.
func (s *service) mend() {
	s.mu.Lock()
	spec := s.spec
	s.mu.Unlock()
	for _, a := range spec.Aliases {
		if slices.Contains(s.holding(), a.Address.Addr()) || s.g.cfg.Aliases == nil {
			continue
		}
		switch err := s.holdOne(a); {
		case err == nil: // whoever was connected before was told nothing
			s.tasks.Go(func() { s.tellGone(s.state.Sessions().List()) })
		case s.ctx.Err() == nil:
			s.g.cfg.Log.Warn("an alias cannot be held yet", "group", s.g.name, "alias", a.Address, "error", err)
		}
	}
	for _, addr := range s.holding() {
		if mended, err := s.g.cfg.Aliases.Mend(addr); err != nil {
			s.g.cfg.Log.Warn("an alias cannot be mended", "group", s.g.name, "alias", addr, "error", err)
		} else if mended {
			s.g.publish(Warning, "alias-mended", "", "alias %s had been taken from its interface, and was put back", addr)
		}
	}
}

// tickle tells the clients of the former owner that it is gone.
func (s *service) tickle() { s.tellGone(s.former) }

// tellGone makes clients of the table come back, but for those that are here, and
// takes them out of it.
func (s *service) tellGone(table []statevol.Session) {
	here := s.g.cfg.Targets.Connections(s.tag)
	var list []aliasio.Session
	for _, e := range table {
		if !slices.Contains(here, target.Endpoints{Local: e.Alias, Remote: e.Client}) {
			list = append(list, aliasio.Session(e))
		}
	}
	s.tell(list)
	if s.ctx.Err() != nil {
		return // the next to serve the group tells them
	}
	here = s.g.cfg.Targets.Connections(s.tag)
	for _, e := range table {
		if !slices.Contains(here, target.Endpoints{Local: e.Alias, Remote: e.Client}) {
			s.state.Sessions().Remove(e)
		}
	}
}

// tell makes clients give up connections that are no more.
func (s *service) tell(list []aliasio.Session) {
	if s.g.cfg.Aliases == nil || len(list) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, tickleTime)
	defer cancel()
	if err := s.g.cfg.Aliases.Tickle(ctx, list); err != nil && s.ctx.Err() == nil {
		s.g.cfg.Log.Warn("not every client could be told to come back", "group", s.g.name, "error", err)
	}
}

// connection keeps the table of clients.
func (g *Group) connection(e target.ConnectionEvent) {
	g.mu.Lock()
	s := g.current
	g.mu.Unlock()
	if s == nil {
		return
	}
	session := statevol.Session{Alias: e.Local, Client: e.Remote}
	if !e.Begun {
		if e.Heard { // who was not told is, by the next to serve the group
			s.state.Sessions().Remove(session)
		}
		return
	}
	s.enter(session)
}

// enter puts a client's connection into the table.
func (s *service) enter(e statevol.Session) {
	if err := s.state.Sessions().Add(e); err != nil {
		s.g.cfg.Log.Warn("a client would not be told of a takeover", "group", s.g.name, "client", e.Client, "error", err)
	}
}

// interfaceOf returns the interface that an alias belongs on: the one named, or
// the one that has an address of the same network.
func interfaceOf(a Alias) (string, error) {
	if a.Interface != "" {
		return a.Interface, nil
	}
	list, err := net.Interfaces()
	if err != nil {
		return "", fault.Wrap(fault.Failed, err, "the interfaces of this node")
	}
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil {
			continue // it has just gone
		}
		for _, addr := range addrs {
			n, ok := addr.(*net.IPNet)
			if !ok {
				continue
			}
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() != a.Address.Addr() && a.Address.Masked().Contains(ip.Unmap()) {
				return i.Name, nil
			}
		}
	}
	return "", fault.New(fault.Invalid, "no interface of this node has an address in %s; give the alias one with %s%%INTERFACE", a.Address.Masked(), a.Address)
}

// publishTarget makes the group's target and portals known: on both nodes, so
// that whoever gets the group has them; logins wait where it is not served.
func (g *Group) publishTarget(spec *Spec) error {
	if err := g.cfg.Offer(spec); err != nil {
		return err
	}
	var want []string
	for _, a := range spec.Aliases {
		if g.cfg.Aliases == nil {
			break // connections are handed over
		}
		want = append(want, netip.AddrPortFrom(a.Address.Addr(), g.cfg.Port).String())
	}
	for _, at := range want {
		if slices.Contains(g.listens, at) {
			continue
		}
		if _, err := g.cfg.Targets.Listen(target.Portal{Address: at, Group: spec.Tag(), Alias: true}); err != nil {
			return err
		}
		g.listens = append(g.listens, at)
	}
	kept := g.listens[:0]
	var err error
	for _, at := range g.listens {
		if slices.Contains(want, at) {
			kept = append(kept, at)
			continue
		}
		err = errors.Join(err, g.cfg.Targets.Unlisten(at))
	}
	g.listens = kept
	return err
}

// unpublishTarget closes the portals. The target goes with the group's record.
func (g *Group) unpublishTarget() {
	for _, at := range g.listens {
		if err := g.cfg.Targets.Unlisten(at); err != nil {
			g.cfg.Log.Error("an alias portal cannot be closed", "group", g.name, "portal", at, "error", err)
		}
	}
	g.listens = nil
}
