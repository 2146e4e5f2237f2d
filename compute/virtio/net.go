package virtio

import (
	"encoding/binary"

	"steadfast/compute/device"
	"steadfast/compute/memory"
	"steadfast/fault"
)

// What a network device says and takes by Kind.
const (
	// NetFrame is, both ways, an Ethernet frame without its check sequence, and with the
	// right checksums in it: who makes the Input vouches for them. A TCP segment over IPv4
	// may be larger than the MTU, up to IPv4's most, both ways.
	NetFrame uint8 = 1
	// NetLink is an Input, the link's state: Status 1 up, 0 down.
	NetLink uint8 = 2
)

// Features of a network device. 5.1.3.
const (
	netCSUM      = 0 // the driver leaves checksums to the device
	netGuestCSUM = 1 // the device leaves checksums to the driver, or says that they are right
	netMTU       = 3
	netMAC       = 5
	netGuestTSO4 = 7  // the driver takes TCP segments larger than the MTU
	netHostTSO4  = 11 // the device does
	netMrgRxbuf  = 15
	netStatus    = 16

	netFeatures = 1<<netCSUM | 1<<netGuestCSUM | 1<<netMTU | 1<<netMAC | 1<<netGuestTSO4 | 1<<netHostTSO4 | 1<<netMrgRxbuf | 1<<netStatus
)

// Of struct virtio_net_hdr. 5.1.6.
const (
	headerFlags       = 0
	headerType        = 1
	headerLength      = 2
	headerSegment     = 4
	headerStart       = 6
	headerOffset      = 8
	headerBuffers     = 10
	flagNeedsChecksum = 1
	flagValid         = 2
	segmentsNone      = 0
	segmentsTCP4      = 1
)

const (
	netReceive  = 0 // queues. 5.1.2
	netTransmit = 1

	netQueueMost  = 256
	netHeader     = 12 // struct virtio_net_hdr with num_buffers, as VERSION_1 has it. 5.1.6
	netFrameLeast = 14 // an Ethernet header
	netConfigSize = 12
	netLinkUp     = 1

	// mtuDefault is Ethernet's; NetMTUMax makes frames that fit IPv4's length.
	mtuDefault = 1500
	// NetMTUMax is the greatest MTU that a network device can have.
	NetMTUMax = 65520
	netMTUMin = 68 // 5.1.4.1
)

// NetOptions say what a network device is made as.
type NetOptions struct {
	MAC [6]byte
	MTU uint16 // bytes of a frame's payload; 0 for Ethernet's 1500
}

// NetCounters are frames that a network device did not pass on.
type NetCounters struct {
	ReceiveDropped  uint64 // no room in the driver's buffers, no driver, no link, or no size of a frame
	TransmitDropped uint64 // no link, no size of a frame, or an offload that was not offered
}

// Net is a network card with a pair of queues, that computes checksums and takes and gives
// large TCP segments over IPv4, if its driver wants that. 5.1.
type Net struct {
	transport
	o       NetOptions
	down    bool
	dropped NetCounters
}

// NewNet makes up a network card, its link up.
func NewNet(board device.Board, ram *memory.RAM, o NetOptions) (*Net, error) {
	if o.MTU == 0 {
		o.MTU = mtuDefault
	}
	if o.MTU < netMTUMin || o.MTU > NetMTUMax || o.MAC[0]&1 != 0 {
		return nil, fault.New(fault.Invalid, "a network card with address %x and MTU %d: it must be a station's address, and the MTU %d to %d",
			o.MAC, o.MTU, netMTUMin, NetMTUMax)
	}
	n := &Net{o: o}
	n.begin(n, board, ram, 1, netFeatures, netQueueMost, netQueueMost)
	return n, nil
}

// Counters returns what was dropped since the device was made up.
func (n *Net) Counters() NetCounters { return n.dropped }

// config is 5.1.4.
func (n *Net) config() []byte {
	c := make([]byte, netConfigSize)
	copy(c, n.o.MAC[:])
	if !n.down {
		binary.LittleEndian.PutUint16(c[6:], netLinkUp)
	}
	binary.LittleEndian.PutUint16(c[10:], n.o.MTU)
	return c
}

func (n *Net) configure(int, []byte) {}

// work sends what there is to send. Buffers for receiving wait for a frame.
func (n *Net) work(i int) {
	q := &n.queues[i]
	if i == netReceive {
		return
	}
	for left := n.available(q); left > 0; left-- {
		c, ok := n.take(q)
		if !ok {
			return
		}
		if c.from.length() < netHeader {
			n.fail()
			return
		}
		n.send(c)
		n.put(q, c.head, 0)
	}
	n.settle(q)
}

// fits tells whether a frame of so many bytes may pass. One VLAN tag may be in it.
func (n *Net) fits(size uint64) bool {
	return size >= netFrameLeast && size <= uint64(n.o.MTU)+netFrameLeast+4
}

// send passes a frame on, after what the driver left to the device was done. A frame
// that asks for what was not negotiated cannot be done right, and is dropped.
func (n *Net) send(c chain) {
	size := c.from.length() - netHeader
	var h [netHeader]byte
	n.gather(h[:], c.from, 0)
	needsChecksum, large := h[headerFlags]&flagNeedsChecksum != 0, h[headerType] != segmentsNone
	ok := !n.down && (!needsChecksum || n.has(netCSUM))
	if large {
		ok = ok && needsChecksum && h[headerType] == segmentsTCP4 && n.has(netHostTSO4) && size >= netFrameLeast && size <= frameMost
	} else {
		ok = ok && n.fits(size)
	}
	if !ok {
		n.dropped.TransmitDropped++
		return
	}
	frame := make([]byte, size)
	n.gather(frame, c.from, netHeader)
	if needsChecksum {
		start := int(binary.LittleEndian.Uint16(h[headerStart:]))
		ok = complete(frame, start, start+int(binary.LittleEndian.Uint16(h[headerOffset:])))
	}
	if large && ok {
		_, ok = parseTCP4(frame)
	}
	if !ok {
		n.dropped.TransmitDropped++
		return
	}
	n.board.Emit(device.Output{Kind: NetFrame, Data: frame})
}

// Deliver takes a frame, or the link's state.
func (n *Net) Deliver(in *device.Input) {
	switch in.Kind {
	case NetFrame:
		if !n.receive(in.Data) {
			n.dropped.ReceiveDropped++
		}
	case NetLink:
		if down := in.Status == 0; down != n.down {
			n.down = down
			n.changed()
		}
	}
}

// receive places a frame, or the pieces of a large one that the driver does not take whole.
func (n *Net) receive(frame []byte) bool {
	q := &n.queues[netReceive]
	if n.down || !n.running() || !q.ready {
		return false
	}
	packet := make([]byte, netHeader, netHeader+len(frame))
	if n.has(netGuestCSUM) {
		packet[headerFlags] = flagValid
	}
	if n.fits(uint64(len(frame))) {
		return n.place(q, append(packet, frame...))
	}
	t, ok := parseTCP4(frame)
	most := t.most(int(n.o.MTU))
	switch {
	case !ok || most <= 0:
		return false
	case !n.takesLarge():
		return t.cut(most, func(frame []byte) bool { return n.place(q, append(packet[:netHeader], frame...)) })
	}
	packet = append(packet, frame...)
	t.frame = packet[netHeader:]
	t.setPseudo()
	le := binary.LittleEndian
	packet[headerFlags], packet[headerType] = flagNeedsChecksum, segmentsTCP4
	le.PutUint16(packet[headerLength:], uint16(t.payload))
	le.PutUint16(packet[headerSegment:], uint16(most))
	le.PutUint16(packet[headerStart:], uint16(t.tcp))
	le.PutUint16(packet[headerOffset:], tcpChecksum)
	return n.place(q, packet)
}

// place puts a packet in one buffer, or in several when that is negotiated (5.1.6.3.1). When
// they do not hold it they stay for the next one.
func (n *Net) place(q *queue, packet []byte) bool {
	last := q.last
	buffers, ok := n.buffers(q, uint64(len(packet)))
	if !ok {
		q.last = last
		return false
	}
	binary.LittleEndian.PutUint16(packet[headerBuffers:], uint16(len(buffers)))
	for _, c := range buffers {
		size := min(c.into.length(), uint64(len(packet)))
		n.scatter(c.into, 0, packet[:size])
		n.put(q, c.head, uint32(size))
		packet = packet[size:]
	}
	n.settle(q)
	return true
}

// takesLarge tells whether the driver takes a large frame whole.
func (n *Net) takesLarge() bool { return n.has(netGuestTSO4) && n.has(netGuestCSUM) }

// Takes tells whether there is room for a frame of so many bytes, or none that is worth
// waiting for: no driver, one that makes no sense, or whose ring is too small for the frame
// even now that it has given all that it can. It changes nothing, so that it may be
// asked at any time and how often it is asked is no part of the machine.
func (n *Net) Takes(size int) bool {
	q := &n.queues[netReceive]
	if n.down || !n.running() || !q.ready {
		return true
	}
	left := n.read16(q.avail+2) - q.last
	if left > q.size-q.taken() {
		return true
	}
	// Some drivers have two descriptors for each buffer, and half a ring of them then.
	all := left >= max(q.size/2, 1)
	if most := int(n.o.MTU) - ipLeast - tcpLeast - 2*40; !n.fits(uint64(size)) && !n.takesLarge() {
		return all || int(left) > size/max(most, 1) // it comes in pieces
	}
	for room, at := 0, q.last; room < size+netHeader; at++ {
		if at-q.last == left {
			return all
		}
		c, ok := n.parse(q, n.read16(q.avail+4+2*uint64(at%q.size)))
		if !ok || !n.has(netMrgRxbuf) {
			return true
		}
		room += int(min(c.into.length(), frameMost))
	}
	return true
}

// buffers takes as many chains as hold so many bytes.
func (n *Net) buffers(q *queue, size uint64) ([]chain, bool) {
	var all []chain
	for left := n.available(q); left > 0; left-- {
		c, ok := n.take(q)
		if !ok {
			return nil, false
		}
		room := c.into.length()
		if room < netHeader || len(c.from) > 0 {
			n.fail()
			return nil, false
		}
		if room >= size {
			return append(all, c), true
		}
		if !n.has(netMrgRxbuf) {
			return nil, false
		}
		size -= room
		c.into = append(vector(nil), c.into...) // the next take is over it
		all = append(all, c)
	}
	return nil, false
}

// forget: nothing is in flight.
func (n *Net) forget(int) {}

func (n *Net) renew() {}

func (n *Net) save(e *device.Encoder) {
	e.Bool(n.down)
	e.U64(n.dropped.ReceiveDropped)
	e.U64(n.dropped.TransmitDropped)
}

func (n *Net) restore(d *device.Decoder) {
	n.down = d.Bool()
	n.dropped.ReceiveDropped = d.U64()
	n.dropped.TransmitDropped = d.U64()
}
