package maptree

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// A node is NodeSize bytes, in memory as on a drive:
//
//	0   magic "SFmn"
//	4   version (1)
//	5   level: 0 for a leaf
//	6   count of entries, uint16
//	8   zero, up to 32
//	32  entries in ascending order of key
//
// A key is 16 bytes, big-endian so that bytes order as keys do: branch (32
// bits), block (48), complement of generation (48). A leaf entry is key, ref
// (64), sum (64); an inner entry is the first key below, address (64),
// checksum (64) and greatest generation (64) of the child. See
// docs/formats/pool.md.
const (
	nodeMagic   = 0x53466d6e
	nodeVersion = 1
	headerSize  = 32
	leafEntry   = 32
	innerEntry  = 40
	leafMax     = (NodeSize - headerSize) / leafEntry
	innerMax    = (NodeSize - headerSize) / innerEntry

	genMask = 1<<48 - 1
)

// packed is a key as two ordered words.
type packed struct{ hi, lo uint64 }

func pack(k Key) packed {
	return packed{uint64(k.Branch)<<32 | k.LBA>>16&0xffffffff, k.LBA<<48 | ^k.Gen&genMask}
}

func (p packed) key() Key {
	return Key{Branch: uint32(p.hi >> 32), LBA: p.hi&0xffffffff<<16 | p.lo>>48, Gen: ^p.lo & genMask}
}

func (p packed) less(q packed) bool { return p.hi < q.hi || p.hi == q.hi && p.lo < q.lo }

// sameBlock reports whether two keys differ at most in their generation.
func (p packed) sameBlock(q packed) bool { return p.hi == q.hi && p.lo>>48 == q.lo>>48 }

// newest returns the first key that k's block can have.
func (p packed) newest() packed { return packed{p.hi, p.lo &^ genMask} }

// node is a view of a node's bytes.
type node []byte

func format(n node, level uint8) {
	clear(n)
	binary.BigEndian.PutUint32(n, nodeMagic)
	n[4], n[5] = nodeVersion, level
}

func (n node) level() uint8    { return n[5] }
func (n node) count() int      { return int(binary.BigEndian.Uint16(n[6:])) }
func (n node) setCount(c int)  { binary.BigEndian.PutUint16(n[6:], uint16(c)) }
func (n node) at(i int) []byte { s := n.size(); return n[headerSize+i*s : headerSize+i*s+s] }
func (n node) full() bool      { return n.count() == n.max() }
func (n node) word(i int) packed {
	e := n[headerSize+i*n.size():]
	return packed{binary.BigEndian.Uint64(e), binary.BigEndian.Uint64(e[8:])}
}

func (n node) setWord(i int, k packed) {
	e := n[headerSize+i*n.size():]
	binary.BigEndian.PutUint64(e, k.hi)
	binary.BigEndian.PutUint64(e[8:], k.lo)
}

func (n node) size() int {
	if n.level() == 0 {
		return leafEntry
	}
	return innerEntry
}

func (n node) max() int {
	if n.level() == 0 {
		return leafMax
	}
	return innerMax
}

// search returns the index of the first entry at or after k.
func (n node) search(k packed) int {
	size, lo, hi := n.size(), 0, n.count()
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		e := n[headerSize+mid*size:]
		h := binary.BigEndian.Uint64(e)
		if h < k.hi || h == k.hi && binary.BigEndian.Uint64(e[8:]) < k.lo {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// child returns the index of the child that covers k: the last whose first key
// is not after k, and the first child for anything before.
func (n node) child(k packed) int {
	i := n.search(k)
	if i < n.count() && n.word(i) == k {
		return i
	}
	return max(i-1, 0)
}

// insert opens a gap at i and puts the key there; the caller fills the rest.
func (n node) insert(i int, k packed) []byte {
	s, c := n.size(), n.count()
	copy(n[headerSize+(i+1)*s:headerSize+(c+1)*s], n[headerSize+i*s:headerSize+c*s])
	n.setCount(c + 1)
	n.setWord(i, k)
	return n.at(i)
}

func (n node) remove(i int) {
	s, c := n.size(), n.count()
	copy(n[headerSize+i*s:], n[headerSize+(i+1)*s:headerSize+c*s])
	clear(n[headerSize+(c-1)*s : headerSize+c*s])
	n.setCount(c - 1)
}

func (n node) entry(i int) Entry {
	e := n.at(i)
	return Entry{Key: n.word(i).key(), Ref: binary.BigEndian.Uint64(e[16:]), Sum: binary.BigEndian.Uint64(e[24:])}
}

func (n node) addr(i int) Addr     { return Addr(binary.BigEndian.Uint64(n.at(i)[16:])) }
func (n node) sum(i int) uint64    { return binary.BigEndian.Uint64(n.at(i)[24:]) }
func (n node) maxGen(i int) uint64 { return binary.BigEndian.Uint64(n.at(i)[32:]) }

func (n node) setAddr(i int, a Addr, sum uint64) {
	e := n.at(i)
	binary.BigEndian.PutUint64(e[16:], uint64(a))
	binary.BigEndian.PutUint64(e[24:], sum)
}

func (n node) setMaxGen(i int, g uint64) { binary.BigEndian.PutUint64(n.at(i)[32:], g) }

// greatestGen computes the greatest generation in or below n.
func (n node) greatestGen() uint64 {
	g := uint64(0)
	for i := range n.count() {
		if n.level() == 0 {
			g = max(g, n.word(i).key().Gen)
		} else {
			g = max(g, n.maxGen(i))
		}
	}
	return g
}

// checksum covers the whole node. Its place is bound by the parent's address.
func checksum(n node) uint64 { return xxh3.Hash(n) }

// ParseNode reads a block that may be a node: its level, its first key and how
// many entries it has. ok is false when it cannot be one.
func ParseNode(p []byte) (level uint8, first Key, count int, ok bool) {
	if len(p) != NodeSize || Validate(p) != "" {
		return 0, Key{}, 0, false
	}
	n := node(p)
	return n.level(), n.word(0).key(), n.count(), true
}

// Validate tells what is wrong with a node's form, or "" when nothing is: the
// header, the count, and the order of its keys.
func Validate(p []byte) string {
	if len(p) != NodeSize {
		return "not the size of a node"
	}
	n := node(p)
	switch {
	case binary.BigEndian.Uint32(n) != nodeMagic:
		return "no node here"
	case n[4] != nodeVersion:
		return "a node of another version"
	case n.count() == 0 || n.count() > n.max():
		return "an impossible number of entries"
	}
	for i := 1; i < n.count(); i++ {
		if !n.word(i - 1).less(n.word(i)) {
			return "keys out of order"
		}
	}
	return ""
}
