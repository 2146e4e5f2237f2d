package trial

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/scsi"
)

// Sector is the smallest unit that is read or written, in bytes.
const Sector = 512

// transferMax bounds one request, in bytes: what a target takes with the command
// and sends in one PDU, by the protocol's defaults and ours.
const transferMax = 4096

// Pauses before what failed is tried again, and how long a request is for which the
// target says that it is not ready.
const (
	comeBackPause = 20 * time.Millisecond
	comeBackMax   = 500 * time.Millisecond
	retryPause    = 50 * time.Millisecond
	retryTime     = time.Minute
)

// Options say which disk is opened, and by whom.
type Options struct {
	Portal    string // host:port
	Target    string
	LUN       int
	Initiator string // iSCSI name

	isid iscsi.ISID
}

// Disk is a logical unit. Requests wait as long as it takes; at most a dozen or so
// may be under way at once, fewer than any target's window.
type Disk struct {
	o     Options
	lun   uint64 // as a PDU has it
	size  int64
	stop  context.CancelFunc
	tasks sync.WaitGroup

	mu       sync.Mutex
	live     *session // nil: none
	lastTag  uint32
	pending  map[uint32]*request
	sessions int  // that there were
	closed   bool // no request begins any more
}

// request is one command until it is answered.
type request struct {
	cdb   [16]byte
	in    []byte // where to read to, or
	out   []byte // what to write
	tag   uint32
	began time.Time
	done  chan error // room for one
}

// errClosed is what requests get that had no answer when the disk was closed.
var errClosed = errors.New("the disk was closed")

// Open logs in to a disk and finds its size. It waits for the target until ctx ends.
func Open(ctx context.Context, o Options) (*Disk, error) {
	o.isid = iscsi.ISID{0x80} // random: RFC 7143, 11.12.5
	if _, err := rand.Read(o.isid[1:]); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "random bytes")
	}
	lun := uint64(o.LUN)
	if o.LUN > 0xff {
		lun |= 0x4000 // flat space addressing: SAM-5, 4.7.7.3
	}
	d := &Disk{o: o, lun: lun << 48, pending: map[uint32]*request{}}
	var run context.Context
	run, d.stop = context.WithCancel(context.Background())
	first := make(chan error, 1)
	d.tasks.Go(func() { d.run(run, first) })
	var err error
	select {
	case err = <-first:
	case <-ctx.Done():
		err = fault.Wrap(fault.Unreachable, ctx.Err(), "log in to "+o.Portal)
	}
	if err == nil {
		err = d.measure(ctx)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// measure asks for the capacity. SBC-4, 5.22 (READ CAPACITY(16)).
func (d *Disk) measure(ctx context.Context) error {
	answer := make([]byte, 32)
	r := &request{in: answer}
	r.cdb[0], r.cdb[1] = 0x9e, 0x10
	binary.BigEndian.PutUint32(r.cdb[10:], uint32(len(answer)))
	select {
	case err := <-d.begin(r):
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return fault.Wrap(fault.Unreachable, ctx.Err(), "ask for the capacity")
	}
	if length := binary.BigEndian.Uint32(answer[8:]); length != Sector {
		return fault.New(fault.Invalid, "blocks of %d bytes are not what this was made for", length)
	}
	d.size = int64(binary.BigEndian.Uint64(answer)+1) * Sector
	return nil
}

// Size returns bytes.
func (d *Disk) Size() int64 { return d.size }

// Sessions returns how many sessions there were.
func (d *Disk) Sessions() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sessions
}

// ReadAt fills p, of at most 4096 bytes.
func (d *Disk) ReadAt(p []byte, off int64) error {
	return d.transfer(0x88, off, &request{in: p}, len(p))
}

// WriteAt writes p, of at most 4096 bytes.
func (d *Disk) WriteAt(p []byte, off int64) error {
	return d.transfer(0x8a, off, &request{out: p}, len(p))
}

// transfer does READ(16) or WRITE(16). SBC-4, 5.18 and 5.42.
func (d *Disk) transfer(op byte, off int64, r *request, n int) error {
	if n == 0 || n > transferMax || n%Sector != 0 || off%Sector != 0 || off < 0 || off+int64(n) > d.size {
		return fault.New(fault.Invalid, "%d bytes at %d are no request", n, off)
	}
	r.cdb[0] = op
	binary.BigEndian.PutUint64(r.cdb[2:], uint64(off/Sector))
	binary.BigEndian.PutUint32(r.cdb[10:], uint32(n/Sector))
	return <-d.begin(r)
}

// Close logs out, as well as that goes. What is under way fails.
func (d *Disk) Close() {
	d.mu.Lock()
	d.closed = true
	if d.live != nil {
		d.lastTag++
		_ = d.live.logOut(d.lastTag) // else the connection's end says it
	}
	for tag, r := range d.pending {
		delete(d.pending, tag)
		r.done <- errClosed
	}
	d.mu.Unlock()
	d.stop()
	d.tasks.Wait()
}

// begin sends a request, now or when there is a session, and returns where its
// end shows.
func (d *Disk) begin(r *request) <-chan error {
	r.done, r.began = make(chan error, 1), time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.submit(r)
	return r.done
}

// submit gives a request its tag and sends it. Under mu.
func (d *Disk) submit(r *request) {
	if d.closed {
		r.done <- errClosed
		return
	}
	d.lastTag++
	if d.lastTag == iscsi.NoTag {
		d.lastTag = 1
	}
	r.tag = d.lastTag
	d.pending[r.tag] = r
	if d.live != nil {
		d.sent(d.live, d.live.command(r, d.lun))
	}
}

// sent ends a session that cannot be sent to. Under mu.
func (d *Disk) sent(s *session, err error) {
	if err == nil {
		return
	}
	_ = s.conn.Close() // the receiver notices
	if d.live == s {
		d.live = nil
	}
}

// run keeps a session until ctx ends. first gets what came of the first login
// unless it is tried again.
func (d *Disk) run(ctx context.Context, first chan<- error) {
	pause := comeBackPause
	for ctx.Err() == nil {
		s, err := logIn(ctx, d.o)
		if err == nil {
			pause = comeBackPause
			d.welcome(s, first)
			stop := context.AfterFunc(ctx, func() { _ = s.conn.Close() })
			d.watch(s)
			stop()
			continue
		}
		if fault.Is(err, fault.Denied) {
			select {
			case first <- err:
			default:
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, comeBackMax)
	}
}

// welcome begins a session: what has no answer is sent again, in order.
func (d *Disk) welcome(s *session, first chan<- error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.live = s
	d.sessions++
	for _, tag := range slices.Sorted(maps.Keys(d.pending)) {
		if d.live == nil {
			break
		}
		d.sent(s, s.command(d.pending[tag], d.lun))
	}
	select {
	case first <- nil:
	default:
	}
}

// watch receives until the session ends.
func (d *Disk) watch(s *session) {
	done := make(chan struct{})
	d.tasks.Go(func() { d.ping(s, done) })
	for {
		h, data, err := s.receive()
		if err == nil {
			err = d.take(s, &h, data)
		}
		if err != nil {
			break
		}
	}
	close(done)
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = s.conn.Close()
	if d.live == s {
		d.live = nil
	}
}

// ping sees to it that a target which says nothing any more is noticed.
func (d *Disk) ping(s *session, done <-chan struct{}) {
	t := time.NewTicker(pingAfter / 4)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
		}
		switch quiet := s.silence(); {
		case quiet > quietMax:
			_ = s.conn.Close() // the receiver notices
			return
		case quiet > pingAfter && s.pinging.CompareAndSwap(false, true):
			d.mu.Lock()
			d.lastTag++
			d.sent(s, s.nop(d.lastTag, iscsi.NoTag, 0))
			d.mu.Unlock()
		}
	}
}

// take takes what the target sent.
func (d *Disk) take(s *session, h *iscsi.Header, data []byte) error {
	switch h.Opcode() {
	case iscsi.OpDataIn:
		return d.dataIn(h, data)
	case iscsi.OpSCSIResponse:
		d.answer(h, data)
		return nil
	case iscsi.OpNopIn:
		if h.TargetTag() == iscsi.NoTag {
			return nil // the answer to ours
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.sent(s, s.nop(iscsi.NoTag, h.TargetTag(), h.LUN()))
		return nil
	case iscsi.OpAsync:
		if h.AsyncEvent() == iscsi.AsyncLogout {
			return errEnded
		}
		return nil // the connection's end follows, or nothing does
	default:
		return fmt.Errorf("%v is not what was asked for", h.Opcode())
	}
}

// dataIn takes data that was read.
func (d *Disk) dataIn(h *iscsi.Header, data []byte) error {
	d.mu.Lock()
	r := d.pending[h.InitiatorTag()]
	d.mu.Unlock()
	if r == nil {
		return nil // it was closed meanwhile
	}
	at := int(h.BufferOffset())
	if at > len(r.in) || len(data) > len(r.in)-at {
		return errors.New("data beyond what was asked for")
	}
	copy(r.in[at:], data)
	if h.Flags()&iscsi.FlagStatus != 0 {
		d.finish(h.InitiatorTag(), scsi.Status(h.SCSIStatus()), nil)
	}
	return nil
}

// answer takes a SCSI response; sense data has its length before it.
// RFC 7143, 11.4.7.
func (d *Disk) answer(h *iscsi.Header, data []byte) {
	var sense []byte
	if len(data) >= 2 {
		sense = data[2:min(len(data), 2+int(binary.BigEndian.Uint16(data)))]
	}
	status := scsi.Status(h.SCSIStatus())
	if h.Response() != iscsi.ResponseComplete {
		status = scsi.TaskAborted
	}
	d.finish(h.InitiatorTag(), status, sense)
}

// finish ends a request, or begins it anew when the target wants that.
func (d *Disk) finish(tag uint32, status scsi.Status, sense []byte) {
	check, _ := scsi.DecodeSense(sense)
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.pending[tag]
	if r == nil {
		return
	}
	delete(d.pending, tag)
	again, pause := false, retryPause
	switch status {
	case scsi.Good:
		r.done <- nil
		return
	case scsi.BusyStatus, scsi.TaskSetFull, scsi.TaskAborted:
		again = true
	case scsi.CheckCondition:
		again = check.Key == scsi.KeyUnitAttention || check.Key == scsi.KeyNotReady || check.Key == scsi.KeyAbortedCommand
		if check.Key == scsi.KeyUnitAttention {
			pause = 0 // it was told, and that was all
		}
	default:
	}
	if !again || time.Since(r.began) > retryTime {
		r.done <- fault.New(fault.Failed, "status %#02x, sense %X/%02X/%02X", uint8(status), check.Key, check.ASC, check.ASCQ)
		return
	}
	if pause == 0 {
		d.submit(r)
		return
	}
	d.tasks.Go(func() {
		time.Sleep(pause)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.submit(r)
	})
}
