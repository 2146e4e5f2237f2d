package initiator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"steadfast/block"
	"steadfast/compute/initiator/nexus"
	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/scsi"
)

// ErrUnknown says that a COMPARE AND WRITE may have been performed: its answer
// was lost. By the time the caller sees it the command can have no effect any
// more, so that reading the place tells. It is of kind fault.Unreachable.
var ErrUnknown = errors.New("the answer was lost: read to learn whether it was written")

// errLost ends probes of a connection that is over.
var errLost = fault.New(fault.Unreachable, "the connection was lost")

// errPreempted is what requests get when another initiator has taken our registration.
var errPreempted = fault.New(fault.Fenced, "another initiator has taken away our registration with the disk")

// errClosed is what requests get of a disk that is closed.
var errClosed = fault.New(fault.Canceled, "the disk is closed")

// Disk is a logical unit. It is safe for use by several goroutines.
type Disk struct {
	cfg   Config
	lun   scsi.LUN
	base  time.Time
	ctx   context.Context
	stop  context.CancelFunc
	tasks sync.WaitGroup

	size        atomic.Int64
	unit        atomic.Pointer[unit] // set before Open returns
	noWriteSame atomic.Bool          // the target refused one
	requests    sync.Pool

	opened  chan struct{} // closed when a path was usable first
	refused chan error    // gets what Open fails with at once

	// mu guards all below, and all of the core.
	mu       sync.Mutex
	core     nexus.Core
	conns    []*conn
	claims   map[uint16]bool  // portal groups with a login or a session
	freed    chan struct{}    // closed and replaced when a claim is given up
	why      map[string]error // what each portal's last attempt ended by
	identity string           // the unit's name, from page 83h
	key      uint64           // our registration, 0: none
	kind     uint8            // of the reservation that we asked for
	covered  map[uint16]bool  // groups that the registration covers; nil: all
	// preempted says that somebody took the registration away: nothing is changed until there
	// is another. untold says that no request was told so yet.
	preempted, untold bool
	wakeAt            nexus.Instant // when timer fires, 0: never
	timer             *time.Timer
	closing           bool
	fencing           bool          // a path fences others
	closed            chan struct{} // closed by the first Close when it is through
	counters          Counters
	paused            nexus.Instant // since when requests wait without a path, 0: not
}

// unit is what the target told of its logical unit. Lengths are bytes.
type unit struct {
	chunk        int // longest transfer of one command
	compareMax   int
	unmapMax     int64 // of one UNMAP; 0: it has none
	unmapUnit    int64 // what an UNMAP's ends should be multiples of
	writeSameMax int64
	writeSame    bool // WRITE SAME(16) may free what it zeroes
	zeroed       bool // unmapped blocks read as zeros
}

// request is one SCSI command on its way. It belongs to its caller, then to
// the core and the connection it is sent on, until done has its end.
type request struct {
	nexus.Command
	cdb     [16]byte
	in, out []byte // where to read to, or what to write
	admin   bool   // about reservations, whatever those are
	short   bool   // residuals are not looked at: no medium data, whose count targets differ in (tgt takes "none" of an UNMAP's list)
	done    chan error

	// Of the present attempt; under Disk.mu, but for got and dataSN, which are
	// the receiver's.
	conn          *conn
	tag           uint32
	got           int // bytes of in
	sent          int // bytes of out that were sent or asked for
	dataSN, r2tSN uint32
	asked         int // R2Ts whose data is in the queue
	holds         int // PDUs queued or being sent that refer to out
	answered      bool
	status        scsi.Status
	check         scsi.Check
	sentAt        nexus.Instant
	rejects       int
	err           error // its end, until the receiver has told it
}

// now is the present, in time since the disk was opened; never 0.
func (d *Disk) now() nexus.Instant { return nexus.Instant(time.Since(d.base)) + 1 }

// get returns a request that is ready to be filled in.
func (d *Disk) get() *request {
	if r, _ := d.requests.Get().(*request); r != nil {
		return r
	}
	r := &request{done: make(chan error, 1)}
	r.Owner = r
	return r
}

// put gives back a request that has ended.
func (d *Disk) put(r *request) {
	r.in, r.out, r.short, r.rejects, r.err = nil, nil, false, 0, nil
	r.Pin, r.Probe, r.Len = nil, false, 0
	d.requests.Put(r)
}

// do sends requests and waits for all of them.
func (d *Disk) do(rs ...*request) (err error) {
	if c := d.begin(rs, len(rs) == 1); c != nil {
		c.listen()
	}
	for _, r := range rs {
		if e := <-r.done; e != nil && err == nil {
			err = e
		}
	}
	return err
}

// begin submits requests, and sends what it can. With lead it may return a connection, which
// its caller is to listen to.
func (d *Disk) begin(rs []*request, lead bool) (listen *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range rs {
		if d.closing && !r.Probe {
			r.done <- errClosed
			continue
		}
		if d.preempted && !r.admin && (d.untold || r.Kind != nexus.Read) {
			d.untold = false
			r.done <- errPreempted
			continue
		}
		d.core.Submit(&r.Command)
	}
	d.pump()
	if c := rs[0].conn; c != nil {
		if lead && c.lead(rs[0]) {
			listen = c
		}
		c.send(senderRounds)
	}
	d.nudge()
	d.watchPause()
	return listen
}

// pump starts every command that may be sent now. Under mu.
func (d *Disk) pump() {
	for k := d.core.Next(); k != nil; k = d.core.Next() {
		r := k.Owner.(*request)
		if r.rejects >= rejectsMax {
			d.core.End(k)
			d.finish(r, fault.New(fault.Internal, "the target rejected it %d times", r.rejects))
			continue
		}
		d.connOf(k.Nexus).start(r)
	}
}

// connOf returns a nexus's connection. Under mu.
func (d *Disk) connOf(n *nexus.Nexus) *conn {
	for _, c := range d.conns {
		if c.n == n {
			return c
		}
	}
	return nil
}

// nudge has everything sent that is queued. Under mu.
func (d *Disk) nudge() {
	for _, c := range d.conns {
		c.nudge()
	}
}

// finish tells a request's caller its end. Under mu.
func (d *Disk) finish(r *request, err error) { r.done <- err }

// settle does what a command's answer means. It returns whether that is the
// command's end, and what its caller is to be told. Under mu.
func (d *Disk) settle(r *request) (end bool, err error) {
	c, n := r.conn, r.Nexus
	c.forget(r)
	now := d.now()
	v := nexus.Judge(r.status, r.check.Sense)
	fenced := v.News != nexus.NoNews && d.hear(c, v.News)
	again := func(due nexus.Instant) (bool, error) {
		d.counters.Retries++
		d.core.Again(&r.Command, due)
		d.wakeBy(due)
		return false, nil
	}
	over := func(err error) (bool, error) {
		d.core.End(&r.Command)
		return true, err
	}
	if fenced && !r.admin && !r.Probe {
		d.untold = false
		return over(errPreempted)
	}
	switch v.Action {
	case nexus.Done:
		return over(nil)
	case nexus.Differs:
		return over(&r.check)
	case nexus.Failed:
		return over(fault.Wrap(v.Kind, r.failure(), "the target refuses"))
	case nexus.Elsewhere:
		n.Access = v.Access
	case nexus.Ended:
		if r.Kind == nexus.Once {
			d.counters.Unknown++
			return over(fault.Wrap(fault.Unreachable, ErrUnknown, "COMPARE AND WRITE was aborted"))
		}
	case nexus.Missing:
		if r.Missing == 0 {
			r.Missing = now
		}
		if time.Duration(now-r.Missing) > d.cfg.Times.Missing {
			return over(fault.New(fault.NotFound, "target %s has no LUN %d for us", d.cfg.Target, d.cfg.LUN))
		}
		c.tell()
	default:
	}
	switch {
	case r.Probe && (v.Action != nexus.AtOnce || r.Tries > attentionsOfProbe):
		// Whoever brings the path up decides what is next.
		return over(fault.Wrap(fault.Busy, r.failure(), "not now"))
	case r.Canceled():
		return over(fault.Wrap(fault.Canceled, r.failure(), "not asked again"))
	case v.Action == nexus.Elsewhere && r.Tries == 0 && r.Pin == nil:
		return again(0) // goes nowhere until a path is usable
	default:
		return again(nexus.Due(v, &r.Command, now))
	}
}

// attentionsOfProbe is how many unit attentions a probe takes.
const attentionsOfProbe = 32

// failure is an answer as an error: a copy, as the request is used again.
func (r *request) failure() error {
	if r.status != scsi.CheckCondition {
		return &scsi.Check{Status: r.status}
	}
	c := r.check
	return &c
}

// hear takes a unit's news. It tells whether they are that somebody has taken our
// registration away. Under mu.
func (d *Disk) hear(c *conn, news nexus.News) (preempted bool) {
	if news&(nexus.Capacity|nexus.Paths) != 0 {
		c.tell()
	}
	if news&nexus.Lost != 0 {
		d.counters.NexusLosses++
	}
	// A path that we fenced ourselves tells the same.
	if news&nexus.Preempted == 0 || d.key == 0 || d.fencing || d.covered != nil && !d.covered[c.n.Tag] {
		return false
	}
	d.preempted, d.untold = true, true
	return true
}

// wakeBy sees to it that the core is woken at due, if that is not 0. Under mu.
func (d *Disk) wakeBy(due nexus.Instant) {
	if due == 0 || d.wakeAt != 0 && d.wakeAt <= due || d.closing {
		return
	}
	d.wakeAt = due
	d.timer.Reset(time.Duration(due - d.now()))
}

// wakeUp is the timer's.
func (d *Disk) wakeUp() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wakeAt = 0
	d.wakeBy(d.core.Wake(d.now()))
	d.pump()
	d.nudge()
}

// inside refuses what is not whole sectors of the disk.
func (d *Disk) inside(off, n int64) error {
	if off < 0 || n < 0 || off%block.SectorSize != 0 || n%block.SectorSize != 0 || n > d.Size() || off > d.Size()-n {
		return fault.New(fault.Invalid, "%d bytes at %d are not whole sectors of a disk of %d bytes", n, off, d.Size())
	}
	return nil
}

// Size implements block.Device.
func (d *Disk) Size() int64 { return d.size.Load() }

// ReadAt implements block.Device.
func (d *Disk) ReadAt(p []byte, off int64) error {
	if err := d.inside(off, int64(len(p))); err != nil {
		return err
	}
	return d.transfer(scsi.OpRead16, p, off, 0)
}

// WriteAt implements block.Device.
func (d *Disk) WriteAt(p []byte, off int64, flags block.Flags) error {
	if err := d.inside(off, int64(len(p))); err != nil {
		return err
	}
	return d.transfer(scsi.OpWrite16, p, off, flags)
}

// waveMax is how many commands one long request has under way.
const waveMax = 16

// transfer reads or writes, in as many commands as it takes. They are cut at
// multiples of block.BlockSize, so that no block is torn in two.
func (d *Disk) transfer(op scsi.Opcode, p []byte, off int64, flags block.Flags) error {
	chunk := d.unit.Load().chunk
	for len(p) > 0 {
		var wave [waveMax]*request
		n := 0
		for ; n < len(wave) && len(p) > 0; n++ {
			part := min(len(p), chunk)
			if part < len(p) {
				part -= int((off + int64(part)) % block.BlockSize)
			}
			wave[n] = d.prepare(op, p[:part], off, flags)
			p, off = p[part:], off+int64(part)
		}
		err := d.do(wave[:n]...)
		for _, r := range wave[:n] {
			d.put(r)
		}
		if err != nil {
			return about(err, op, off)
		}
	}
	return nil
}

// about says what an error was met at.
func about(err error, op scsi.Opcode, off int64) error {
	what := "write"
	if op == scsi.OpRead16 {
		what = "read"
	}
	return fault.Wrap(fault.KindOf(err), err, fmt.Sprintf("%s before byte %d", what, off))
}

// prepare fills in a READ(16) or WRITE(16).
func (d *Disk) prepare(op scsi.Opcode, p []byte, off int64, flags block.Flags) *request {
	r := d.get()
	scsi.PutTransfer(r.cdb[:], op, uint64(off/block.SectorSize), uint32(len(p)/block.SectorSize), flags&block.FUA != 0)
	if op == scsi.OpRead16 {
		r.Kind, r.in = nexus.Read, p
		return r
	}
	r.Kind, r.out = nexus.Write, p
	r.Off, r.Len = off, int64(len(p))
	return r
}

// Flush implements block.Device. SYNCHRONIZE CACHE of everything: it covers
// what the target has answered, on whatever path. SBC-3, 5.25.
func (d *Disk) Flush() error {
	r := d.get()
	defer d.put(r)
	r.Kind = nexus.Read // it changes no data: again, anywhere
	scsi.PutTransfer(r.cdb[:], scsi.OpSynchronizeCache16, 0, 0, false)
	if err := d.do(r); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "flush")
	}
	return nil
}

// Trim implements block.Device, by UNMAP where that makes zeros, and else as
// Zero does.
func (d *Disk) Trim(off, n int64) error {
	if err := d.inside(off, n); err != nil {
		return err
	}
	u := d.unit.Load()
	first := (off + u.unmapUnit - 1) / u.unmapUnit * u.unmapUnit
	last := (off + n) / u.unmapUnit * u.unmapUnit
	if u.unmapMax == 0 || !u.zeroed || first >= last {
		return d.Zero(off, n, 0)
	}
	if err := d.Zero(off, first-off, 0); err != nil {
		return err
	}
	for first < last {
		part := min(last-first, u.unmapMax)
		r := d.get()
		r.Kind, r.Off, r.Len, r.short = nexus.Write, first, part, true
		r.out = scsi.PutUnmap(r.cdb[:], nil, scsi.Extent{
			LBA: uint64(first / block.SectorSize), Blocks: uint32(part / block.SectorSize),
		})
		err := d.do(r)
		d.put(r)
		if err != nil {
			return fault.Wrap(fault.KindOf(err), err, "unmap")
		}
		first += part
	}
	return d.Zero(last, off+n-last, 0)
}

// zeroChunk is what is zeroed by writing at a time, in bytes.
const zeroChunk = 1 << 20

// Zero implements block.Device, by WRITE SAME(16), and by writing zeros where
// the target has none.
func (d *Disk) Zero(off, n int64, flags block.Flags) error {
	if err := d.inside(off, n); err != nil {
		return err
	}
	u := d.unit.Load()
	zero := make([]byte, block.SectorSize)
	for n > 0 && !d.noWriteSame.Load() {
		part := min(n, u.writeSameMax)
		r := d.get()
		r.Kind, r.Off, r.Len, r.out, r.short = nexus.Write, off, part, zero, true
		scsi.PutWriteSame(r.cdb[:], uint64(off/block.SectorSize), uint32(part/block.SectorSize), u.writeSame && u.zeroed)
		err := d.do(r)
		d.put(r)
		switch {
		case err == nil:
			off, n = off+part, n-part
			continue
		case !fault.Is(err, fault.Invalid):
			return fault.Wrap(fault.KindOf(err), err, "zero")
		}
		d.noWriteSame.Store(true)
	}
	if n > 0 {
		buf := make([]byte, min(n, zeroChunk))
		for ; n > 0; off, n = off+int64(len(buf)), n-int64(len(buf)) {
			buf = buf[:min(n, zeroChunk)]
			if err := d.transfer(scsi.OpWrite16, buf, off, flags); err != nil {
				return err
			}
		}
		return nil
	}
	if flags&block.FUA != 0 {
		return d.Flush() // WRITE SAME has no FUA
	}
	return nil
}

// CompareAndWrite implements block.Device. It is never repeated when it may
// have been performed: see ErrUnknown.
func (d *Disk) CompareAndWrite(off int64, old, data []byte, flags block.Flags) (int64, error) {
	n := len(old)
	if err := d.inside(off, int64(n)); err != nil {
		return 0, err
	}
	if limit := d.unit.Load().compareMax; len(data) != n || n == 0 || n > limit {
		return 0, fault.New(fault.Invalid, "compare of %d bytes and write of %d: the target takes 512 to %d of both", n, len(data), limit)
	}
	r := d.get()
	defer d.put(r)
	r.out = bufpool.Get(2 * n)
	defer bufpool.Put(r.out)
	copy(r.out, old)
	copy(r.out[n:], data)
	r.Kind, r.Off, r.Len, r.short = nexus.Once, off, int64(n), true
	scsi.PutTransfer(r.cdb[:], scsi.OpCompareAndWrite, uint64(off/block.SectorSize), uint32(n/block.SectorSize), flags&block.FUA != 0)
	err := d.do(r)
	var check *scsi.Check
	switch {
	case err == nil:
		return -1, nil
	case errors.As(err, &check) && check.Status == scsi.CheckCondition && check.Key == scsi.KeyMiscompare:
		if check.HasInformation && check.Information < uint64(n) {
			return int64(check.Information), nil
		}
		return d.difference(off, old)
	}
	return 0, fault.Wrap(fault.KindOf(err), err, "compare and write")
}

// difference finds where the disk differs from old, for a target that says
// only that it does. By now it may not any more: then the first byte must do.
func (d *Disk) difference(off int64, old []byte) (int64, error) {
	is := make([]byte, len(old))
	if err := d.ReadAt(is, off); err != nil {
		return 0, err
	}
	for i := range is {
		if is[i] != old[i] {
			return int64(i), nil
		}
	}
	return 0, nil
}

var _ block.Device = (*Disk)(nil)
