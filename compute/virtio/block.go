package virtio

import (
	"encoding/binary"
	"slices"

	"steadfast/block"
	"steadfast/compute/device"
	"steadfast/compute/memory"
	"steadfast/fault"
)

// What a block device says by Output.Kind: one of these, with flags. Offset and Length
// are bytes, Data is what is written. Each is answered by a BlockDone with its ID, in
// any order; until then it is in flight, and its Data, which the device may have to
// save, is not to be changed by anybody.
//
// Requests in flight may be done in any order and at once: a driver that cares waits.
const (
	BlockRead    uint8 = 1
	BlockWrite   uint8 = 2
	BlockFlush   uint8 = 3 // every write answered before is to be stable
	BlockDiscard uint8 = 4 // the content is no longer needed
	BlockZero    uint8 = 5

	// BlockStable is a flag of BlockWrite and BlockZero: what is answered is stable.
	BlockStable uint8 = 0x80
	// BlockUnmap is a flag of BlockZero: the space may be freed.
	BlockUnmap uint8 = 0x40
)

// What a block device takes by Input.Kind.
const (
	// BlockDone answers the Output with its ID: Status is BlockOK, BlockError or
	// BlockUnsupported, Data what was read. Of an ID that is not in flight it is ignored.
	BlockDone uint8 = 1
	// BlockResized gives the device another size: Data is eight bytes, little-endian, a
	// multiple of block.SectorSize.
	BlockResized uint8 = 2
)

// Status of an answer. 5.2.6.
const (
	BlockOK          uint8 = 0
	BlockError       uint8 = 1
	BlockUnsupported uint8 = 2
)

// Features of a block device. 5.2.3.
const (
	blockSizeMax     = 1
	blockSegMax      = 2
	blockRO          = 5
	blockBlkSize     = 6
	blockFlush       = 9
	blockTopology    = 10
	blockConfigWCE   = 11
	blockDiscard     = 13
	blockWriteZeroes = 14
)

// Types of requests. 5.2.6.
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13
)

// Bounds of a block device.
const (
	blockQueueMost = 256
	segMax         = blockQueueMost - 2 // and the header and the status
	sizeMax        = 64 << 10           // bytes of a piece
	// requestMax is the most that one request reads or writes, in bytes.
	requestMax = segMax * sizeMax
	// inFlightMax is how many bytes in flight make the device leave further requests in
	// the ring. The last one that is taken may go over it.
	inFlightMax = 16 << 20
	// rangeSectorsMax is of one discard or write zeroes.
	rangeSectorsMax = 1 << 22

	requestHeader = 16
	serialLength  = 20

	configWriteback = 32
	blockConfigSize = 60
)

// BlockOptions say what a block device is made as.
type BlockOptions struct {
	Size     int64  // bytes, a multiple of block.SectorSize
	ReadOnly bool   // writes, discards and zeroes are not offered
	Serial   string // what GET_ID answers: at most 20 bytes
}

// Block is a disk. 5.2.
type Block struct {
	transport
	o         BlockOptions
	size      int64
	writeback bool
	lastID    uint64
	requests  []request // in flight, by rising ID
	bytes     int64     // of theirs
	// strays are requests whose driver has gone, by a reset, while they were in flight.
	// Until they are answered no new one begins: it would overtake a change to the disk,
	// and a driver that resets without end would have the world do ever more at once.
	strays []device.Output
}

// request is in flight: what was asked for, and where its answer goes.
type request struct {
	out  device.Output
	head uint16
	into vector // what is read, and at its end the status
}

// NewBlock makes up a disk.
func NewBlock(board device.Board, ram *memory.RAM, o BlockOptions) (*Block, error) {
	if o.Size < 0 || o.Size%block.SectorSize != 0 || len(o.Serial) > serialLength {
		return nil, fault.New(fault.Invalid, "a disk of %d bytes with serial %q: the size must be a multiple of %d, the serial at most %d bytes",
			o.Size, o.Serial, block.SectorSize, serialLength)
	}
	b := &Block{o: o, size: o.Size, writeback: true}
	features := uint64(1<<blockSizeMax | 1<<blockSegMax | 1<<blockBlkSize | 1<<blockFlush | 1<<blockTopology | 1<<blockConfigWCE)
	if o.ReadOnly {
		features |= 1 << blockRO
	} else {
		features |= 1<<blockDiscard | 1<<blockWriteZeroes
	}
	b.begin(b, board, ram, 2, features, blockQueueMost)
	return b, nil
}

// config is 5.2.4.
func (b *Block) config() []byte {
	c := make([]byte, blockConfigSize)
	le := binary.LittleEndian
	le.PutUint64(c[0:], uint64(b.size/block.SectorSize))
	le.PutUint32(c[8:], sizeMax)
	le.PutUint32(c[12:], segMax)
	le.PutUint32(c[20:], block.SectorSize)
	c[24] = 3                                              // a physical block is 2^3 logical ones
	le.PutUint16(c[26:], block.BlockSize/block.SectorSize) // and the least I/O that is fast
	if b.writeback {
		c[configWriteback] = 1
	}
	if !b.o.ReadOnly {
		le.PutUint32(c[36:], rangeSectorsMax)
		le.PutUint32(c[40:], 1)
		le.PutUint32(c[44:], block.BlockSize/block.SectorSize)
		le.PutUint32(c[48:], rangeSectorsMax)
		le.PutUint32(c[52:], 1)
		c[56] = 1 // write zeroes may unmap
	}
	return c
}

// configure takes the one field that is the driver's: writeback, if that was negotiated.
func (b *Block) configure(offset int, p []byte) {
	if offset == configWriteback && len(p) == 1 && b.has(blockConfigWCE) {
		b.writeback = p[0] != 0
	}
}

// stable is the flag for writes when there is no write cache: the driver has turned
// it off, or cannot flush it. 5.2.5.2.
func (b *Block) stable() uint8 {
	if b.writeback && b.has(blockFlush) {
		return 0
	}
	return BlockStable
}

// work takes requests until a bound is reached.
func (b *Block) work(int) {
	q := &b.queues[0]
	for left := b.available(q); left > 0 && len(b.strays) == 0 && b.bytes < inFlightMax; left-- {
		c, ok := b.take(q)
		if !ok {
			return
		}
		if c.from.length() < requestHeader || c.into.length() < 1 {
			b.fail()
			return
		}
		b.request(c)
	}
	b.settle(q)
}

// request begins one, or answers it at once. The header is the first 16 bytes, the
// status the last one, however the driver has cut them. 2.7.4.
func (b *Block) request(c chain) {
	var h [requestHeader]byte
	b.gather(h[:], c.from, 0)
	kind, sector := binary.LittleEndian.Uint32(h[0:]), binary.LittleEndian.Uint64(h[8:])
	var out device.Output
	status := BlockUnsupported
	switch kind {
	case typeIn:
		out, status = b.transfer(BlockRead, sector, c.into.length()-1)
	case typeOut:
		n := c.from.length() - requestHeader
		if out, status = b.transfer(BlockWrite|b.stable(), sector, n); status == BlockOK {
			out.Data = make([]byte, n)
			b.gather(out.Data, c.from, requestHeader)
		}
	case typeFlush:
		out, status = device.Output{Kind: BlockFlush}, BlockOK
	case typeGetID:
		b.identify(c)
		return
	case typeDiscard, typeWriteZeroes:
		out, status = b.sectors(kind, c)
	}
	if status != BlockOK {
		b.answer(c.head, c.into, status, nil)
		return
	}
	b.lastID++
	out.ID = b.lastID
	b.requests = append(b.requests, request{out, c.head, slices.Clone(c.into)})
	b.bytes += weight(out)
	b.board.Emit(out)
}

// weight is what a request counts for inFlightMax: bytes that are kept for it, or come.
func weight(out device.Output) int64 {
	if out.Kind == BlockRead {
		return out.Length
	}
	return int64(len(out.Data))
}

// within tells whether n bytes from a sector on are all there.
func (b *Block) within(sector, n uint64) bool {
	sectors := uint64(b.size / block.SectorSize)
	return n%block.SectorSize == 0 && sector <= sectors && n/block.SectorSize <= sectors-sector
}

// transfer judges a read or a write.
func (b *Block) transfer(kind uint8, sector, n uint64) (device.Output, uint8) {
	if n == 0 || n > requestMax || !b.within(sector, n) || kind != BlockRead && b.o.ReadOnly {
		return device.Output{}, BlockError
	}
	return device.Output{Kind: kind, Offset: int64(sector) * block.SectorSize, Length: int64(n)}, BlockOK
}

// sectors judges a discard or write zeroes, of one range. 5.2.6.2.
func (b *Block) sectors(kind uint32, c chain) (device.Output, uint8) {
	const unmap = 1
	var p [16]byte
	switch n := c.from.length() - requestHeader; {
	case b.o.ReadOnly || n == 0 || n%uint64(len(p)) != 0:
		return device.Output{}, BlockError
	case n > uint64(len(p)):
		return device.Output{}, BlockUnsupported
	}
	b.gather(p[:], c.from, requestHeader)
	sector, count, flags := binary.LittleEndian.Uint64(p[0:]), binary.LittleEndian.Uint32(p[8:]), binary.LittleEndian.Uint32(p[12:])
	out := device.Output{Kind: BlockDiscard}
	switch {
	case flags&^unmap != 0 || kind == typeDiscard && flags != 0:
		return device.Output{}, BlockUnsupported
	case count == 0 || count > rangeSectorsMax || !b.within(sector, uint64(count)*block.SectorSize):
		return device.Output{}, BlockError
	case kind == typeWriteZeroes:
		out.Kind = BlockZero | b.stable()
		if flags&unmap != 0 {
			out.Kind |= BlockUnmap
		}
	}
	out.Offset, out.Length = int64(sector)*block.SectorSize, int64(count)*block.SectorSize
	return out, BlockOK
}

// identify answers GET_ID: the serial, and zeros after it.
func (b *Block) identify(c chain) {
	id := make([]byte, serialLength)
	copy(id, b.o.Serial)
	b.answer(c.head, c.into, BlockOK, id[:min(serialLength, c.into.length()-1)])
}

// answer writes what was read, and the status, and gives the chain back. What it
// says was written is what was from the first byte on without a gap.
func (b *Block) answer(head uint16, into vector, status uint8, data []byte) {
	n := into.length()
	b.scatter(into, 0, data)
	b.scatter(into, n-1, []byte{status})
	written := uint32(len(data))
	if uint64(written) == n-1 {
		written++
	}
	b.put(&b.queues[0], head, written)
}

// Deliver takes an answer, or another size.
func (b *Block) Deliver(in *device.Input) {
	switch in.Kind {
	case BlockDone:
		b.done(in)
	case BlockResized:
		b.resize(in.Data)
	}
}

func (b *Block) done(in *device.Input) {
	i := slices.IndexFunc(b.requests, func(r request) bool { return r.out.ID == in.ID })
	if i < 0 {
		b.strayed(in.ID)
		return
	}
	r := b.requests[i]
	b.requests = slices.Delete(b.requests, i, i+1)
	b.bytes -= weight(r.out)
	status, data := in.Status, []byte(nil)
	if status > BlockUnsupported {
		status = BlockError
	}
	if r.out.Kind == BlockRead && status == BlockOK {
		data = in.Data
		if int64(len(data)) != r.out.Length {
			status, data = BlockError, nil
		}
	}
	b.answer(r.head, r.into, status, data)
	b.work(0) // settles, too
}

// strayed takes the answer to what nobody waits for but those that come after it.
func (b *Block) strayed(id uint64) {
	i := slices.IndexFunc(b.strays, func(out device.Output) bool { return out.ID == id })
	if i < 0 {
		return
	}
	b.strays = slices.Delete(b.strays, i, i+1)
	if len(b.strays) == 0 {
		b.look(0)
	}
}

func (b *Block) resize(p []byte) {
	if len(p) != 8 {
		return
	}
	size := int64(binary.LittleEndian.Uint64(p))
	if size < 0 || size%block.SectorSize != 0 || size == b.size {
		return
	}
	b.size = size
	b.changed()
}

// forget makes strays of what is in flight.
func (b *Block) forget(int) {
	for _, r := range b.requests {
		b.strays = append(b.strays, r.out)
	}
	b.requests, b.bytes = nil, 0
}

// renew: a write cache is on until a driver turns it off.
func (b *Block) renew() { b.writeback = true }

// Pending returns, by rising ID, the outputs whose answers are due: who restores a
// machine elsewhere has to see to them as if they had been emitted now. A change
// that was already done may be done once more.
func (b *Block) Pending() []device.Output {
	var all []device.Output
	all = append(all, b.strays...) // they have lower IDs: nothing begins while there are some
	for _, r := range b.requests {
		all = append(all, r.out)
	}
	return all
}

func saveOutput(e *device.Encoder, out device.Output) {
	e.U8(out.Kind)
	e.U64(out.ID)
	e.U64(uint64(out.Offset))
	e.U64(uint64(out.Length))
	e.Data(out.Data)
}

// restoreOutput takes one whose ID is above another's.
func (b *Block) restoreOutput(d *device.Decoder, after uint64) device.Output {
	out := device.Output{Kind: d.U8(), ID: d.U64(), Offset: int64(d.U64()), Length: int64(d.U64())}
	if p := d.Data(requestMax); len(p) > 0 {
		out.Data = slices.Clone(p)
	}
	wants := int64(0)
	if out.Kind&^BlockStable == BlockWrite {
		wants = out.Length
	}
	if out.ID <= after || out.ID > b.lastID || out.Offset < 0 || out.Length < 0 || int64(len(out.Data)) != wants {
		d.Fail("a disk's request that cannot be")
	}
	return out
}

func (b *Block) save(e *device.Encoder) {
	e.U64(uint64(b.size))
	e.Bool(b.writeback)
	e.U64(b.lastID)
	e.U16(uint16(len(b.strays)))
	for _, out := range b.strays {
		saveOutput(e, out)
	}
	e.U16(uint16(len(b.requests)))
	for _, r := range b.requests {
		saveOutput(e, r.out)
		e.U16(r.head)
		r.into.save(e)
	}
}

func (b *Block) restore(d *device.Decoder) {
	b.size = int64(d.U64())
	b.writeback = d.Bool()
	b.lastID = d.U64()
	b.requests, b.strays, b.bytes = nil, nil, 0
	if b.size < 0 || b.size%block.SectorSize != 0 {
		d.Fail("a disk's size that cannot be")
	}
	after := uint64(0)
	for n := d.U16(); n > 0 && d.Err() == nil; n-- {
		out := b.restoreOutput(d, after)
		after = out.ID
		b.strays = append(b.strays, out)
	}
	for n := d.U16(); n > 0 && d.Err() == nil; n-- {
		r := request{out: b.restoreOutput(d, after), head: d.U16(), into: restoreVector(d, b.ram, blockQueueMost)}
		if n := r.into.length(); n < 1 || r.out.Kind == BlockRead && n-1 != uint64(r.out.Length) {
			d.Fail("a disk's request without room for its answer")
		}
		after = r.out.ID
		b.bytes += weight(r.out)
		b.requests = append(b.requests, r)
	}
	if b.running() && len(b.requests) != int(b.queues[0].taken()) || !b.running() && len(b.requests) > 0 {
		d.Fail("a disk's requests are not those of its queue")
	}
}
