package initiator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"steadfast/block"
	"steadfast/compute/initiator/nexus"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/scsi"
)

// Open logs in to the disk's target by all its portals, and returns when one
// path serves. It waits for that until ctx ends, and fails at once only when
// every portal says that we may not (fault.Denied).
func Open(ctx context.Context, cfg Config) (*Disk, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	d := &Disk{
		cfg: cfg, lun: scsi.MakeLUN(cfg.LUN), base: time.Now(),
		opened: make(chan struct{}), refused: make(chan error, 1),
		claims: make(map[uint16]bool), freed: make(chan struct{}),
		why: make(map[string]error), closed: make(chan struct{}),
	}
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.timer = time.AfterFunc(time.Hour, d.wakeUp)
	for _, p := range cfg.Portals {
		d.tasks.Go(func() { d.keep(p) })
	}
	var err error
	select {
	case <-d.opened:
		return d, nil
	case err = <-d.refused:
	case <-ctx.Done():
		d.mu.Lock()
		text := fmt.Sprintf("open LUN %d of %s by %v", cfg.LUN, cfg.Target, cfg.Portals)
		kind := fault.Unreachable
		for _, p := range cfg.Portals {
			if why := d.why[p]; why != nil {
				text += fmt.Sprintf("; %s: %v", p, why)
				kind = fault.KindOf(why)
			}
		}
		d.mu.Unlock()
		err = fault.Wrap(kind, ctx.Err(), text)
	}
	_ = d.Close()
	return nil, err
}

// Close ends the sessions, after at most Times.Logout, and everything that
// waits (fault.Canceled).
func (d *Disk) Close() error {
	d.mu.Lock()
	if d.closing {
		d.mu.Unlock()
		<-d.closed
		return nil
	}
	d.closing = true
	d.timer.Stop()
	conns := append([]*conn(nil), d.conns...)
	for _, c := range conns {
		c.logOut()
	}
	d.nudge()
	d.mu.Unlock()
	limit := time.NewTimer(d.cfg.Times.Logout)
	defer limit.Stop()
	for _, c := range conns {
		select {
		case <-c.gone:
		case <-limit.C:
			limit.Reset(0)
		}
	}
	d.stop()
	d.tasks.Wait()
	d.mu.Lock()
	for _, k := range d.core.Abandon(nil) {
		d.finish(k.Owner.(*request), errClosed)
	}
	d.mu.Unlock()
	close(d.closed)
	return nil
}

// logOut asks for the session's end. Under Disk.mu. RFC 7143, 11.14.
func (c *conn) logOut() {
	if c.logout || c.broken {
		return
	}
	c.logout = true
	if c.n.Phase != nexus.Down {
		c.n.Phase = nexus.Draining
	}
	h := c.immediate(iscsi.OpLogoutReq, tagLogout)
	h.SetTargetTag(0) // the CID's place
	h.SetLogoutReason(iscsi.LogoutCloseSession)
}

// errTaken says that another portal of the same group has the session.
var errTaken = errors.New("another portal of the group is in use")

// keep keeps a session by one portal until the disk is closed.
func (d *Disk) keep(portal string) {
	k := keeper{d: d, portal: portal, address: portal, log: []any{"target", d.cfg.Target, "lun", d.cfg.LUN, "portal", portal}}
	pause := time.Duration(0)
	for d.ctx.Err() == nil {
		if !k.await(pause) {
			return
		}
		began := time.Now()
		k.tries++
		served, err := k.session()
		d.mu.Lock()
		d.why[portal] = err
		closing := d.closing
		d.mu.Unlock()
		switch {
		case closing || d.ctx.Err() != nil:
			return
		case errors.Is(err, errTaken):
			pause = 0 // await waits for the group
			continue
		case served && time.Since(began) > d.cfg.Times.Retry:
			// The first attempt after a loss is at once.
			pause, k.tries = 0, 0
		default:
			pause = growing(retryFirst, k.tries, d.cfg.Times.Retry)
		}
		pause = max(pause, k.wait)
		if k.tries&(k.tries-1) != 0 {
			d.complain(portal, err)
			continue // told often enough
		}
		d.cfg.Log.Info("iSCSI path is down", append([]any{"error", err, "served", served}, k.log...)...)
		d.complain(portal, err)
	}
}

// complain tells Open of a portal that will have none of us.
func (d *Disk) complain(portal string, err error) {
	if !fault.Is(err, fault.Denied) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.cfg.Portals {
		if !fault.Is(d.why[p], fault.Denied) {
			return
		}
	}
	select {
	case d.refused <- fault.Wrap(fault.Denied, err, "portal "+portal):
	default:
	}
}

// keeper is what keep knows of its portal.
type keeper struct {
	d        *Disk
	portal   string
	address  string // where to: the portal, or for once where it sent us
	log      []any
	group    uint16
	grouped  bool // group is known
	md5      bool // offer nothing but MD5 for CHAP
	tries    int  // in a row, without success
	patience time.Duration
	wait     time.Duration // what the target asked for before the next attempt
}

// await waits for the pause, and for the portal's group to have no session. It
// returns false when the disk is closed.
func (k *keeper) await(pause time.Duration) bool {
	if pause > 0 {
		t := time.NewTimer(pause)
		defer t.Stop()
		select {
		case <-k.d.ctx.Done():
			return false
		case <-t.C:
		}
	}
	for {
		k.d.mu.Lock()
		freed, taken, closing := k.d.freed, k.grouped && k.d.claims[k.group], k.d.closing
		k.d.mu.Unlock()
		if closing {
			return false
		}
		if !taken {
			return true
		}
		select {
		case <-k.d.ctx.Done():
			return false
		case <-freed:
		}
	}
}

// claim takes a portal group for this portal: two sessions of one nexus would
// end each other. RFC 7143, 6.3.5.
func (d *Disk) claim(group uint16) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.claims[group] || d.closing {
		return false
	}
	d.claims[group] = true
	return true
}

// unclaim gives a group back. Under mu.
func (d *Disk) unclaim(group uint16) {
	delete(d.claims, group)
	close(d.freed)
	d.freed = make(chan struct{})
}

// An alias that moves is gone for some tens of milliseconds, and what was sent to it
// meanwhile, or to who had it before, is not answered: so the first attempts are short,
// and soon after one another.
const (
	connectFirst = 20 * time.Millisecond
	loginFirst   = 150 * time.Millisecond
	retryFirst   = 10 * time.Millisecond
)

// growing returns the time for the n-th try in a row, from 1 on: each has twice that of
// the one before, up to most. With no n it is most.
func growing(first time.Duration, n int, most time.Duration) time.Duration {
	if n < 1 || n > 16 {
		return most
	}
	return min(most, first<<(n-1))
}

// session has one session, from the dial to its loss. served tells whether
// the login succeeded.
func (k *keeper) session() (served bool, err error) {
	d := k.d
	k.wait = 0
	limit := growing(connectFirst, k.tries, d.cfg.Times.Connect)
	if k.tries%8 == 0 {
		limit = 8 * d.cfg.Times.Connect
	}
	ctx, cancel := context.WithTimeout(d.ctx, limit)
	address := k.address
	k.address = k.portal
	sock, err := d.cfg.Dial(ctx, address)
	cancel()
	if err != nil {
		return false, fault.Wrap(fault.Unreachable, err, "connect")
	}
	stop := context.AfterFunc(d.ctx, func() { _ = sock.Close() })
	defer stop()
	login, err := k.logIn(sock)
	if err != nil {
		_ = sock.Close()
		return false, k.judge(err)
	}
	c := newConn(d, k.portal, sock, login)
	c.log = k.log
	d.enter(c, login)
	d.tasks.Go(c.receiver)
	d.tasks.Go(c.sender)
	k.serve(c)
	<-c.gone
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.wait > 0 {
		k.wait = max(0, time.Duration(c.wait-d.now()))
	}
	d.watchPause()
	return true, c.why
}

// judge gives a failed login its kind.
func (k *keeper) judge(err error) error {
	var no *iscsi.LoginRefused
	switch {
	case errors.Is(err, errTaken):
		return err
	case errors.Is(err, iscsi.ErrMutual):
		return fault.Wrap(fault.Denied, err, "log in")
	case errors.As(err, &no):
		switch no.Status {
		case iscsi.LoginAuthFailure, iscsi.LoginForbidden:
			return fault.Wrap(fault.Denied, err, "log in")
		case iscsi.LoginInitiatorError:
			k.md5 = !k.md5 // the next attempt offers the other list
		case iscsi.LoginNotFound, iscsi.LoginTargetRemoved:
			return fault.Wrap(fault.NotFound, err, "log in")
		case iscsi.LoginMovedTemporarily, iscsi.LoginMovedPermanently:
			if no.Address != "" {
				k.address = no.Address
			}
		default:
		}
	}
	return fault.Wrap(fault.Unreachable, err, "log in")
}

// random fills p for CHAP. crypto/rand does not fail.
func random(p []byte) { _, _ = rand.Read(p) }

// logIn logs in over sock, and claims the portal's group on the way.
func (k *keeper) logIn(sock net.Conn) (*iscsi.Initiate, error) {
	d := k.d
	t := &d.cfg.Times
	k.patience = min(max(k.patience, min(loginFirst, t.Login)), 8*t.Login)
	if err := sock.SetDeadline(time.Now().Add(k.patience)); err != nil {
		return nil, err
	}
	l := &iscsi.Initiate{
		InitiatorName: d.cfg.Initiator, TargetName: d.cfg.Target, ISID: d.cfg.ISID,
		Auth: d.cfg.Auth, Offer: d.cfg.offer(), DigestsOnly: true, Random: random, MD5Only: k.md5,
	}
	claimed := false
	last, err := negotiate(sock, l, func() error {
		if claimed {
			return sameGroup(k.group, l)
		}
		k.group, k.grouped = l.Group, true
		if !d.claim(k.group) {
			return errTaken
		}
		claimed = true
		return nil
	})
	if err == nil {
		err = sameGroup(k.group, l)
	}
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		k.patience *= 2
	} else {
		k.patience = 0
	}
	if err == nil {
		err = sock.SetDeadline(time.Time{})
	}
	if err != nil {
		if claimed {
			d.mu.Lock()
			d.unclaim(k.group)
			d.mu.Unlock()
		}
		return nil, err
	}
	d.mu.Lock()
	n := d.core.Nexus(k.group)
	d.welcome(n, &last)
	d.mu.Unlock()
	return l, nil
}

// sameGroup refuses a portal that tells of another group than the one that is
// claimed: its session would be counted to a nexus that has one.
func sameGroup(claimed uint16, l *iscsi.Initiate) error {
	if l.Group != claimed {
		return violation("portal group %d, which was %d before", l.Group, claimed)
	}
	return nil
}

// firstCmdSN is the number of a session's first command; the login requests,
// which are immediate, carry it and use it up no more than any.
const firstCmdSN = 1

// negotiate plays a login to its end. between is called after each response
// that does not end it, and may end it itself. It returns the last header.
func negotiate(sock net.Conn, l *iscsi.Initiate, between func() error) (last iscsi.Header, err error) {
	for !l.Done {
		h, text := l.Request()
		h.SetCmdSN(firstCmdSN)
		wire := append(h[:], text...)
		wire = append(wire, zeros[:iscsi.Padding(len(text))]...)
		if _, err := sock.Write(wire); err != nil {
			return last, err
		}
		if _, err := io.ReadFull(sock, last[:]); err != nil {
			return last, err
		}
		n := last.DataLength()
		if n > iscsi.MaxTextLength || last.AHSLength() != 0 {
			return last, violation("a login response of %d bytes", n)
		}
		data := make([]byte, n+iscsi.Padding(n))
		if _, err := io.ReadFull(sock, data); err != nil {
			return last, err
		}
		if err := l.Take(&last, data[:n]); err != nil {
			return last, err
		}
		if !l.Done && !last.Continue() {
			if err := between(); err != nil {
				return last, err
			}
		}
	}
	return last, nil
}

// welcome says that the login on n is complete: the target has ended what was
// left of the session before. Under mu.
func (d *Disk) welcome(n *nexus.Nexus, last *iscsi.Header) {
	for _, k := range d.core.LoggedIn(n, firstCmdSN, d.cfg.QueueDepth, nil) {
		d.unknown(k)
	}
	n.Window(last.ExpCmdSN(), last.MaxCmdSN())
	d.counters.Logins++
}

// unknown ends a command whose outcome nobody will tell. Under mu.
func (d *Disk) unknown(k *nexus.Command) {
	d.counters.Unknown++
	d.finish(k.Owner.(*request), fault.Wrap(fault.Unreachable, ErrUnknown, "the session was lost"))
}

// enter makes a connection its nexus's.
func (d *Disk) enter(c *conn, l *iscsi.Initiate) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.n = d.core.Nexus(l.Group)
	d.conns = append(d.conns, c)
	if d.closing {
		c.logOut()
	}
	d.pump()
	d.nudge()
}

// serve brings a path up, and watches over it until it is gone.
func (k *keeper) serve(c *conn) {
	d, t := k.d, &k.d.cfg.Times
	tick := time.NewTicker(max(time.Millisecond, min(t.Ping, t.Dead, t.Retry, t.Fence)/4))
	defer tick.Stop()
	// The probes have a goroutine of their own: a target that does not answer
	// them must be noticed all the same.
	d.tasks.Go(func() { k.probing(c) })
	for {
		select {
		case <-c.gone:
			return
		case <-tick.C:
		}
		d.mu.Lock()
		c.watch()
		fence := d.fenceDue(c)
		d.mu.Unlock()
		if fence {
			d.tasks.Go(func() { d.fence(c) })
		}
	}
}

// probing brings a path up, and looks again whenever there are news, and every
// now and then while the path does not serve.
func (k *keeper) probing(c *conn) {
	d := k.d
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-c.gone:
			return
		case <-c.news:
			// News come in flocks; one look is enough for all that came until it.
			// The pause bounds what a target can make us ask.
		case <-timer.C:
		}
		d.mu.Lock()
		draining := c.n.Phase == nexus.Draining
		d.mu.Unlock()
		if draining {
			c.drain()
			return
		}
		access, err := d.probe(c)
		d.mu.Lock()
		d.arrive(c, access, err)
		again := c.n.Phase == nexus.Probing || c.n.Phase == nexus.Up && !serves(c.n.Access)
		d.mu.Unlock()
		if err != nil {
			d.cfg.Log.Info("iSCSI path does not serve", append([]any{"error", err}, k.log...)...)
		}
		if again {
			timer.Reset(d.cfg.Times.Retry / 4)
		}
		if !pauseUnless(c.gone, 5*time.Millisecond) {
			return
		}
	}
}

// pauseUnless waits; it returns false when gone is closed first.
func pauseUnless(gone <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-gone:
		return false
	case <-t.C:
		return true
	}
}

func serves(s scsi.AccessState) bool {
	return s == scsi.ActiveOptimized || s == scsi.ActiveNonOptimized
}

// arrive takes what a probe found. Under mu.
func (d *Disk) arrive(c *conn, a access, err error) {
	if c.broken || c.n.Phase == nexus.Draining {
		return
	}
	if err != nil {
		d.why[c.portal] = err
		if c.n.Phase == nexus.Up {
			c.n.Access = scsi.Unavailable
		}
		d.watchPause()
		return
	}
	c.n.Phase, c.n.Access, c.n.Preferred = nexus.Up, a.state, a.preferred
	c.n.Barred = c.n.Barred || d.key != 0 && d.covered != nil && !d.covered[c.n.Tag] || d.fencing
	d.why[c.portal] = nil
	if serves(a.state) && d.unit.Load() != nil && d.size.Load() > 0 {
		select {
		case <-d.opened:
		default:
			close(d.opened)
		}
	}
	d.watchPause()
	d.pump()
	d.nudge()
}

// watch notices a target that is silent, or does not get on with a command.
// Under Disk.mu.
func (c *conn) watch() {
	if c.broken {
		return
	}
	c.hearken() // what comes unasked for
	t, now := &c.d.cfg.Times, c.d.now()
	quiet := time.Duration(now - nexus.Instant(c.heard.Load()))
	after := t.PingIdle
	if c.n.Outstanding() > 0 {
		after = t.Ping
	}
	switch {
	case c.pinging && quiet > after+t.Dead:
		c.fail(fault.New(fault.Unreachable, "the target has been silent for %v", quiet.Round(time.Millisecond)))
		return
	case !c.pinging && quiet > after:
		c.pinging = true
		c.immediate(iscsi.OpNopOut, tagPing)
		c.nudge()
	}
	if k := c.n.Oldest(); k != nil && time.Duration(now-k.Owner.(*request).sentAt) > t.Command {
		c.fail(fault.New(fault.Unreachable, "a command was not answered for %v", t.Command))
	}
}

// drain ends a session that the target wants to end: what is under way is
// waited for, for a moment. RFC 7143, 11.9.
func (c *conn) drain() {
	d := c.d
	for range 100 {
		d.mu.Lock()
		busy := c.n.Outstanding() > 0
		d.mu.Unlock()
		if !busy {
			break
		}
		if !pauseUnless(c.gone, 10*time.Millisecond) {
			return
		}
	}
	d.mu.Lock()
	c.logOut()
	c.nudge()
	d.mu.Unlock()
	if pauseUnless(c.gone, d.cfg.Times.Logout) {
		d.mu.Lock()
		c.fail(errBroken)
		d.mu.Unlock()
	}
}

// access is how a path stands.
type access struct {
	state     scsi.AccessState
	preferred bool
}

// ask sends one command on c's nexus, as a probe, and returns what was read.
func (d *Disk) ask(c *conn, room int, fill func(cdb []byte)) ([]byte, error) {
	r := d.get()
	r.Kind, r.Pin, r.Probe, r.short = nexus.Read, c.n, true, true
	if room > 0 {
		r.in = make([]byte, room)
	}
	fill(r.cdb[:])
	d.mu.Lock()
	if c.broken {
		d.mu.Unlock()
		return nil, errLost
	}
	d.core.Submit(&r.Command)
	d.pump()
	d.nudge()
	d.mu.Unlock()
	err := <-r.done
	var b []byte
	if err == nil {
		b = r.in[:r.got]
	}
	d.put(r)
	return b, err
}

// inquire asks for a VPD page, or for the standard data with page -1. A page
// that the target does not have is nil.
func (d *Disk) inquire(c *conn, page int) ([]byte, error) {
	b, err := d.ask(c, 255, func(cdb []byte) { scsi.PutInquiry(cdb, page, 255) })
	if page >= 0 && fault.Is(err, fault.Invalid) {
		return nil, nil
	}
	return b, err
}

// probe looks at the unit through c: is it there, the one we know, how does the
// path stand, how large is it, what can it do.
func (d *Disk) probe(c *conn) (access, error) {
	var a access
	std, err := d.inquire(c, -1)
	if err != nil {
		return a, err
	}
	if len(std) < 8 || std[0] != scsi.PeripheralDisk {
		return a, fault.New(fault.NotFound, "target %s has no disk for us at LUN %d", d.cfg.Target, d.cfg.LUN)
	}
	page, err := d.inquire(c, scsi.VPDIdentification)
	if err != nil {
		return a, err
	}
	names, _ := scsi.DecodeDesignators(page)
	if err := d.recognize(names); err != nil {
		return a, err
	}
	if std[5]>>4&3 != 0 { // TPGS
		if a, err = d.standing(c, names); err != nil {
			return a, err
		}
	}
	if !serves(a.state) {
		return a, nil
	}
	if err := d.measure(c); err != nil {
		return a, err
	}
	return a, nil
}

// recognize checks that a path leads to the unit that the others lead to:
// writing to another would destroy it.
func (d *Disk) recognize(names []scsi.Designator) error {
	best := ""
	// In the order of what names a unit best. SPC-4, 7.8.6.
	for _, kind := range []uint8{scsi.DesignatorNAA, 2, scsi.DesignatorName, scsi.DesignatorT10} {
		for _, n := range names {
			if n.Association == scsi.OfUnit && n.Kind == kind && best == "" {
				best = fmt.Sprintf("%d:%x", kind, n.Value)
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.identity == "" {
		d.identity = best
	}
	if d.identity != best {
		return fault.New(fault.Stale, "this portal's LUN %d is another unit (%s) than the disk (%s)", d.cfg.LUN, best, d.identity)
	}
	return nil
}

// standing asks for the access state of the path's port group. SPC-4, 6.37.
func (d *Disk) standing(c *conn, names []scsi.Designator) (access, error) {
	var a access
	b, err := d.ask(c, 1024, func(cdb []byte) { scsi.PutPortGroups(cdb, 1024) })
	if fault.Is(err, fault.Invalid) {
		return a, nil // it has none to tell of
	}
	if err != nil {
		return a, err
	}
	groups, _ := scsi.DecodePortGroups(b)
	for _, n := range names {
		if n.Association != scsi.OfPort || n.Kind != scsi.DesignatorPortGroup || len(n.Value) < 4 {
			continue
		}
		id := uint16(n.Value[2])<<8 | uint16(n.Value[3])
		for _, g := range groups {
			if g.ID == id {
				return access{g.State, g.Preferred}, nil
			}
		}
	}
	return a, nil
}

// measure asks for the unit's size and, once, for its limits.
func (d *Disk) measure(c *conn) error {
	b, err := d.ask(c, 32, func(cdb []byte) { scsi.PutCapacity16(cdb, 32) })
	if err != nil {
		return err
	}
	last, sector, zeroed, ok := scsi.DecodeCapacity16(b)
	if !ok || last >= 1<<54 {
		return violation("a capacity of %x", b)
	}
	if sector != block.SectorSize {
		return fault.New(fault.Invalid, "blocks of %d bytes are not what a disk here may have: 512", sector)
	}
	if d.unit.Load() == nil {
		u, err := d.limits(c, zeroed)
		if err != nil {
			return err
		}
		d.unit.Store(&u)
	}
	d.size.Store(int64(last+1) * block.SectorSize)
	return nil
}

// Bounds on what is done by one command, in bytes, where the target says less
// or nothing.
const (
	chunkMin   = block.BlockSize
	chunkMax   = 16 << 20
	sameChunk  = 16 << 20
	unmapChunk = 1 << 30
)

// limits reads VPD pages B0h and B2h.
func (d *Disk) limits(c *conn, zeroed bool) (u unit, err error) {
	page, err := d.inquire(c, scsi.VPDBlockLimits)
	if err != nil {
		return u, err
	}
	l, _ := scsi.DecodeBlockLimits(page)
	if page, err = d.inquire(c, scsi.VPDLogicalProvision); err != nil {
		return u, err
	}
	p, _ := scsi.DecodeProvisioning(page)

	u.chunk = c.params.MaxBurstLength
	if l.TransferOptimal > 0 {
		u.chunk = int(min(uint64(l.TransferOptimal)*block.SectorSize, chunkMax))
	}
	if l.TransferMax > 0 {
		u.chunk = int(min(uint64(u.chunk), uint64(l.TransferMax)*block.SectorSize))
	}
	u.chunk = max(min(u.chunk, chunkMax)/block.BlockSize*block.BlockSize, chunkMin)
	u.compareMax = int(l.CompareAndWriteMax) * block.SectorSize
	u.writeSameMax = sameChunk
	if l.WriteSameMax > 0 {
		// Bounded before it is multiplied: a product of 0 would ask for WRITE SAME
		// of 0 blocks, which is all to the end of the disk. SBC-3, 5.42.
		u.writeSameMax = int64(min(l.WriteSameMax, sameChunk/block.SectorSize) * block.SectorSize)
	}
	u.zeroed = zeroed || p.Zeroed
	u.writeSame = p.WriteSame
	u.unmapUnit = max(1, int64(l.UnmapGranularity)) * block.SectorSize
	if p.Unmap && l.UnmapDescriptors > 0 {
		u.unmapMax = min(int64(l.UnmapMax)*block.SectorSize, unmapChunk) / u.unmapUnit * u.unmapUnit
	}
	return u, nil
}
