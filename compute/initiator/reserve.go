package initiator

import (
	"context"
	"errors"
	"slices"
	"time"

	"steadfast/compute/initiator/nexus"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/scsi"
)

// WriteExclusiveRegistrants is the type of reservation that lets all who are
// registered write, and others read. SPC-4, 6.15.3.4 (Write Exclusive –
// Registrants Only).
const WriteExclusiveRegistrants uint8 = 5

// await sends a command whose answer is waited for until ctx ends. What was sent by
// then cannot be called back; what was not never is, nor is anything sent again.
func (d *Disk) await(ctx context.Context, r *request) error {
	r.admin = true
	d.begin([]*request{r}, false)
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		d.mu.Lock()
		d.core.Cancel(&r.Command)
		d.watchPause()
		d.mu.Unlock()
		return fault.Wrap(fault.Canceled, ctx.Err(), "wait for the target")
	}
}

// best waits for a path that serves.
func (d *Disk) best(ctx context.Context) (*nexus.Nexus, error) {
	for {
		d.mu.Lock()
		n, closing := d.core.Best(), d.closing
		d.mu.Unlock()
		switch {
		case closing:
			return nil, errClosed
		case n != nil:
			return n, nil
		}
		if !pauseUnless(ctx.Done(), 5*time.Millisecond) {
			return nil, fault.Wrap(fault.Canceled, ctx.Err(), "wait for a path")
		}
	}
}

// persistOut sends a PERSISTENT RESERVE OUT on a nexus. kind says whether a
// lost answer is followed by another attempt there.
func (d *Disk) persistOut(ctx context.Context, n *nexus.Nexus, kind nexus.Kind, p scsi.PersistOut) error {
	r := &request{done: make(chan error, 1)}
	r.Owner, r.Kind, r.Pin, r.short = r, kind, n, true
	r.out = scsi.PutPersistOut(r.cdb[:], nil, p)
	return d.await(ctx, r)
}

// persistIn asks for reservations, on any path.
func (d *Disk) persistIn(ctx context.Context, action uint8) ([]byte, error) {
	r := &request{done: make(chan error, 1), short: true, in: make([]byte, 8192)}
	r.Owner, r.Kind = r, nexus.Read
	scsi.PutPersistIn(r.cdb[:], action, len(r.in))
	err := d.await(ctx, r)
	if err != nil {
		return nil, err
	}
	return r.in[:r.got], nil
}

// Register registers key for this initiator, replacing what it had registered;
// 0 takes it away. With a target that can (ALL_TG_PT) it covers all ways to
// the disk, and else those that there are now: others are not used while the
// registration lasts, as nothing can tell a way that is new from one whose
// registration somebody preempted. SPC-4, 5.13.7.
func (d *Disk) Register(ctx context.Context, key uint64) error {
	n, err := d.best(ctx)
	if err != nil {
		return err
	}
	p := scsi.PersistOut{Action: scsi.ActionPersistRegisterAny, ActionKey: key, AllPorts: true}
	err = d.persistOut(ctx, n, nexus.Write, p)
	if err == nil {
		d.registered(key, nil)
		return nil
	}
	if !fault.Is(err, fault.Invalid) {
		return fault.Wrap(fault.KindOf(err), err, "register")
	}
	p.AllPorts = false
	covered := make(map[uint16]bool)
	d.mu.Lock()
	var live []*nexus.Nexus
	for _, c := range d.conns {
		if c.n.Phase == nexus.Up {
			live = append(live, c.n)
		}
	}
	d.mu.Unlock()
	for _, n := range live {
		if err := d.persistOut(ctx, n, nexus.Write, p); err != nil {
			return fault.Wrap(fault.KindOf(err), err, "register")
		}
		covered[n.Tag] = true
	}
	d.registered(key, covered)
	return nil
}

// registered notes what a registration covers; nil is everything.
func (d *Disk) registered(key uint64, covered map[uint16]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.key, d.covered = key, covered
	d.preempted, d.untold = false, false
	if key == 0 {
		d.kind = 0
	}
	d.bar(nil)
	d.pump()
	d.nudge()
}

// Reserve reserves the unit for the registered key. Asked again by who holds
// it, it changes nothing. Fails with fault.Fenced when another has it.
// SPC-4, 5.13.9.
func (d *Disk) Reserve(ctx context.Context, kind uint8) error {
	n, key, err := d.holder(ctx)
	if err == nil {
		err = d.persistOut(ctx, n, nexus.Write, scsi.PersistOut{Action: scsi.ActionPersistReserve, Type: kind, Key: key})
	}
	if fault.Is(err, fault.Fenced) && key != 0 {
		// The nexus that holds it is one, and may be another of ours.
		held, e := d.ReadReservation(ctx)
		if e == nil && held == (Reservation{kind, key}) {
			err = nil
		}
	}
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, "reserve")
	}
	d.reserved(kind)
	return nil
}

// reserved notes the type of our reservation.
func (d *Disk) reserved(kind uint8) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.kind = kind
}

// holder returns a path and our key.
func (d *Disk) holder(ctx context.Context) (*nexus.Nexus, uint64, error) {
	n, err := d.best(ctx)
	if err != nil {
		return nil, 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return n, d.key, nil
}

// Release gives a reservation back. SPC-4, 5.13.11.2.2.
func (d *Disk) Release(ctx context.Context, kind uint8) error {
	n, key, err := d.holder(ctx)
	if err == nil {
		err = d.persistOut(ctx, n, nexus.Write, scsi.PersistOut{Action: scsi.ActionPersistRelease, Type: kind, Key: key})
	}
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, "release")
	}
	d.reserved(0)
	return nil
}

// Clear takes away the reservation and everybody's registration.
// SPC-4, 5.13.11.2.8. When the answer is lost it is not asked again: our own
// registration is gone if it was done, and the second answer would be a
// conflict.
func (d *Disk) Clear(ctx context.Context) error {
	n, key, err := d.holder(ctx)
	if err == nil {
		err = d.persistOut(ctx, n, nexus.Once, scsi.PersistOut{Action: scsi.ActionPersistClear, Key: key})
	}
	if errors.Is(err, ErrUnknown) {
		var keys []uint64
		if keys, err = d.ReadKeys(ctx); err == nil && slices.Contains(keys, key) {
			return d.Clear(ctx)
		}
	}
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, "clear")
	}
	d.registered(0, nil)
	return nil
}

// PreemptAbort takes the registration of victim away, with its reservation if
// it has it, and reserves for us. When it returns nil, no command of victim's
// has any effect from now on, those under way included. SPC-4, 5.13.11.2.6.
func (d *Disk) PreemptAbort(ctx context.Context, kind uint8, victim uint64) error {
	for {
		n, key, err := d.holder(ctx)
		if err == nil {
			err = d.persistOut(ctx, n, nexus.Once, scsi.PersistOut{
				Action: scsi.ActionPersistPreemptAbort, Type: kind, Key: key, ActionKey: victim,
			})
		}
		if !errors.Is(err, ErrUnknown) {
			if err != nil {
				return fault.Wrap(fault.KindOf(err), err, "preempt and abort")
			}
			d.reserved(kind)
			return nil
		}
		keys, err := d.ReadKeys(ctx)
		if err != nil {
			return err
		}
		if slices.Contains(keys, victim) {
			continue // it was not performed
		}
		// The registration is gone, so that nothing new of victim's gets
		// through; but whether the abort was through as well, nobody told. A
		// reset of the unit ends what there is.
		if err := d.resetUnit(ctx); err != nil {
			return fault.Wrap(fault.KindOf(err), err, "preempt and abort")
		}
		return d.Reserve(ctx, kind) // it is ours already, unless a third took it
	}
}

// ReadKeys returns all registered keys, one for each registration.
func (d *Disk) ReadKeys(ctx context.Context) ([]uint64, error) {
	b, err := d.persistIn(ctx, scsi.ActionPersistReadKeys)
	if err != nil {
		return nil, fault.Wrap(fault.KindOf(err), err, "read keys")
	}
	_, keys, more, ok := scsi.DecodeKeys(b)
	if !ok || more {
		return nil, violation("keys of %d bytes", len(b))
	}
	return keys, nil
}

// Reservation is who holds a unit. Kind 0 is nobody.
type Reservation struct {
	Kind uint8
	Key  uint64 // of a type that all registrants hold: 0
}

// ReadReservation returns the unit's reservation.
func (d *Disk) ReadReservation(ctx context.Context) (Reservation, error) {
	b, err := d.persistIn(ctx, scsi.ActionPersistReadReserved)
	if err != nil {
		return Reservation{}, fault.Wrap(fault.KindOf(err), err, "read reservation")
	}
	_, kind, key, ok := scsi.DecodeReservation(b)
	if !ok {
		return Reservation{}, violation("a reservation of %d bytes", len(b))
	}
	return Reservation{kind, key}, nil
}

// resetUnit ends every task of the unit, of all nexuses, and then our own
// sessions, whose commands were among them and will have no answers: what they
// were is asked again. SAM-5, 7.7.
func (d *Disk) resetUnit(ctx context.Context) error {
	for {
		n, err := d.best(ctx)
		if err != nil {
			return err
		}
		response, err := d.manage(ctx, n, scsi.LogicalUnitResetFunction)
		if err != nil {
			return err
		}
		switch response {
		case int(scsi.FunctionComplete):
			d.mu.Lock()
			for _, c := range d.conns {
				c.fail(fault.New(fault.Unreachable, "the unit was reset by us"))
			}
			d.mu.Unlock()
			return nil
		case lostResponse: // ask again
		default:
			return fault.New(fault.Failed, "LOGICAL UNIT RESET is answered with %d", response)
		}
	}
}

// lostResponse stands for an answer that did not come.
const lostResponse = -1

// manage sends a task management request. RFC 7143, 11.5.
func (d *Disk) manage(ctx context.Context, n *nexus.Nexus, f scsi.Function) (int, error) {
	d.mu.Lock()
	c := d.connOf(n)
	if c == nil || c.broken || c.managed != nil {
		d.mu.Unlock()
		if !pauseUnless(ctx.Done(), 5*time.Millisecond) {
			return 0, fault.Wrap(fault.Canceled, ctx.Err(), "wait for a path")
		}
		return lostResponse, nil
	}
	answer := make(chan uint8, 1)
	c.managed = answer
	h := c.immediate(iscsi.OpTaskRequest, tagManage)
	h.SetFunction(uint8(f))
	h.SetLUN(uint64(d.lun))
	c.nudge()
	d.mu.Unlock()
	select {
	case a, ok := <-answer:
		if !ok {
			return lostResponse, nil
		}
		return int(a), nil
	case <-ctx.Done():
		return 0, fault.Wrap(fault.Canceled, ctx.Err(), "wait for the target")
	}
}

// fenceDue tells whether c shall fence paths that are down and hold up writes
// in doubt. Under mu.
func (d *Disk) fenceDue(c *conn) bool {
	if d.key == 0 || d.kind != WriteExclusiveRegistrants || d.fencing || c.n != d.core.Best() || !d.core.Doubtful() {
		return false
	}
	due := false
	for _, n := range d.core.Nexuses() {
		switch {
		case n == c.n:
		case n.Phase != nexus.Down && !n.Barred:
			return false // it would be fenced as well, at work
		case n.Phase == nexus.Down && n.InDoubt() > 0 && time.Duration(d.now()-n.DownSince) > d.cfg.Times.Fence:
			due = true
		}
	}
	if due {
		// None of them takes commands until it is registered again.
		d.fencing = true
		d.bar(c.n)
	}
	return due
}

// bar keeps ordinary commands from nexuses that our registration does not
// cover, and while others are being fenced by one, from all but that. Under mu.
func (d *Disk) bar(but *nexus.Nexus) {
	for _, n := range d.core.Nexuses() {
		n.Barred = d.key != 0 && d.covered != nil && !d.covered[n.Tag] || d.fencing && n != but
	}
}

// fence takes our own registration away on every path but c, whose target
// thereby ends the tasks of those paths and refuses what may still come of
// them: PREEMPT AND ABORT of a key by one of its own registrants spares only
// the nexus that asks. SPC-4, 5.13.11.2.4 and 5.13.11.2.6.
func (d *Disk) fence(c *conn) {
	d.mu.Lock()
	key, kind := d.key, d.kind
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(d.ctx, d.cfg.Times.Command)
	defer cancel()
	err := d.persistOut(ctx, c.n, nexus.Once, scsi.PersistOut{
		Action: scsi.ActionPersistPreemptAbort, Type: kind, Key: key, ActionKey: key,
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fencing = false
	if err != nil {
		if errors.Is(err, ErrUnknown) || fault.Is(err, fault.Canceled) {
			// It may have been performed: then the other paths are registered no more, and
			// what goes there would be a conflict. The next tick asks again.
			d.covered = map[uint16]bool{c.n.Tag: true}
		}
		d.bar(nil)
		d.pump()
		d.cfg.Log.Warn("iSCSI path could not be fenced", append([]any{"error", err}, c.log...)...)
		return
	}
	d.counters.Fences++
	// What was down is down still, or was logged in again and kept from
	// commands: nothing in doubt is younger than the fence.
	d.covered = map[uint16]bool{c.n.Tag: true}
	d.bar(nil)
	for _, k := range d.core.Fenced(c.n, nil) {
		d.unknown(k)
	}
	d.pump()
	d.nudge()
}
