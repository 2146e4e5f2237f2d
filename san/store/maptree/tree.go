package maptree

import (
	"fmt"
	"sync"
	"sync/atomic"

	"steadfast/fault"
	"steadfast/internal/bufpool"
	"steadfast/internal/invariant"
)

// tempBit marks an address that is not on a drive yet: the rest is a slot.
const tempBit Addr = 1 << 63

// levelsMax bounds the height: 60 children a node at the least make 2^47 blocks.
const levelsMax = 10

// slabNodes is how many nodes' memory is allocated at once.
const slabNodes = 32

// Options say how much memory a tree may keep.
type Options struct {
	CacheBytes int64 // for nodes; at least 1 MiB is used
}

type slotState uint8

const (
	slotFree   slotState = iota
	slotClean            // as on the drive, may be evicted
	slotDirty            // changed since the last freeze
	slotFrozen           // belongs to the checkpoint being written; immutable
)

// slot describes one place of the cache.
type slot struct {
	addr       Addr // where the node lies on a drive; 0 if nowhere yet
	state      slotState
	superseded bool        // frozen, and the tree has a newer copy (or has dropped it)
	used       atomic.Bool // since the clock's hand passed
}

// Tree is the map. Readers run side by side; a mutation runs alone. A node that
// is not in memory is read with no lock held, and then the operation starts
// again: no reader waits for another's drive.
type Tree struct {
	pager Pager

	mu      sync.RWMutex
	data    [][]byte // slot i's bytes
	slab    []byte   // memory for further slots
	slots   []*slot
	free    []uint32
	limit   int // slots that may be used
	hand    int
	index   map[Addr]uint32
	dirty   int
	root    Addr // 0 when the tree is empty
	rootSum uint64
	level   uint8
	entries uint64
	nodes   uint64
	frozen  *Frozen
	over    uint64 // slots taken beyond the limit
	misses  atomic.Uint64
}

// New returns an empty tree.
func New(pager Pager, opt Options) *Tree {
	return &Tree{pager: pager, limit: max(int(opt.CacheBytes/NodeSize), 256), index: map[Addr]uint32{}}
}

// Open returns the tree that root names; nothing is read yet.
func Open(pager Pager, root Root, opt Options) *Tree {
	t := New(pager, opt)
	t.root, t.rootSum, t.level, t.entries, t.nodes = root.Addr, root.Sum, root.Level, root.Entries, root.Nodes
	return t
}

// Len returns the number of entries.
func (t *Tree) Len() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.entries
}

// Nodes returns the number of nodes.
func (t *Tree) Nodes() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.nodes
}

// DirtyNodes returns how many nodes wait for a checkpoint, frozen ones too.
func (t *Tree) DirtyNodes() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.dirty
}

// CacheNodes returns how many nodes the cache may hold, and how often it was
// read past.
func (t *Tree) CacheNodes() (limit int, misses uint64) { return t.limit, t.misses.Load() }

// missing says which node an operation needs.
type missing struct {
	addr Addr
	sum  uint64
}

// resident returns the slot of the node at a, if it is in memory.
func (t *Tree) resident(a Addr) (uint32, bool) {
	if a&tempBit != 0 {
		return uint32(a &^ tempBit), true
	}
	s, ok := t.index[a]
	return s, ok
}

func (t *Tree) node(s uint32) node { return node(t.data[s]) }

// load brings a missing node into memory. Called without locks.
func (t *Tree) load(m missing) error {
	p := bufpool.Get(NodeSize)
	defer bufpool.Put(p)
	if err := t.fetch(m, p); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.install(m.addr, p)
	return nil
}

// fetch reads and verifies a node.
func (t *Tree) fetch(m missing, p []byte) error {
	t.misses.Add(1)
	if err := t.pager.ReadNode(m.addr, p); err != nil {
		return err
	}
	if checksum(p) != m.sum {
		return fault.New(fault.Corrupt, "map node at %#x does not match its checksum", uint64(m.addr))
	}
	if why := Validate(p); why != "" {
		return fault.New(fault.Corrupt, "map node at %#x: %s", uint64(m.addr), why)
	}
	return nil
}

// install puts a node that was read into a slot. Called with the lock held.
func (t *Tree) install(a Addr, p []byte) uint32 {
	if s, ok := t.index[a]; ok {
		return s
	}
	s := t.take()
	copy(t.data[s], p)
	t.slots[s].addr, t.slots[s].state = a, slotClean
	t.slots[s].used.Store(true)
	t.index[a] = s
	return s
}

// take returns an empty slot: a free one, a new one while the limit allows, a
// clean one evicted, or, rather than fail, one beyond the limit.
func (t *Tree) take() uint32 {
	if n := len(t.free); n > 0 {
		s := t.free[n-1]
		t.free = t.free[:n-1]
		return s
	}
	if len(t.slots) >= t.limit {
		for range 2 * len(t.slots) {
			t.hand = (t.hand + 1) % len(t.slots)
			s := t.slots[t.hand]
			if s.state != slotClean || s.used.Swap(false) {
				continue
			}
			delete(t.index, s.addr)
			return uint32(t.hand)
		}
		t.over++
	}
	if len(t.slab) == 0 {
		// Aligned, so that a pager can hand nodes to a drive as they are.
		t.slab = bufpool.Aligned(slabNodes * NodeSize)
	}
	t.data = append(t.data, t.slab[:NodeSize:NodeSize])
	t.slab = t.slab[NodeSize:]
	t.slots = append(t.slots, &slot{})
	return uint32(len(t.slots) - 1)
}

// drop gives a slot back.
func (t *Tree) drop(s uint32) {
	sl := t.slots[s]
	sl.addr, sl.state, sl.superseded = 0, slotFree, false
	t.free = append(t.free, s)
}

// leaf finds the leaf that covers k. bound is the first key after what the leaf
// covers; last says that there is none. Called with a lock held.
func (t *Tree) leaf(k packed) (n node, bound packed, last bool, miss missing) {
	last = true
	a, sum := t.root, t.rootSum
	for {
		s, ok := t.resident(a)
		if !ok {
			return nil, bound, false, missing{a, sum}
		}
		if sl := t.slots[s]; !sl.used.Load() {
			sl.used.Store(true)
		}
		n = t.node(s)
		if n.level() == 0 {
			return n, bound, last, missing{}
		}
		i := n.child(k)
		if i+1 < n.count() {
			bound, last = n.word(i+1), false
		}
		a, sum = n.addr(i), n.sum(i)
	}
}

// ceil finds the first entry at or after k, looking no further than needed to
// tell whether it is one of k's block when block is set.
func (t *Tree) ceil(k packed, block bool) (e Entry, ok bool, miss missing) {
	if t.root == 0 {
		return Entry{}, false, missing{}
	}
	for from := k; ; {
		n, bound, last, miss := t.leaf(from)
		if n == nil {
			return Entry{}, false, miss
		}
		if i := n.search(k); i < n.count() {
			if block && !n.word(i).sameBlock(k) {
				return Entry{}, false, missing{}
			}
			return n.entry(i), true, missing{}
		}
		if last || block && !bound.sameBlock(k) {
			return Entry{}, false, missing{}
		}
		from = bound
	}
}

// Lookup returns the newest entry of a block whose generation is at most
// maxGen.
func (t *Tree) Lookup(branch uint32, lba, maxGen uint64) (Entry, bool, error) {
	k := pack(Key{branch, lba, maxGen})
	for {
		t.mu.RLock()
		e, ok, miss := t.ceil(k, true)
		t.mu.RUnlock()
		if miss.addr == 0 {
			return e, ok, nil
		}
		if err := t.load(miss); err != nil {
			return Entry{}, false, err
		}
	}
}

// LookupRange is Lookup for n consecutive blocks from lba: found[i] tells
// whether out[i] is the entry of block lba+i.
func (t *Tree) LookupRange(branch uint32, lba uint64, n int, maxGen uint64, out []Entry, found []bool) error {
	for done := 0; done < n; {
		t.mu.RLock()
		k, miss := t.lookupRun(branch, lba+uint64(done), n-done, maxGen, out[done:], found[done:])
		t.mu.RUnlock()
		done += k
		if miss.addr != 0 {
			if err := t.load(miss); err != nil {
				return err
			}
		}
	}
	return nil
}

// TryLookupRange is LookupRange if no node has to be read for it; else it
// returns false.
func (t *Tree) TryLookupRange(branch uint32, lba uint64, n int, maxGen uint64, out []Entry, found []bool) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for done := 0; done < n; {
		k, miss := t.lookupRun(branch, lba+uint64(done), n-done, maxGen, out[done:], found[done:])
		if miss.addr != 0 {
			return false
		}
		done += k
	}
	return true
}

// lookupRun answers for as many blocks as one leaf does, at least one if
// nothing is missing.
func (t *Tree) lookupRun(branch uint32, lba uint64, n int, maxGen uint64, out []Entry, found []bool) (int, missing) {
	if t.root == 0 {
		clear(found[:n])
		return n, missing{}
	}
	k := pack(Key{branch, lba, maxGen})
	leaf, bound, last, miss := t.leaf(k)
	if leaf == nil {
		return 0, miss
	}
	i := leaf.search(k)
	for done := 0; done < n; done++ {
		k = pack(Key{branch, lba + uint64(done), maxGen})
		// Usually the next entry is the one; with older generations in
		// between, search rather than step over each.
		if i < leaf.count() && leaf.word(i).less(k) {
			i++
			if i < leaf.count() && leaf.word(i).less(k) {
				i = leaf.search(k)
			}
		}
		if i == leaf.count() {
			// What the leaf does not show may stand at the start of the next.
			if !last && (bound.less(k) || bound.sameBlock(k)) {
				if done > 0 {
					return done, missing{}
				}
				e, ok, miss := t.ceil(k, true)
				if miss.addr != 0 {
					return 0, miss
				}
				out[0], found[0] = e, ok
				return 1, missing{}
			}
			found[done] = false
			continue
		}
		if found[done] = leaf.word(i).sameBlock(k); found[done] {
			out[done] = leaf.entry(i)
		}
	}
	return n, missing{}
}

// Walk visits every node that lies on a drive, parents after children, reading
// each; for checks. The tree must not be changed meanwhile.
func (t *Tree) Walk(visit func(level uint8, first Key, a Addr, err error) error) error {
	t.mu.RLock()
	m := missing{t.root, t.rootSum}
	level := t.level
	t.mu.RUnlock()
	if m.addr == 0 {
		return nil
	}
	return t.walk(m, level, visit)
}

func (t *Tree) walk(m missing, level uint8, visit func(uint8, Key, Addr, error) error) error {
	p := bufpool.Get(NodeSize)
	defer bufpool.Put(p)
	waits := m.addr&tempBit != 0 // for a checkpoint: it is in memory only
	if waits {
		copy(p, t.data[uint32(m.addr&^tempBit)])
	} else if err := t.fetch(m, p); err != nil {
		return visit(level, Key{}, m.addr, err)
	}
	n := node(p)
	if n.level() != level {
		return visit(level, Key{}, m.addr, fault.New(fault.Corrupt, "map node at %#x is of level %d, not %d", uint64(m.addr), n.level(), level))
	}
	if level > 0 {
		for i := range n.count() {
			if err := t.walk(missing{n.addr(i), n.sum(i)}, level-1, visit); err != nil {
				return err
			}
		}
	}
	if waits {
		return nil
	}
	return visit(level, n.word(0).key(), m.addr, nil)
}

// NodeAddr returns where the node of a level that covers key lies now: 0 when
// there is none, or when it waits for a checkpoint.
func (t *Tree) NodeAddr(level uint8, key Key) (Addr, error) {
	for {
		t.mu.RLock()
		a, miss := t.nodeAddr(level, pack(key))
		t.mu.RUnlock()
		if miss.addr == 0 {
			return a, nil
		}
		if err := t.load(miss); err != nil {
			return 0, err
		}
	}
}

func (t *Tree) nodeAddr(level uint8, k packed) (Addr, missing) {
	if t.root == 0 || t.level < level {
		return 0, missing{}
	}
	a, sum := t.root, t.rootSum
	for l := t.level; l > level; l-- {
		s, ok := t.resident(a)
		if !ok {
			return 0, missing{a, sum}
		}
		n := t.node(s)
		i := n.child(k)
		a, sum = n.addr(i), n.sum(i)
	}
	if a&tempBit != 0 {
		return 0, missing{}
	}
	return a, missing{}
}

// check holds the tree's own counters against each other, cheaply.
func (t *Tree) check() {
	invariant.Check(t.dirty >= 0, "maptree: %d dirty nodes", t.dirty)
	invariant.Check((t.root == 0) == (t.nodes == 0), "maptree: root %#x with %d nodes", uint64(t.root), t.nodes)
}

// String describes the tree, for failures in tests.
func (t *Tree) String() string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return fmt.Sprintf("%d entries in %d nodes, %d levels, %d dirty, %d slots of %d, %d over", t.entries, t.nodes, t.level+1, t.dirty, len(t.slots), t.limit, t.over)
}

// Verify reads the nodes on the way to the leaf that covers key from the
// pager, past the cache, and checks them: the leaf, and the inner nodes whose
// first leaf it is. It returns how many it read, which of them are damaged, and
// the key at which to go on; more is false at the end. Nodes that wait for a
// checkpoint are passed over.
func (t *Tree) Verify(key Key) (read int, damaged []Addr, next Key, more bool, err error) {
	k := pack(key)
	var path []missing
	var bound packed
	for {
		var miss missing
		t.mu.RLock()
		path, bound, more, miss = t.verifyPath(k, path[:0])
		t.mu.RUnlock()
		if miss.addr == 0 {
			break
		}
		if err := t.load(miss); err != nil {
			if !fault.Is(err, fault.Corrupt) {
				return read, damaged, key, false, err
			}
			// The node itself is the damage. What is beneath cannot be had.
			damaged = append(damaged, miss.addr)
			return read + 1, damaged, bound.key(), more, nil
		}
	}
	p := bufpool.Get(NodeSize)
	defer bufpool.Put(p)
	for _, m := range path {
		read++
		if err := t.fetch(m, p); err != nil && t.uses(k, m) {
			damaged = append(damaged, m.addr)
		}
	}
	return read, damaged, bound.key(), more, nil
}

// verifyPath lists the nodes on the way to k's leaf that lie on a drive and
// begin with it. more tells that something follows at bound.
func (t *Tree) verifyPath(k packed, path []missing) (_ []missing, bound packed, more bool, miss missing) {
	if t.root == 0 {
		return path, k, false, missing{}
	}
	m := missing{t.root, t.rootSum}
	for {
		s, ok := t.resident(m.addr)
		if !ok {
			return path, bound, more, m
		}
		if m.addr&tempBit == 0 {
			path = append(path, m)
		}
		n := t.node(s)
		if n.level() == 0 {
			return path, bound, more, missing{}
		}
		i := n.child(k)
		if i > 0 {
			path = path[:0] // verified with the first leaf beneath
		}
		if i+1 < n.count() {
			bound, more = n.word(i+1), true
		}
		m = missing{n.addr(i), n.sum(i)}
	}
}

// uses tells whether the way to k still leads over the node at m.
func (t *Tree) uses(k packed, m missing) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	a := t.root
	for {
		if a == m.addr {
			return true
		}
		s, ok := t.resident(a)
		if !ok {
			return false
		}
		n := t.node(s)
		if n.level() == 0 {
			return false
		}
		a = n.addr(n.child(k))
	}
}
