package virtio

import (
	"encoding/binary"

	"steadfast/compute/device"
	"steadfast/compute/memory"
	"steadfast/fault"
)

// Registers of the memory-mapped transport, version 2. 4.2.2.
const (
	regMagic             = 0x000
	regVersion           = 0x004
	regDeviceID          = 0x008
	regVendorID          = 0x00c
	regDeviceFeatures    = 0x010
	regDeviceFeaturesSel = 0x014
	regDriverFeatures    = 0x020
	regDriverFeaturesSel = 0x024
	regQueueSel          = 0x030
	regQueueNumMax       = 0x034
	regQueueNum          = 0x038
	regQueueReady        = 0x044
	regQueueNotify       = 0x050
	regInterruptStatus   = 0x060
	regInterruptACK      = 0x064
	regStatus            = 0x070
	regQueueDescLow      = 0x080
	regQueueDescHigh     = 0x084
	regQueueDriverLow    = 0x090
	regQueueDriverHigh   = 0x094
	regQueueDeviceLow    = 0x0a0
	regQueueDeviceHigh   = 0x0a4
	regSHMLenLow         = 0x0b0
	regSHMBaseHigh       = 0x0bc
	regConfigGeneration  = 0x0fc
	regConfig            = 0x100
)

const (
	magic   = 0x74726976 // "virt"
	version = 2
	vendor  = 0x44465453 // "STFD"
)

// Bits of the device status. 2.1.
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
	statusNeedsReset  = 64
	statusFailed      = 128

	// statusOfDriver are those that a driver sets.
	statusOfDriver = statusAcknowledge | statusDriver | statusDriverOK | statusFeaturesOK | statusFailed
)

// Bits of the interrupt status. 4.2.2.
const (
	interruptUsed   = 1
	interruptConfig = 2
)

// Features that are the transport's own. 6.
const (
	featureIndirect = 28
	featureEventIdx = 29
	featureVersion1 = 32

	featuresOfTransport = 1<<featureIndirect | 1<<featureEventIdx | 1<<featureVersion1
)

// class is what one kind of device is behind the transport.
type class interface {
	// config is the device's configuration space as it is now. 2.5.
	config() []byte
	// configure takes what a driver stores into it, within its length.
	configure(offset int, p []byte)
	// work looks at what a driver has made available in a queue that is ready.
	work(q int)
	// forget drops what is in flight of a queue: its memory is the driver's again.
	forget(q int)
	// renew is told of a reset by the driver, after forget for every queue.
	renew()
	// save and restore are of what class keeps, after the transport's own is there.
	save(e *device.Encoder)
	restore(d *device.Decoder)
}

// transport is the part of a device that all kinds have: registers, status,
// features, queues, interrupts.
type transport struct {
	board device.Board
	ram   *memory.RAM
	class class

	kind    uint32 // the device's ID. 5.
	offered uint64

	status     uint8
	interrupt  uint8
	deviceSel  uint32
	driverSel  uint32
	driver     uint64 // the features that the driver wants
	queueSel   uint32
	generation uint32
	queues     []queue

	// from and into are a chain's pieces: see take.
	from, into vector
	// spent is what was done since Spent was called, no part of the state.
	spent uint64
}

// pieceCost is what a descriptor costs to look at, in units of a byte that is copied.
const pieceCost = 64

// Spent is how much the device has done for its driver since it was last asked, in bytes
// copied, with so many more for each descriptor: who runs the machine bounds it.
func (t *transport) Spent() uint64 {
	n := t.spent
	t.spent = 0
	return n
}

// begin makes up a transport for a kind with queues of at most so many descriptors.
func (t *transport) begin(c class, board device.Board, ram *memory.RAM, kind uint32, features uint64, queues ...uint16) {
	t.board, t.ram, t.class, t.kind = board, ram, c, kind
	t.offered = features | featuresOfTransport
	for _, most := range queues {
		t.queues = append(t.queues, queue{most: most})
	}
}

// has tells whether a feature is negotiated.
func (t *transport) has(bit int) bool {
	return t.status&statusFeaturesOK != 0 && t.driver>>bit&1 != 0
}

// running tells whether the device may look at its queues. 3.1.1.
func (t *transport) running() bool {
	return t.status&(statusDriverOK|statusNeedsReset) == statusDriverOK
}

// Load reads a register (only whole ones of four bytes: 4.2.2.2) or a part of the
// configuration space.
func (t *transport) Load(offset uint64, size int) uint64 {
	if offset >= regConfig {
		return t.loadConfig(offset-regConfig, size)
	}
	if size != 4 {
		return 0
	}
	return uint64(t.load(offset))
}

func (t *transport) loadConfig(offset uint64, size int) uint64 {
	c := t.class.config()
	if offset >= uint64(len(c)) {
		return 0
	}
	var p [8]byte
	copy(p[:size], c[offset:])
	return binary.LittleEndian.Uint64(p[:])
}

func (t *transport) load(offset uint64) uint32 {
	switch offset {
	case regMagic:
		return magic
	case regVersion:
		return version
	case regDeviceID:
		return t.kind
	case regVendorID:
		return vendor
	case regDeviceFeatures:
		return half(t.offered, t.deviceSel)
	case regQueueNumMax:
		if q := t.selected(); q != nil {
			return uint32(q.most)
		}
	case regQueueReady:
		if q := t.selected(); q != nil && q.ready {
			return 1
		}
	case regInterruptStatus:
		return uint32(t.interrupt)
	case regStatus:
		return uint32(t.status)
	case regConfigGeneration:
		return t.generation
	}
	if offset >= regSHMLenLow && offset <= regSHMBaseHigh {
		return ^uint32(0) // no shared memory region. 4.2.2
	}
	return 0
}

// half returns 32 of the bits of a set of features.
func half(features uint64, sel uint32) uint32 {
	switch sel {
	case 0:
		return uint32(features)
	case 1:
		return uint32(features >> 32)
	default:
		return 0
	}
}

// selected is the queue that QueueSel names, or nil.
func (t *transport) selected() *queue {
	if t.queueSel < uint32(len(t.queues)) {
		return &t.queues[t.queueSel]
	}
	return nil
}

// Store writes a register, or a part of the configuration space.
func (t *transport) Store(offset uint64, size int, value uint64) {
	if offset >= regConfig {
		offset -= regConfig
		if n := uint64(len(t.class.config())); offset < n && uint64(size) <= n-offset {
			var p [8]byte
			binary.LittleEndian.PutUint64(p[:], value)
			t.class.configure(int(offset), p[:size])
		}
		return
	}
	if size == 4 {
		t.store(offset, uint32(value))
	}
}

func (t *transport) store(offset uint64, v uint32) {
	switch offset {
	case regDeviceFeaturesSel:
		t.deviceSel = v
	case regDriverFeaturesSel:
		t.driverSel = v
	case regDriverFeatures:
		t.setFeatures(v)
	case regQueueSel:
		t.queueSel = v
	case regQueueReady:
		t.setReady(v)
	case regQueueNotify:
		if v < uint32(len(t.queues)) {
			t.look(int(v))
		}
	case regInterruptACK:
		t.interrupt &^= uint8(v)
		t.board.Interrupt(t.interrupt != 0)
	case regStatus:
		t.setStatus(uint8(v))
	default:
		if q := t.selected(); q != nil && !q.ready {
			q.place(offset, v)
		}
	}
}

// setFeatures takes 32 bits of what the driver wants. After FEATURES_OK it is late. 3.1.1.
func (t *transport) setFeatures(v uint32) {
	if t.status&statusFeaturesOK != 0 {
		return
	}
	switch t.driverSel {
	case 0:
		t.driver = t.driver&^0xffff_ffff | uint64(v)
	case 1:
		t.driver = t.driver&0xffff_ffff | uint64(v)<<32
	}
}

// setStatus takes the driver's progress. FEATURES_OK does not stay when what was
// asked for was not offered, or is not VERSION_1 (6.1); the driver looks. DRIVER_OK
// makes the device look at queues, for a driver that has notified too early.
func (t *transport) setStatus(v uint8) {
	if v == 0 {
		t.reset()
		return
	}
	was := t.status
	v = was | v&statusOfDriver
	if t.driver&^t.offered != 0 || t.driver>>featureVersion1&1 == 0 {
		v &^= statusFeaturesOK
	}
	if v&statusFeaturesOK == 0 {
		v &^= statusDriverOK
	}
	t.status = v
	if v&^was&statusDriverOK != 0 {
		for i := range t.queues {
			t.look(i)
		}
	}
}

// reset is what storing 0 to the status does. 2.4.
func (t *transport) reset() {
	t.status, t.driver, t.deviceSel, t.driverSel, t.queueSel = 0, 0, 0, 0, 0
	for i := range t.queues {
		t.queues[i] = queue{most: t.queues[i].most}
		t.class.forget(i)
	}
	t.class.renew()
	t.interrupt = 0
	t.board.Interrupt(false)
}

// Reset does what a driver's reset does, for a machine that restarts: what the world owes
// stays owed. A device of another kind it leaves alone.
func Reset(d device.Device) {
	if r, ok := d.(interface{ reset() }); ok {
		r.reset()
	}
}

// setReady makes the selected queue the device's, or the driver's again. 4.2.2.
func (t *transport) setReady(v uint32) {
	q := t.selected()
	switch {
	case q == nil || q.ready == (v&1 != 0):
	case q.ready:
		*q = queue{most: q.most}
		t.class.forget(int(t.queueSel))
	case t.status&statusFeaturesOK == 0 || !q.fits(t.ram):
		t.fail()
	default:
		q.ready, q.last, q.next, q.told = true, 0, 0, 0
	}
}

// look has a queue looked at, if it is one that may be.
func (t *transport) look(i int) {
	if t.running() && t.queues[i].ready {
		t.class.work(i)
	}
}

// fail says that the driver's doing makes no sense: DEVICE_NEEDS_RESET, and nothing
// more until it is reset. 2.1.2.
func (t *transport) fail() {
	if t.status&statusNeedsReset != 0 {
		return
	}
	t.status |= statusNeedsReset
	for i := range t.queues {
		t.class.forget(i)
	}
	if t.status&statusDriverOK != 0 {
		t.raise(interruptConfig)
	}
}

// changed says that the configuration space is another.
func (t *transport) changed() {
	t.generation++
	if t.status&statusDriverOK != 0 {
		t.raise(interruptConfig)
	}
}

func (t *transport) raise(bits uint8) {
	t.interrupt |= bits
	t.board.Interrupt(true)
}

// stateVersion is of the saved bytes of every device of this package.
const stateVersion = 1

// Save appends the device's state. docs/formats/machine.md
func (t *transport) Save(e *device.Encoder) {
	e.U8(stateVersion)
	e.U32(t.kind)
	e.U64(t.offered)
	e.U8(t.status)
	e.U8(t.interrupt)
	e.U32(t.deviceSel)
	e.U32(t.driverSel)
	e.U64(t.driver)
	e.U32(t.queueSel)
	e.U32(t.generation)
	for i := range t.queues {
		t.queues[i].save(e)
	}
	t.class.save(e)
}

// Restore takes what Save has made. It does not call Board.Interrupt.
func (t *transport) Restore(d *device.Decoder) error {
	if v := d.U8(); d.Err() == nil && v != stateVersion {
		return fault.New(fault.Invalid, "a saved device of version %d: this program knows %d", v, stateVersion)
	}
	if kind, offered := d.U32(), d.U64(); d.Err() == nil && (kind != t.kind || offered != t.offered) {
		return fault.New(fault.Invalid, "a saved device of kind %d with features %#x: this one is of kind %d with %#x", kind, offered, t.kind, t.offered)
	}
	t.status = d.U8()
	t.interrupt = d.U8()
	t.deviceSel = d.U32()
	t.driverSel = d.U32()
	t.driver = d.U64()
	t.queueSel = d.U32()
	t.generation = d.U32()
	if t.status&^(statusOfDriver|statusNeedsReset) != 0 || t.interrupt&^(interruptUsed|interruptConfig) != 0 ||
		t.status&statusFeaturesOK != 0 && t.driver&^t.offered != 0 {
		d.Fail("a device's status that cannot be")
	}
	for i := range t.queues {
		t.queues[i].restore(d, t.ram)
	}
	t.class.restore(d)
	return d.Err()
}
