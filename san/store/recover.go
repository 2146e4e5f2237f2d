package store

import (
	"sort"
	"strings"

	"github.com/zeebo/xxh3"

	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// lsnGap is how many generations an opening leaves unused, so that one that a
// lost end of the log had used never names another block. The first chunk of a
// life is therefore durable: of two lives that leave nothing behind, the second
// would use the generations of the first.
const lsnGap = 1 << 20

// Open opens the pool that lies on drives, whatever crash it was left by.
// fault.NotFound when there is none; fault.Invalid with the missing drives'
// names when some are absent.
func Open(opt Options, drives []NamedDrive) (*Pool, error) {
	p, err := recoverPool(opt, drives)
	if err != nil {
		return nil, err
	}
	// What was read may be in memory only (the process died, the machine did
	// not): before it is served it is made stable, so that an answer never
	// depends on what a power loss could still undo.
	for _, d := range p.space.healthy() {
		d.unsynced.Store(true)
	}
	if err := p.clearTail(); err != nil {
		return nil, closing(p, err)
	}
	if err := p.syncDrives(); err != nil {
		return nil, closing(p, err)
	}
	p.landed.Store(p.tail.sequence - 1)
	p.durable.Store(p.tail.sequence - 1)
	p.tail.sure = p.tail.lsn
	p.tail.lsn += lsnGap
	p.position.Store(p.tail.lsn - 1)
	p.recapacity()
	p.refreshUsed()
	p.wanted.Store(true)
	return p, nil
}

// clearTail writes zeros where the log's next chunk may begin. What a crash
// left there in part was found not to be in the log, and the pool is served
// without it: a power loss in the write of the next chunk must not make it whole.
func (p *Pool) clearTail() error {
	zeros := bufpool.Get(format.BlockSize)
	defer bufpool.Put(zeros)
	clear(zeros)
	for _, pl := range []place{p.tail.at, p.tail.next} {
		if pl.room() == 0 || p.space.stateOf(pl.d) == devFailed {
			continue
		}
		if err := pl.d.drive.WriteAt([][]byte{zeros}, off(pl.addr())); err != nil {
			return err
		}
	}
	return nil
}

// recoverPool reads a pool: the newest superblock and what it names, then the
// log after it. Nothing is written.
func recoverPool(opt Options, drives []NamedDrive) (*Pool, error) {
	sb, err := newestSuperblock(drives)
	if err != nil {
		return nil, err
	}
	p, err := newPool(opt)
	if err != nil {
		return nil, err
	}
	if err := p.restore(sb, drives); err != nil {
		return nil, closing(p, err)
	}
	if err := p.replay(sb.Log); err != nil {
		return nil, closing(p, err)
	}
	return p, nil
}

// ownSuperblock is a superblock with the drive it was read from.
type ownSuperblock struct {
	*format.Superblock
	drive int
}

// newestSuperblock reads all slots of all drives and returns the one that
// counts.
func newestSuperblock(drives []NamedDrive) (*format.Superblock, error) {
	buf := bufpool.Get(format.SuperblockSize)
	defer bufpool.Put(buf)
	var all []ownSuperblock
	var trouble error
	for i, d := range drives {
		for slot := range format.SuperblockSlots {
			at := int64(format.SuperblockBlock(slot)) * format.BlockSize
			if at+format.SuperblockSize > d.Drive.Size() {
				continue
			}
			err := d.Drive.ReadAt(buf, at)
			if err == nil {
				var sb *format.Superblock
				var none bool
				if sb, none, err = format.DecodeSuperblock(buf); err == nil {
					all = append(all, ownSuperblock{sb, i})
				}
				if none {
					continue
				}
			}
			if err != nil {
				trouble = fault.Wrap(fault.KindOf(err), err, "drive "+d.Name)
			}
		}
	}
	if len(all) == 0 {
		if trouble != nil {
			return nil, trouble
		}
		return nil, fault.New(fault.NotFound, "no pool on %s", driveNames(drives))
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].Sequence > all[j].Sequence })
	for _, s := range all[1:] {
		if s.Pool != all[0].Pool {
			return nil, fault.New(fault.Invalid, "drives %s and %s belong to different pools", drives[all[0].drive].Name, drives[s.drive].Name)
		}
	}
	return all[0].Superblock, nil
}

func driveNames(drives []NamedDrive) string {
	names := make([]string, len(drives))
	for i, d := range drives {
		names[i] = d.Name
	}
	return strings.Join(names, ", ")
}

// restore makes memory what the superblock says.
func (p *Pool) restore(sb *format.Superblock, drives []NamedDrive) error {
	p.setID(sb.Pool)
	p.name = sb.Name
	p.sequence.Store(sb.Sequence)
	byID, err := identify(sb.Pool, drives)
	if err != nil {
		return err
	}
	var missing []string
	for i, e := range sb.Drives {
		if e.Blocks == 0 {
			p.space.devs = append(p.space.devs, nil)
			continue
		}
		nd, ok := byID[e.ID]
		d := newDev(i, e.ID, e.Name, nil, e.Blocks, e.SegmentBlocks)
		d.state = devState(min(e.State, uint8(devFailed)))
		d.leaving = d.state == devEvacuating
		switch {
		case ok && uint64(nd.Drive.Size()/format.BlockSize) < e.Blocks:
			return fault.New(fault.Invalid, "drive %s is smaller than it was: was it truncated?", nd.Name)
		case ok:
			d.drive, d.name = nd.Drive, nd.Name
		case d.state != devFailed:
			missing = append(missing, e.Name)
		}
		p.space.devs = append(p.space.devs, d)
	}
	if len(missing) > 0 {
		return fault.New(fault.Invalid, "pool %q lacks %d of its drives: %s", sb.Name, len(missing), strings.Join(missing, ", "))
	}
	table, err := p.readBlob(sb.Table)
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, "the segment table")
	}
	if err := p.space.load(table); err != nil {
		return err
	}
	raw, err := p.readBlob(sb.Catalog)
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, "the catalog")
	}
	if p.cat, err = decodeCatalog(raw); err != nil {
		return err
	}
	r := sb.Root
	p.tree = maptree.Open(pager{p}, maptree.Root{Addr: maptree.Addr(r.Addr), Sum: r.Sum, Level: r.Level, Entries: r.Entries, Nodes: r.Nodes}, maptree.Options{CacheBytes: nodeCacheBytes(p.opt)})
	p.bg.tableBlob, p.bg.catalogBlob = sb.Table, sb.Catalog
	p.blobBlocks.Store(blobLen(sb.Table) + blobLen(sb.Catalog))
	live := int64(0)
	for _, d := range p.space.devs {
		if d != nil {
			live += d.live
		}
	}
	p.dataBlocks.Store(live - int64(r.Nodes) - p.blobBlocks.Load())
	return nil
}

// identify reads which drive of the pool each one is.
func identify(pool ID, drives []NamedDrive) (map[ID]NamedDrive, error) {
	buf := bufpool.Get(format.SuperblockSize)
	defer bufpool.Put(buf)
	out := map[ID]NamedDrive{}
	for _, d := range drives {
		for slot := range format.SuperblockSlots {
			if err := d.Drive.ReadAt(buf, int64(format.SuperblockBlock(slot))*format.BlockSize); err != nil {
				continue
			}
			if sb, _, err := format.DecodeSuperblock(buf); err == nil && ID(sb.Pool) == pool {
				out[sb.Drive] = d
			}
		}
	}
	return out, nil
}

// readBlob reads and verifies a blob.
func (p *Pool) readBlob(b format.Blob) ([]byte, error) {
	blocks := blobLen(b)
	if b.Bytes > uint64(blocks)*format.BlockSize || blocks > 1<<20 {
		return nil, fault.New(fault.Corrupt, "its extents do not fit its length")
	}
	out := make([]byte, 0, blocks*format.BlockSize)
	buf := bufpool.Get(format.BlockSize)
	defer bufpool.Put(buf)
	var err error
	p.eachBlock(b, func(a format.Addr) {
		if err == nil {
			err = p.space.read(a, buf)
			out = append(out, buf...)
		}
	})
	if err != nil {
		return nil, err
	}
	out = out[:b.Bytes]
	if xxh3.Hash(out) != b.Sum {
		return nil, fault.New(fault.Corrupt, "it does not match its checksum")
	}
	return out, nil
}
