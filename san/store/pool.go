// Package store keeps thin, checksummed, snapshot-capable volumes on a pool
// of drives. See docs/adr/0002-store.md for the design and
// docs/formats/pool.md for the bytes.
//
// A write's way: Volume (partial blocks made whole, space admitted) -> commit
// (many writes become one chunk of the log, written by one write) -> applier
// (the chunk enters the map). A read's way: Volume -> map -> block cache or
// drive, checksum verified. Background work (checkpoints, cleaning,
// reclaiming, evacuation, scrub) happens in Maintain, in the caller's time.
//
// # Lock order
//
//	stripes of a volume   who writes which blocks
//	work                  one background piece at a time
//	logMu                 the tail of the log: chunks get their places, in order
//	applyMu               one chunk enters the map at a time, in that order
//	mu                    catalog and status
//	the tree's, space.mu  leaves
//
// Whoever holds logMu never waits for work: checkpoints need logMu for a moment.
// They may wait for chunks under way, which land without logMu.
//
// It trusts the drives to do what drive.Drive says, and believes nothing they
// return: a block is what its checksum in the map says, or it is an error.
package store

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/store/blockcache"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// Bounds of the background's laziness.
const (
	cacheBytesMin     = 16 << 20
	cacheBytesDefault = 256 << 20
	// logBlocksMax is how much log a checkpoint may lie behind: what recovery
	// reads at most, twice over. 128 MiB.
	logBlocksMax = 32 << 10
	// reservePercent of the segments, and at least reserveSegmentsMin of them,
	// are not for users: cleaning, trims and deletes always have room.
	reservePercent     = 8
	reserveSegmentsMin = 12
)

// Pool is an open pool. Its methods may be called from several goroutines; it
// starts none itself: the caller of Maintain lends it time for its background
// work, so that a simulation can run it on one thread.
type Pool struct {
	opt    Options
	id     ID
	name   string
	tag    uint64 // first bytes of id, in every chunk
	tree   *maptree.Tree
	blocks *blockcache.Cache
	space  *space

	queueMu sync.Mutex
	queue   []*op
	leading bool

	work sync.Mutex // held by the one that does background work
	bg   background // under work

	logMu sync.Mutex
	tail  tail
	// tailFailed: a write at the tail failed, so what lies there is unknown. The
	// log goes on elsewhere, after a checkpoint that names the new place.
	tailFailed atomic.Bool
	landed     atomic.Uint64 // sequence of the last chunk that is in the map
	durable    atomic.Uint64 // greatest sequence known to be durable
	position   atomic.Uint64 // greatest generation given out

	applyMu sync.Mutex
	applied uint64 // greatest generation in the map; under applyMu

	mu  sync.RWMutex
	cat *catalog

	closed atomic.Bool
	broken atomic.Pointer[error] // why nothing can be changed any more

	flushMu  sync.Mutex
	sequence atomic.Uint64 // of the last checkpoint

	dataBlocks  atomic.Int64  // live data blocks
	blobBlocks  atomic.Int64  // live blocks of catalog and table
	used        atomic.Int64  // blocks, as last computed
	capacity    atomic.Int64  // blocks for users
	reserved    atomic.Int64  // what of it is reserved below
	pending     atomic.Int64  // blocks set aside for operations under way
	wanted      atomic.Bool   // background work is due
	full        atomic.Bool   // a write was refused since the last event
	dropped     atomic.Uint64 // entries taken out that a reader may be on its way to
	streams     atomic.Uint64 // long runs read from drives
	corrupt     atomic.Uint64
	userBytes   atomic.Uint64
	written     atomic.Uint64
	aboveBefore atomic.Int32 // thresholds crossed, for the edge

	toldMu sync.Mutex
	told   map[string]bool // damages that were told, by their text

	scrubMu sync.Mutex
	scrub   scrub
}

// background is what Maintain keeps between calls.
type background struct {
	nodes, moves place // segments being filled with map nodes, and by the cleaner
	table        *liveTable
	placed       []format.Addr // nodes placed by the checkpoint under way
	tableBlob    format.Blob
	catalogBlob  format.Blob
	idle         uint64 // sequence of the log at the last call
	victim       victim
	lastResort   bool // a checkpoint was tried since cleaning last got on
}

// newPool makes the parts that creation and opening have in common.
func newPool(opt Options) (*Pool, error) {
	if opt.Now == nil || opt.NewID == nil {
		return nil, fault.New(fault.Invalid, "a pool needs a clock and a source of identifiers")
	}
	if opt.CacheBytes == 0 {
		opt.CacheBytes = cacheBytesDefault
	}
	opt.CacheBytes = max(opt.CacheBytes, cacheBytesMin)
	cache, err := blockcache.New(opt.CacheBytes - nodeCacheBytes(opt))
	if err != nil {
		return nil, fault.Wrap(fault.Limit, err, "no memory for the cache")
	}
	return &Pool{opt: opt, blocks: cache, space: &space{}, cat: newCatalog(), told: map[string]bool{}}, nil
}

// nodeCacheBytes is the part of the cache that holds map nodes.
func nodeCacheBytes(opt Options) int64 { return opt.CacheBytes / 3 }

func (p *Pool) setID(id ID) {
	p.id, p.tag = id, binary.LittleEndian.Uint64(id[:])
}

// Create formats drives as a new, empty pool and opens it. It refuses drives
// that hold a pool already (fault.Exists).
func Create(name string, opt Options, drives []NamedDrive) (*Pool, error) {
	if len(drives) == 0 || len(drives) > format.DrivesMax {
		return nil, fault.New(fault.Invalid, "a pool has 1 to %d drives", format.DrivesMax)
	}
	p, err := newPool(opt)
	if err != nil {
		return nil, err
	}
	p.name = name
	p.setID(opt.NewID())
	for i, d := range drives {
		dv, err := p.formatDrive(i, d)
		if err != nil {
			return nil, closing(p, err)
		}
		p.space.devs = append(p.space.devs, dv)
	}
	p.tree = maptree.New(pager{p}, maptree.Options{CacheBytes: nodeCacheBytes(opt)})
	p.tail = tail{sequence: 1, lsn: 1, sealed: true}
	p.tailFailed.Store(true) // until the first checkpoint names its place
	p.work.Lock()
	defer p.work.Unlock()
	for range reserveSegmentsMin {
		p.space.prepare()
	}
	if p.space.tally().ready < reserveSegmentsMin {
		return nil, closing(p, fault.New(fault.Full, "the drives' filesystems have no room for a pool"))
	}
	if err := p.checkpoint(); err != nil {
		return nil, closing(p, err)
	}
	p.recapacity()
	p.refreshUsed()
	return p, nil
}

func closing(p *Pool, err error) error {
	_ = p.blocks.Close() // unmapping what was never used cannot say more than err
	return err
}

// formatDrive prepares a drive to be number i of the pool. Nothing is written
// yet but over old superblocks of nobody.
func (p *Pool) formatDrive(i int, nd NamedDrive) (*dev, error) {
	blocks := uint64(nd.Drive.Size() / format.BlockSize)
	if blocks < format.DriveBlocksMin {
		return nil, fault.New(fault.Invalid, "drive %s is smaller than %d MiB", nd.Name, format.DriveBlocksMin*format.BlockSize>>20)
	}
	buf := bufpool.Get(format.SuperblockSize)
	defer bufpool.Put(buf)
	for slot := range format.SuperblockSlots {
		if err := nd.Drive.ReadAt(buf, int64(format.SuperblockBlock(slot))*format.BlockSize); err != nil {
			return nil, fault.Wrap(fault.KindOf(err), err, "drive "+nd.Name)
		}
		if sb, _, err := format.DecodeSuperblock(buf); err == nil {
			return nil, fault.New(fault.Exists, "drive %s belongs to pool %q already", nd.Name, sb.Name)
		}
	}
	// The superblocks' place must be there even when the filesystem is full.
	if err := nd.Drive.Reserve(0, format.FirstBlock*format.BlockSize); err != nil {
		return nil, err
	}
	return newDev(i, p.opt.NewID(), nd.Name, nd.Drive, blocks, format.SegmentBlocks(blocks)), nil
}

// Close stops admission, writes a checkpoint and leaves the drives to the
// caller to close.
func (p *Pool) Close() error {
	p.work.Lock()
	defer p.work.Unlock()
	if p.closed.Swap(true) {
		return fault.New(fault.Canceled, "the pool is closed already")
	}
	err := p.usable()
	if err == nil {
		err = p.checkpoint()
	}
	if cerr := p.blocks.Close(); err == nil {
		err = cerr
	}
	return err
}

// usable returns why nothing can be changed, or nil.
func (p *Pool) usable() error {
	if err := p.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// admitting is usable for users' requests: not when the pool is closed.
func (p *Pool) admitting() error {
	if p.closed.Load() {
		return fault.New(fault.Canceled, "the pool is closed")
	}
	return p.usable()
}

// halt ends all changes: what memory says is not what the log says any more.
func (p *Pool) halt(err error) {
	err = fault.Wrap(fault.Failed, err, "the pool stopped; reads go on, restart it to recover")
	p.broken.CompareAndSwap(nil, &err)
}

// noteFailed halts the pool when no drive can be written.
func (p *Pool) noteFailed() {
	if len(p.space.healthy()) > 0 {
		return
	}
	p.halt(fault.New(fault.Failed, "no drive of the pool can be written"))
}

// driveFailed takes a drive out, and tells once.
func (p *Pool) driveFailed(d *dev, err error) {
	if p.space.fail(d, err) {
		p.notify(Event{Kind: EventDriveFailed, Drive: d.name, Text: "drive " + d.name + " failed and was taken out: " + err.Error()})
	}
	p.recapacity()
	p.wanted.Store(true)
}

func (p *Pool) notify(e Event) {
	if p.opt.Notify != nil {
		p.opt.Notify(e)
	}
}

// anyUnsynced tells whether something is written that a power loss may undo.
func (p *Pool) anyUnsynced() bool {
	for _, d := range p.space.list() {
		if d.unsynced.Load() {
			return true
		}
	}
	return false
}

// syncDrives makes everything written before the call stable. What lies
// unflushed on a drive that failed cannot be: until a checkpoint has moved the
// log off that drive, that is an error for everyone.
func (p *Pool) syncDrives() error {
	if err := p.flushDrives(); err != nil {
		return err
	}
	for _, d := range p.space.list() {
		if d.unsynced.Load() && p.space.stateOf(d) == devFailed {
			return fault.New(fault.Failed, "drive %s failed with writes that were not flushed", d.name)
		}
	}
	return nil
}

// flushLog is syncDrives for the log's sake: later chunks then tell that those
// before the call were durable.
func (p *Pool) flushLog() error {
	before := p.landed.Load()
	if err := p.syncDrives(); err != nil {
		return err
	}
	raise(&p.durable, before)
	return nil
}

// flushDrives flushes the drives that work.
func (p *Pool) flushDrives() error {
	p.flushMu.Lock()
	defer p.flushMu.Unlock()
	var first error
	for _, d := range p.space.healthy() {
		if !d.unsynced.Swap(false) {
			continue
		}
		if err := d.drive.Flush(); err != nil {
			d.unsynced.Store(true)
			p.driveFailed(d, err)
			if first == nil {
				first = err
			}
		}
	}
	return first
}

// pager places map nodes; see maptree.Pager.
type pager struct{ p *Pool }

// ReadNode implements maptree.Pager.
func (g pager) ReadNode(a maptree.Addr, p []byte) error {
	return g.p.readAligned(format.Addr(a), p)
}

// WriteNodes implements maptree.Pager. Only a checkpoint calls it.
func (g pager) WriteNodes(nodes [][]byte) ([]maptree.Addr, error) {
	addrs, err := g.p.writeMeta(nodes)
	out := make([]maptree.Addr, len(addrs))
	for i, a := range addrs {
		out[i] = maptree.Addr(a)
	}
	return out, err
}

// FreeNode implements maptree.Pager.
func (g pager) FreeNode(a maptree.Addr) { g.p.space.count(format.Addr(a), -1) }

// readAligned reads into p, through a buffer of ours if p is not aligned.
func (p *Pool) readAligned(a format.Addr, b []byte) error {
	if bufpool.IsAligned(b) {
		return p.space.read(a, b)
	}
	buf := bufpool.Get(len(b))
	defer bufpool.Put(buf)
	if err := p.space.read(a, buf); err != nil {
		return err
	}
	copy(b, buf)
	return nil
}
