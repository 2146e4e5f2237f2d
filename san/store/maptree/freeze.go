package maptree

import (
	"steadfast/fault"
	"steadfast/internal/invariant"
)

// writeBatch is how many nodes go to the pager at once.
const writeBatch = 128

// Frozen is the tree as it stood at a Freeze, on its way to the drives.
type Frozen struct {
	t      *Tree
	levels [levelsMax][]uint32 // slots by level
	placed map[uint32]place    // slots that have an address by now
	root   Root
}

type place struct {
	addr Addr
	sum  uint64
}

// Freeze fixes the tree's present content for a checkpoint. Changes from now on
// copy the nodes they touch. Only one Frozen can be at work.
func (t *Tree) Freeze() (*Frozen, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.frozen != nil {
		return nil, fault.New(fault.Busy, "the map is being written already")
	}
	f := &Frozen{t: t, placed: map[uint32]place{}}
	for i, sl := range t.slots {
		if sl.state == slotDirty {
			sl.state = slotFrozen
			l := t.node(uint32(i)).level()
			f.levels[l] = append(f.levels[l], uint32(i))
		}
	}
	f.root = Root{Addr: t.root, Sum: t.rootSum, Level: t.level, Entries: t.entries, Nodes: t.nodes}
	t.frozen = f
	return f, nil
}

// Write stores the frozen nodes, children before parents, because a parent
// holds its children's addresses and checksums. Readers and mutations run
// meanwhile. After an error the tree goes on as if Freeze had not been; the
// places written so far are the pager's to forget.
func (f *Frozen) Write() (Root, error) {
	for _, level := range f.levels {
		for len(level) > 0 {
			n := min(len(level), writeBatch)
			if err := f.writeNodes(level[:n]); err != nil {
				f.finish(false)
				return Root{}, err
			}
			level = level[n:]
		}
	}
	if f.root.Addr&tempBit != 0 {
		p, ok := f.placed[uint32(f.root.Addr&^tempBit)]
		invariant.Check(ok, "maptree: the frozen root was not written")
		f.root.Addr, f.root.Sum = p.addr, p.sum
	}
	f.finish(true)
	return f.root, nil
}

func (f *Frozen) writeNodes(slots []uint32) error {
	t := f.t
	bufs, sums := make([][]byte, len(slots)), make([]uint64, len(slots))
	t.mu.Lock()
	for i, s := range slots {
		n := t.node(s)
		if n.level() > 0 {
			f.patch(n)
		}
		bufs[i] = n
	}
	t.mu.Unlock()
	// Frozen nodes do not change and do not leave memory: no lock is needed
	// to read them. Patched parents are read by others only.
	for i, n := range bufs {
		sums[i] = checksum(n)
	}
	addrs, err := t.pager.WriteNodes(bufs)
	if err != nil {
		return err
	}
	for i, s := range slots {
		f.placed[s] = place{addrs[i], sums[i]}
	}
	return nil
}

// patch gives n the addresses of children that have one by now. Called with the
// lock held. The slots stay reachable: finish enters them in the index before
// anyone can look for an address, and until then placed addresses are resolved
// by index entries made here.
func (f *Frozen) patch(n node) {
	for i := range n.count() {
		a := n.addr(i)
		if a&tempBit == 0 {
			continue
		}
		if p, ok := f.placed[uint32(a&^tempBit)]; ok {
			n.setAddr(i, p.addr, p.sum)
			f.t.index[p.addr] = uint32(a &^ tempBit)
		}
	}
}

// finish ends the checkpoint's hold on its nodes. If the write was done they
// become clean where the tree still uses them; else dirty again.
func (f *Frozen) finish(done bool) {
	t := f.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if done {
		// Nodes changed since the freeze may refer to frozen ones by slot.
		for i, sl := range t.slots {
			if sl.state == slotDirty && t.node(uint32(i)).level() > 0 {
				f.patch(t.node(uint32(i)))
			}
		}
		if t.root&tempBit != 0 {
			if p, ok := f.placed[uint32(t.root&^tempBit)]; ok {
				t.root, t.rootSum = p.addr, p.sum
			}
		}
	} else {
		f.unpatch()
	}
	for _, level := range f.levels {
		for _, s := range level {
			f.settle(s, done)
		}
	}
	t.frozen = nil
	t.check()
}

// unpatch undoes addresses given to nodes of a checkpoint that failed.
func (f *Frozen) unpatch() {
	t := f.t
	back := map[Addr]uint32{}
	for s, p := range f.placed {
		back[p.addr] = s
		delete(t.index, p.addr)
	}
	for i, sl := range t.slots {
		n := t.node(uint32(i))
		if sl.state != slotDirty && sl.state != slotFrozen || n.level() == 0 {
			continue
		}
		for j := range n.count() {
			if s, ok := back[n.addr(j)]; ok {
				n.setAddr(j, tempBit|Addr(s), 0)
			}
		}
	}
}

// settle decides what becomes of one frozen node.
func (f *Frozen) settle(s uint32, done bool) {
	t := f.t
	sl, p := t.slots[s], f.placed[s]
	switch {
	case sl.superseded:
		// The tree has gone on without it: its place is garbage as soon as
		// the next checkpoint stands.
		t.dirty--
		if done {
			delete(t.index, p.addr)
			t.pager.FreeNode(p.addr)
		}
		t.drop(s)
	case done:
		t.dirty--
		sl.addr, sl.state = p.addr, slotClean
		sl.used.Store(true)
		t.index[p.addr] = s
	default:
		sl.state = slotDirty
	}
}
