// Package blockcache keeps recently used blocks of a pool in memory.
//
// Blocks are looked up by where they lie (a reference), not by whose they are:
// volumes and snapshots that share a block share its copy. Only blocks whose
// checksum was verified may be put in; a block that is written is put in by the
// writer, which also replaces whatever an earlier use of the same place left.
//
// The memory is one anonymous mapping outside the garbage collector's heap,
// so that a large cache neither costs scanning nor lets garbage grow to its own
// size. Replacement is CLOCK: a block that was used since the hand last passed
// gets another round.
package blockcache

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"steadfast/internal/invariant"
)

// BlockSize is the size of every block, in bytes.
const BlockSize = 4096

// shards is how many independently locked parts a cache has. A power of two.
const shards = 16

// Cache is a bounded set of blocks. It is safe for concurrent use.
type Cache struct {
	arena []byte
	// lost gives the memory back when nobody closed the cache: a pool that is
	// abandoned, as by a crash in a simulation, must not keep it.
	lost   runtime.Cleanup
	unmap  func([]byte) error
	shards [shards]shard
	hits   atomic.Uint64
	misses atomic.Uint64
}

// shard is one part: slots of BlockSize with an open-addressing index.
type shard struct {
	mu   sync.Mutex
	data []byte   // slot i is data[i*BlockSize:]
	ref  []uint64 // reference held by slot i; 0 when empty
	tag  []uint64 // and the tag it was put in with
	used []bool   // slot i was used since the hand passed
	tab  []uint32 // index: slot+1, or 0; linear probing, len a power of two
	hand int
	_    [64]byte // keeps neighbours' locks off one cache line
}

// New returns a cache that keeps at most bytes of blocks (and about 1 % more
// for the index). With less than one block per shard it keeps nothing.
func New(bytes int64) (*Cache, error) { return newCache(bytes, unix.Munmap) }

// newCache is New with a way to give the memory back.
func newCache(bytes int64, unmap func([]byte) error) (*Cache, error) {
	per := int(bytes / BlockSize / shards)
	c := &Cache{unmap: unmap}
	if per <= 0 {
		return c, nil
	}
	arena, err := unix.Mmap(-1, 0, per*shards*BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("block cache of %d bytes: %w", bytes, err)
	}
	c.arena = arena
	c.lost = runtime.AddCleanup(c, func(arena []byte) { _ = unmap(arena) }, arena)
	tab := 1
	for tab < 2*per {
		tab *= 2
	}
	for i := range c.shards {
		s := &c.shards[i]
		s.data = arena[i*per*BlockSize : (i+1)*per*BlockSize]
		s.ref = make([]uint64, per)
		s.tag = make([]uint64, per)
		s.used = make([]bool, per)
		s.tab = make([]uint32, tab)
	}
	return c, nil
}

// Close gives the memory back. Afterwards the cache is one that keeps nothing.
func (c *Cache) Close() error {
	if c.arena == nil {
		return nil
	}
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		s.data, s.ref, s.tag, s.used, s.tab = nil, nil, nil, nil, nil
		s.mu.Unlock()
	}
	c.lost.Stop()
	arena := c.arena
	c.arena = nil
	return c.unmap(arena)
}

// Get copies the block at ref (never 0) with this tag into p, BlockSize bytes,
// and reports whether it had it.
func (c *Cache) Get(ref, tag uint64, p []byte) bool {
	invariant.Check(len(p) == BlockSize, "blockcache: a buffer of %d bytes", len(p))
	h := hash(ref)
	s := &c.shards[h%shards]
	s.mu.Lock()
	slot := s.find(ref, h)
	if slot < 0 || s.tag[slot] != tag {
		s.mu.Unlock()
		c.misses.Add(1)
		return false
	}
	s.used[slot] = true
	copy(p, s.data[slot*BlockSize:(slot+1)*BlockSize])
	s.mu.Unlock()
	c.hits.Add(1)
	return true
}

// Put keeps a copy of p as the block at ref (never 0), in place of any other.
func (c *Cache) Put(ref, tag uint64, p []byte) {
	invariant.Check(ref != 0 && len(p) == BlockSize, "blockcache: ref %d with %d bytes", ref, len(p))
	h := hash(ref)
	s := &c.shards[h%shards]
	if len(s.ref) == 0 {
		return
	}
	s.mu.Lock()
	slot := s.find(ref, h)
	if slot < 0 {
		slot = s.evict()
		s.insert(ref, h, slot)
	}
	s.tag[slot] = tag
	// A block is not yet "used" by being put in: a scan, which touches each
	// block once, must not push out what is read again and again.
	copy(s.data[slot*BlockSize:(slot+1)*BlockSize], p)
	s.mu.Unlock()
}

// Move tells that the block at from, p with this tag, lies at to now: a copy
// that is kept is found there from now on.
func (c *Cache) Move(from, to, tag uint64, p []byte) {
	h := hash(from)
	s := &c.shards[h%shards]
	s.mu.Lock()
	slot := s.find(from, h)
	had := slot >= 0 && s.tag[slot] == tag
	if had {
		s.remove(slot)
	}
	s.mu.Unlock()
	if had {
		c.Put(to, tag, p)
	}
}

// Drop forgets the block at ref.
func (c *Cache) Drop(ref uint64) {
	h := hash(ref)
	s := &c.shards[h%shards]
	s.mu.Lock()
	if slot := s.find(ref, h); slot >= 0 {
		s.remove(slot)
	}
	s.mu.Unlock()
}

// Counts returns how many lookups found their block and how many did not.
func (c *Cache) Counts() (hits, misses uint64) { return c.hits.Load(), c.misses.Load() }

// hash spreads references, which are nearly consecutive, over shards (low
// bits) and index places (the bits above).
func hash(ref uint64) uint64 {
	ref *= 0x9e3779b97f4a7c15
	return ref ^ ref>>29
}

// place is where the search for a reference with hash h begins.
func (s *shard) place(h uint64) int { return int(h/shards) & (len(s.tab) - 1) }

// find returns the slot that holds ref, or -1.
func (s *shard) find(ref, h uint64) int {
	if len(s.tab) == 0 {
		return -1
	}
	for i := s.place(h); ; i = (i + 1) & (len(s.tab) - 1) {
		switch t := s.tab[i]; {
		case t == 0:
			return -1
		case s.ref[t-1] == ref:
			return int(t - 1)
		}
	}
}

// evict moves the hand to a slot that may be reused, and empties it.
func (s *shard) evict() int {
	for {
		slot := s.hand
		s.hand++
		if s.hand == len(s.ref) {
			s.hand = 0
		}
		if s.used[slot] {
			s.used[slot] = false
			continue
		}
		if s.ref[slot] != 0 {
			s.remove(slot)
		}
		return slot
	}
}

// insert enters ref, which the shard does not hold, with an empty slot.
func (s *shard) insert(ref, h uint64, slot int) {
	i := s.place(h)
	for s.tab[i] != 0 {
		i = (i + 1) & (len(s.tab) - 1)
	}
	s.tab[i] = uint32(slot + 1)
	s.ref[slot] = ref
}

// remove empties slot and closes the gap its index entry leaves: entries after
// it move back as long as that brings them no nearer than their own place.
func (s *shard) remove(slot int) {
	mask := len(s.tab) - 1
	i := s.place(hash(s.ref[slot]))
	for s.tab[i] != uint32(slot+1) {
		i = (i + 1) & mask
	}
	s.ref[slot], s.used[slot] = 0, false
	for j := (i + 1) & mask; s.tab[j] != 0; j = (j + 1) & mask {
		home := s.place(hash(s.ref[s.tab[j]-1]))
		if (j-home)&mask >= (j-i)&mask {
			s.tab[i] = s.tab[j]
			i = j
		}
	}
	s.tab[i] = 0
}
