package virtio

import (
	"encoding/binary"

	"steadfast/compute/device"
	"steadfast/compute/memory"
)

// Flags of a descriptor, and of the available ring. 2.7.5, 2.7.6.
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	descSize = 16

	availNoInterrupt = 1
)

// queue is a split virtqueue. 2.7. Indices run freely and wrap at 65536.
type queue struct {
	most  uint16 // the greatest size that the device takes
	size  uint16
	ready bool

	desc, avail, used uint64 // guest addresses

	last uint16 // the available ring's index that is taken next
	next uint16 // the used ring's index that is put next
	told uint16 // next, when the driver was last told, or did not want to be
}

// place takes one of the registers that say where a queue is. 4.2.2.
func (q *queue) place(offset uint64, v uint32) {
	low := func(a *uint64) { *a = *a&^0xffff_ffff | uint64(v) }
	high := func(a *uint64) { *a = *a&0xffff_ffff | uint64(v)<<32 }
	switch offset {
	case regQueueNum:
		q.size = 0 // of a size that fits does not
		if v <= uint32(q.most) {
			q.size = uint16(v)
		}
	case regQueueDescLow:
		low(&q.desc)
	case regQueueDescHigh:
		high(&q.desc)
	case regQueueDriverLow:
		low(&q.avail)
	case regQueueDriverHigh:
		high(&q.avail)
	case regQueueDeviceLow:
		low(&q.used)
	case regQueueDeviceHigh:
		high(&q.used)
	}
}

// fits tells whether size and places are what 2.7 asks for, and all within RAM. The
// rings have their event fields whether they are used or not.
func (q *queue) fits(ram *memory.RAM) bool {
	n := uint64(q.size)
	return n > 0 && n&(n-1) == 0 && q.size <= q.most &&
		q.desc%16 == 0 && ram.Contains(q.desc, descSize*n) &&
		q.avail%2 == 0 && ram.Contains(q.avail, 6+2*n) &&
		q.used%4 == 0 && ram.Contains(q.used, 6+8*n)
}

// taken is how many chains are taken and not put.
func (q *queue) taken() uint16 { return q.last - q.next }

func (q *queue) save(e *device.Encoder) {
	e.U16(q.size)
	e.Bool(q.ready)
	e.U64(q.desc)
	e.U64(q.avail)
	e.U64(q.used)
	e.U16(q.last)
	e.U16(q.next)
	e.U16(q.told)
}

func (q *queue) restore(d *device.Decoder, ram *memory.RAM) {
	q.size = d.U16()
	q.ready = d.Bool()
	q.desc = d.U64()
	q.avail = d.U64()
	q.used = d.U64()
	q.last = d.U16()
	q.next = d.U16()
	q.told = d.U16()
	if q.size > q.most || q.ready && !q.fits(ram) || q.taken() > q.size {
		d.Fail("a queue that cannot be")
	}
}

// chain is what a driver has made available at once: pieces to read, then pieces to
// write. Both are the transport's, and good until the next one is taken.
type chain struct {
	head       uint16
	from, into vector
}

// available tells how many chains there are to take. More than there are
// descriptors for is the driver's failure.
func (t *transport) available(q *queue) int {
	n := t.read16(q.avail+2) - q.last
	if n > q.size || n > q.size-q.taken() {
		t.fail()
		return 0
	}
	return int(n)
}

// take takes the next chain; available has said that there is one. It is false when
// the chain makes no sense, and the device has failed.
func (t *transport) take(q *queue) (chain, bool) {
	head := t.read16(q.avail + 4 + 2*uint64(q.last%q.size))
	c, ok := t.parse(q, head)
	if !ok {
		t.fail()
		return chain{}, false
	}
	q.last++
	return c, true
}

// descriptor is one entry of a descriptor table. 2.7.5.
type descriptor struct {
	addr        uint64
	n           uint32
	flags, next uint16
}

func (t *transport) descriptor(table uint64, i uint32) (descriptor, bool) {
	var p [descSize]byte
	t.spent += pieceCost
	ok := t.ram.Read(p[:], table+descSize*uint64(i))
	return descriptor{
		addr:  binary.LittleEndian.Uint64(p[0:]),
		n:     binary.LittleEndian.Uint32(p[8:]),
		flags: binary.LittleEndian.Uint16(p[12:]),
		next:  binary.LittleEndian.Uint16(p[14:]),
	}, ok
}

// parse follows a chain. It has at most as many pieces as the queue has descriptors,
// which ends loops, too. An indirect table, if there is one, is what the chain ends with
// (2.7.5.3), and holds no other.
func (t *transport) parse(q *queue, head uint16) (chain, bool) {
	t.from, t.into = t.from[:0], t.into[:0]
	table, entries, at, within := q.desc, uint32(q.size), uint32(head), false
	for pieces := uint16(0); pieces < q.size; {
		if at >= entries {
			return chain{}, false
		}
		d, ok := t.descriptor(table, at)
		if !ok || !t.ram.Contains(d.addr, uint64(d.n)) || d.n == 0 {
			return chain{}, false
		}
		if d.flags&descIndirect != 0 {
			if within || !t.has(featureIndirect) || d.flags&descNext != 0 || d.n%descSize != 0 {
				return chain{}, false
			}
			table, entries, at, within = d.addr, d.n/descSize, 0, true
			continue
		}
		if !t.piece(d) {
			return chain{}, false
		}
		if d.flags&descNext == 0 {
			return chain{head, t.from, t.into}, true
		}
		at = uint32(d.next)
		pieces++
	}
	return chain{}, false
}

// piece adds a descriptor's memory to the chain. What is read comes before what is
// written. 2.7.4.2.
func (t *transport) piece(d descriptor) bool {
	s := segment{d.addr, d.n}
	switch {
	case d.flags&descWrite != 0:
		t.into = append(t.into, s)
	case len(t.into) > 0:
		return false
	default:
		t.from = append(t.from, s)
	}
	return true
}

// put gives a chain back, with how many bytes were written into it from its first on.
func (t *transport) put(q *queue, head uint16, written uint32) {
	var p [8]byte
	binary.LittleEndian.PutUint32(p[0:], uint32(head))
	binary.LittleEndian.PutUint32(p[4:], written)
	t.ram.Write(p[:], q.used+4+8*uint64(q.next%q.size))
	q.next++
	t.write16(q.used+2, q.next)
}

// settle ends a round of take and put, unless it has failed: it says from where on the
// driver is to notify, and interrupts if it wants to know of what was put. 2.7.7, 2.7.10.
func (t *transport) settle(q *queue) {
	if !t.running() {
		return
	}
	eventIdx := t.has(featureEventIdx)
	if eventIdx {
		t.write16(q.used+4+8*uint64(q.size), q.last)
	}
	was := q.told
	q.told = q.next
	switch {
	case q.next == was:
	case eventIdx:
		if event := t.read16(q.avail + 4 + 2*uint64(q.size)); q.next-event-1 < q.next-was {
			t.raise(interruptUsed)
		}
	case t.read16(q.avail)&availNoInterrupt == 0:
		t.raise(interruptUsed)
	}
}

func (t *transport) read16(addr uint64) uint16 {
	var p [2]byte
	t.ram.Read(p[:], addr)
	return binary.LittleEndian.Uint16(p[:])
}

func (t *transport) write16(addr uint64, v uint16) {
	var p [2]byte
	binary.LittleEndian.PutUint16(p[:], v)
	t.ram.Write(p[:], addr)
}

// segment is a piece of guest memory, within RAM and not empty.
type segment struct {
	addr uint64
	n    uint32
}

// vector is pieces that are one after the other to the device.
type vector []segment

// length is in bytes.
func (v vector) length() uint64 {
	n := uint64(0)
	for _, s := range v {
		n += uint64(s.n)
	}
	return n
}

// each calls do with the guest memory of n bytes from offset off on, piece by piece,
// and with where each piece begins in them.
func (v vector) each(off, n uint64, do func(addr, at, n uint64)) {
	at := uint64(0)
	for _, s := range v {
		size := uint64(s.n)
		if off >= size {
			off -= size
			continue
		}
		if at == n {
			return
		}
		piece := min(size-off, n-at)
		do(s.addr+off, at, piece)
		at += piece
		off = 0
	}
}

// gather copies len(p) bytes out of a vector, from offset off on.
func (t *transport) gather(p []byte, v vector, off uint64) {
	t.spent += uint64(len(p))
	v.each(off, uint64(len(p)), func(addr, at, n uint64) { t.ram.Read(p[at:at+n], addr) })
}

// scatter copies p into a vector, from offset off on, as far as there is room.
func (t *transport) scatter(v vector, off uint64, p []byte) {
	t.spent += uint64(len(p))
	v.each(off, uint64(len(p)), func(addr, at, n uint64) { t.ram.Write(p[at:at+n], addr) })
}

func (v vector) save(e *device.Encoder) {
	e.U16(uint16(len(v)))
	for _, s := range v {
		e.U64(s.addr)
		e.U32(s.n)
	}
}

// restoreVector takes at most so many pieces.
func restoreVector(d *device.Decoder, ram *memory.RAM, most uint16) vector {
	n := d.U16()
	if n > most {
		d.Fail("a request of more pieces than there can be")
		return nil
	}
	v := make(vector, n)
	for i := range v {
		v[i] = segment{d.U64(), d.U32()}
		if v[i].n == 0 || !ram.Contains(v[i].addr, uint64(v[i].n)) {
			d.Fail("a request for memory that is not there")
			return nil
		}
	}
	return v
}
