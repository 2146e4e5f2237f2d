// Package maptree is the pool's map: one copy-on-write B-tree from (branch,
// block, generation) to where a block lies and what its checksum is. See
// docs/adr/0002-store.md.
package maptree

// NodeSize is the size of a node, in memory and on a drive, in bytes.
const NodeSize = 4096

// Key orders entries: by Branch, then LBA, then Gen with the newest first.
type Key struct {
	Branch uint32
	LBA    uint64 // 48 bits; a block of 4096 bytes
	Gen    uint64 // 48 bits
}

// Entry is one mapping. The tree does not interpret Ref and Sum.
type Entry struct {
	Key
	Ref uint64
	Sum uint64
}

// Addr is where a node lies in the pool. Zero is no node.
type Addr uint64

// Root names a whole tree as it lies on the drives.
type Root struct {
	Addr    Addr
	Sum     uint64
	Level   uint8 // 0: the root is a leaf
	Entries uint64
	Nodes   uint64
}

// Pager reads and places nodes.
type Pager interface {
	// ReadNode fills p (NodeSize bytes) with the node at a. The tree verifies
	// the checksum.
	ReadNode(a Addr, p []byte) error
	// WriteNodes stores nodes (each NodeSize bytes, valid only during the
	// call) and returns their addresses. Durable only after the checkpoint's
	// flush, which is the caller's.
	WriteNodes(nodes [][]byte) ([]Addr, error)
	// FreeNode says that the node at a is no part of the tree from the
	// checkpoint that is now being prepared on; the one on disk may use it.
	FreeNode(a Addr)
}
