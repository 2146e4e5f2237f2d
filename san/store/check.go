package store

import (
	"fmt"

	"steadfast/internal/bufpool"
	"steadfast/san/store/format"
	"steadfast/san/store/maptree"
)

// problemsMax bounds the problems a check lists.
const problemsMax = 1000

// checker gathers what a check finds, and counts again what the pool counts.
type checker struct {
	p        *Pool
	report   CheckReport
	live     [][]uint32        // by drive and segment
	entries  map[uint32]uint64 // data entries by branch
	shares   map[uint64]uint64 // references to shared objects, by generation
	counts   map[uint64]uint64 // what the objects say
	progress func(done, total int64)
	done     int64
	total    int64
}

// Check reads a pool that is not open and reports whether it is sound. It
// writes nothing.
func Check(opt Options, drives []NamedDrive, progress func(done, total int64)) (CheckReport, error) {
	p, err := recoverPool(opt, drives)
	if err != nil {
		return CheckReport{}, err
	}
	defer func() { _ = p.blocks.Close() }()
	c := &checker{p: p, entries: map[uint32]uint64{}, shares: map[uint64]uint64{}, counts: map[uint64]uint64{}, progress: progress}
	c.report.Pool = p.id
	c.report.LogTail = LSN(p.tail.lsn - 1)
	c.report.Volumes = len(p.cat.volumes)
	for _, v := range p.cat.volumes {
		c.report.Snapshots += len(v.snapshots)
	}
	c.total = blockBytes(p.dataBlocks.Load() + int64(p.tree.Nodes()))
	for _, d := range p.space.devs {
		n := 0
		if d != nil {
			n = len(d.segs)
		}
		c.live = append(c.live, make([]uint32, n))
	}
	if err := c.nodes(); err != nil {
		return c.report, err
	}
	if err := c.blocks(); err != nil {
		return c.report, err
	}
	c.compare()
	return c.report, nil
}

func (c *checker) problem(format string, args ...any) {
	if len(c.report.Problems) < problemsMax {
		c.report.Problems = append(c.report.Problems, fmt.Sprintf(format, args...))
	}
}

// advance tells of progress, for each 16 MiB.
func (c *checker) advance() {
	before := c.done >> 24
	c.done += format.BlockSize
	if c.progress != nil && c.done>>24 != before {
		c.progress(min(c.done, c.total), c.total)
	}
}

// holds counts a block as live where it lies.
func (c *checker) holds(a format.Addr) bool {
	d, seg := c.p.space.at(a)
	if d == nil {
		return false
	}
	c.live[d.index][seg]++
	return true
}

// nodes reads the map, node by node.
func (c *checker) nodes() error {
	for _, b := range []format.Blob{c.p.bg.tableBlob, c.p.bg.catalogBlob} {
		c.p.eachBlock(b, func(a format.Addr) { c.holds(a) })
	}
	return c.p.tree.Walk(func(_ uint8, _ maptree.Key, a maptree.Addr, err error) error {
		c.report.Nodes++
		c.advance()
		if err != nil {
			c.problem("the map: %v", err)
		}
		if !c.holds(format.Addr(a)) {
			c.problem("the map: a node lies in no segment: %#x", uint64(a))
		}
		return nil
	})
}

// blocks reads what each entry of the map refers to.
func (c *checker) blocks() error {
	buf := bufpool.Get(format.BlockSize)
	defer bufpool.Put(buf)
	return c.p.tree.Scan(maptree.Key{Gen: format.GenMax}, maptree.Key{Branch: ^uint32(0)}, 0, func(e maptree.Entry) bool {
		c.entry(e, buf)
		return true
	})
}

func (c *checker) entry(e maptree.Entry, buf []byte) {
	ref := format.Ref(e.Ref)
	if e.Branch == format.BranchShared && e.Gen == 2 {
		c.counts[e.LBA] = e.Ref
		return
	}
	if e.Branch != format.BranchShared && c.p.cat.branches[e.Branch] == nil {
		c.problem("the map: an entry of branch %d, which is not in the catalog", e.Branch)
	}
	switch ref.Kind() {
	case format.KindData:
		c.report.Blocks++
		c.advance()
		if e.Branch != format.BranchShared {
			c.entries[e.Branch]++
		}
		if !c.holds(ref.Addr()) {
			c.problem("%s: its block lies in no segment", c.name(e))
			return
		}
		err := c.p.space.read(ref.Addr(), buf)
		if err != nil {
			c.problem("%s: %s: %v", c.name(e), c.p.space.where(ref.Addr()), err)
		} else if format.Sum(format.Hash(buf), e.Branch, e.LBA, e.Gen) != e.Sum {
			c.problem("%s: the block on %s does not match its checksum", c.name(e), c.p.space.where(ref.Addr()))
		}
	case format.KindShared:
		c.entries[e.Branch]++
		c.shares[ref.Gen()]++
	case format.KindHole:
	default:
		c.problem("%s: a reference of unknown kind %d", c.name(e), ref.Kind())
	}
}

// name says whose an entry is.
func (c *checker) name(e maptree.Entry) string {
	if e.Branch == format.BranchShared {
		return fmt.Sprintf("shared block %d", e.LBA)
	}
	if b := c.p.cat.branches[e.Branch]; b != nil {
		if v := c.p.cat.volumes[b.owner]; v != nil {
			return fmt.Sprintf("volume %q, byte %d", v.name, e.LBA*format.BlockSize)
		}
	}
	return fmt.Sprintf("branch %d, byte %d", e.Branch, e.LBA*format.BlockSize)
}

// compare holds what was counted against what the pool believes.
func (c *checker) compare() {
	for _, d := range c.p.space.devs {
		if d == nil {
			continue
		}
		for i := range d.segs {
			if have, want := c.live[d.index][i], d.segs[i].live; have != want {
				c.problem("drive %s, segment %d: %d live blocks, and the table says %d", d.name, i, have, want)
			}
		}
	}
	for id, b := range c.p.cat.branches {
		if have := c.entries[id]; have != uint64(b.entries) {
			c.problem("branch %d: %d data entries, and the catalog says %d", id, have, b.entries)
		}
	}
	for gen, n := range c.counts {
		if c.shares[gen] != n {
			c.problem("shared block %d: %d references, and its count says %d", gen, c.shares[gen], n)
		}
	}
	for gen := range c.shares {
		if c.counts[gen] == 0 {
			c.problem("shared block %d is referred to and has no count", gen)
		}
	}
	if c.progress != nil {
		c.progress(c.total, c.total)
	}
}
