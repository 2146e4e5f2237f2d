package diskwire

import (
	"encoding/binary"
	"math"
	"os"
	"runtime"
	"sync"

	"steadfast/block"
	"steadfast/fault"
)

// Sizes of what is shared.
const (
	// SlotBytes is the most that one request carries.
	SlotBytes = 128 << 10
	// SlotsDefault is how many requests can be under way if Options do not say: 8 MiB.
	SlotsDefault = 64
	// SlotsMax bounds Options.Slots; a packet of so many records is to be one that every
	// kernel takes.
	SlotsMax = 256

	requestBytes = 24
	answerBytes  = 16
	// textMax is the most that is told of a fault, in bytes.
	textMax = 1 << 10
)

// op is what a request asks for.
type op uint8

const (
	opRead op = 1 + iota
	opWrite
	opFlush
	opTrim
	opZero
	opCompareAndWrite
)

// changes tells whether an operation changes the device's content.
func (o op) changes() bool { return o == opWrite || o >= opTrim }

// request is a request as it is sent.
type request struct {
	op     op
	flags  block.Flags
	slot   int
	off, n int64
}

// put encodes a request into requestBytes.
func (r *request) put(b []byte) {
	b[0], b[1] = byte(r.op), byte(r.flags)
	binary.LittleEndian.PutUint16(b[2:], uint16(r.slot))
	binary.LittleEndian.PutUint32(b[4:], 0)
	binary.LittleEndian.PutUint64(b[8:], uint64(r.off))
	binary.LittleEndian.PutUint64(b[16:], uint64(r.n))
}

// get decodes a request and judges what can be judged without the device: what passes
// can be done in its slot. Fails with fault.Invalid for what no Client sends.
func (r *request) get(b []byte, slots int) error {
	off, n := binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])
	*r = request{op: op(b[0]), flags: block.Flags(b[1]), slot: int(binary.LittleEndian.Uint16(b[2:]))}
	least, most := uint64(block.SectorSize), uint64(math.MaxInt64)
	switch r.op {
	case opRead, opWrite:
		most = SlotBytes
	case opCompareAndWrite:
		most = SlotBytes / 2
	case opFlush:
		least, most = 0, 0
	case opTrim, opZero:
	default:
		return fault.New(fault.Invalid, "operation %d of a disk", b[0])
	}
	switch {
	case r.flags&^block.FUA != 0 || binary.LittleEndian.Uint32(b[4:]) != 0:
		return fault.New(fault.Invalid, "a disk's request with unknown flags")
	case r.slot >= slots:
		return fault.New(fault.Invalid, "slot %d of %d", r.slot, slots)
	case n < least || n > most || off > math.MaxInt64-n || off%block.SectorSize != 0 || n%block.SectorSize != 0 || r.op == opFlush && off != 0:
		return fault.New(fault.Invalid, "operation %d of %d bytes at %d, which are none", r.op, n, off)
	}
	r.off, r.n = int64(off), int64(n)
	return nil
}

// Kinds of what a server says.
const (
	saysAnswer = 1
	saysSize   = 2
)

// answer is what a server says.
type answer struct {
	says   uint8
	status uint8 // 0, or 1 + the kind of a fault
	slot   int
	text   int
	value  int64 // the mismatch, or the size
}

// put encodes an answer into answerBytes.
func (a *answer) put(b []byte) {
	b[0], b[1] = a.says, a.status
	binary.LittleEndian.PutUint16(b[2:], uint16(a.slot))
	binary.LittleEndian.PutUint32(b[4:], uint32(a.text))
	binary.LittleEndian.PutUint64(b[8:], uint64(a.value))
}

// get decodes an answer. Fails with fault.Internal for what no Server sends.
func (a *answer) get(b []byte, slots int) error {
	*a = answer{
		says: b[0], status: b[1], slot: int(binary.LittleEndian.Uint16(b[2:])),
		text: int(binary.LittleEndian.Uint32(b[4:])), value: int64(binary.LittleEndian.Uint64(b[8:])),
	}
	switch {
	case a.says == saysSize && a.value >= 0:
	case a.says == saysAnswer && a.slot < slots && a.text <= textMax && (a.status == 0 || int(a.status) <= len(fault.Kinds())):
	default:
		return fault.New(fault.Internal, "a disk's server says %x", b[:answerBytes])
	}
	return nil
}

// statusOf is the status that tells of an error.
func statusOf(err error) uint8 {
	if err == nil {
		return 0
	}
	return 1 + uint8(fault.KindOf(err))
}

// roundsMax is how many packets who has sent a record sends for others that have come
// meanwhile, before it goes back to its own affairs.
const roundsMax = 4

// outbox sends records, those that have come while a packet was being sent in the next
// one. Who brings the first one sends: nobody else has to be woken. What it holds is
// bounded by who brings records: a slot has at most one.
type outbox struct {
	f *os.File
	// taken, if any, sees each packet before it is sent.
	taken func(packet []byte)

	mu      sync.Mutex
	held    []byte
	spare   []byte // the sender's
	sending bool
	over    bool
	tasks   sync.WaitGroup // none begins once it is over
}

// put sends a record, or has it sent, and waits for the socket if need be. others tells
// that more may come at once. An error of the socket is its reader's to notice.
func (o *outbox) put(record []byte, others bool) {
	if !o.hold(record, false) {
		return
	}
	if others {
		runtime.Gosched() // who can run brings its record, too
	}
	o.send()
}

// later has a record sent, and waits for nothing.
func (o *outbox) later(record []byte) { o.hold(record, true) }

// hold takes a record, and tells whether who has brought it is to send: not if that is
// another's affair.
func (o *outbox) hold(record []byte, another bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.over {
		return false
	}
	o.held = append(o.held, record...)
	if o.sending {
		return false
	}
	o.sending = true
	if another {
		o.tasks.Go(o.send)
	}
	return !another
}

// send sends what is held until there is nothing, or it is another's turn.
func (o *outbox) send() {
	for range roundsMax {
		o.mu.Lock()
		packet := o.held
		if len(packet) == 0 || o.over {
			o.sending = false
			o.mu.Unlock()
			return
		}
		o.held, o.spare = o.spare[:0], packet
		o.mu.Unlock()
		if o.taken != nil {
			o.taken(packet)
		}
		_, _ = o.f.Write(packet) // see put
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.over {
		o.tasks.Go(o.send)
	}
}

// end has nothing sent any more. The socket is closed: nobody waits for it.
func (o *outbox) end() {
	o.mu.Lock()
	o.over = true
	o.mu.Unlock()
	o.tasks.Wait()
}
