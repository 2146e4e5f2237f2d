package mirrorio

import (
	"encoding/binary"
	"math"

	"steadfast/block"
	"steadfast/fault"
	"steadfast/internal/bufpool"
)

// BlockSize is the unit that operations are ordered by, in bytes.
const BlockSize = block.BlockSize

// ChangeKind is what a change does to its range.
type ChangeKind uint8

// Kinds of changes.
const (
	Data ChangeKind = iota + 1 // stores Data
	Trim
	Zero
	Act  // of a barrier: Data is its action, or why it is refused
	List // of a resync: Data is a list of snapshots
)

// Change is the content of an operation that writes.
type Change struct {
	Kind        ChangeKind
	Off, Length int64 // bytes; Length is Data's, when there is some
	Data        []byte
	pooled      bool       // Data goes back to the pool when it is applied
	snapshots   []Snapshot // a List's
}

// newChange returns a change with room for n bytes.
func newChange(n int) *Change {
	return &Change{Data: bufpool.Get(n), Length: int64(n), pooled: true}
}

// release gives lent memory back. Nobody may use Data afterwards.
func (c *Change) release() {
	if c.pooled {
		bufpool.Put(c.Data)
		c.Data, c.pooled = nil, false
	}
}

// blocks returns the change's first block and the one behind its last.
func (c *Change) blocks() (first, end uint64) {
	return uint64(c.Off / BlockSize), uint64((c.Off + c.Length + BlockSize - 1) / BlockSize)
}

// changeHeader is the size of a change on the wire before its data: kind uint8, 7
// of zero, offset and length int64, little-endian.
const changeHeader = 24

func (c *Change) appendHeader(b []byte) []byte {
	b = append(b, byte(c.Kind), 0, 0, 0, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(c.Off))
	return binary.LittleEndian.AppendUint64(b, uint64(c.Length))
}

// decodeChange reads a change's header, of which size bytes of data follow.
func decodeChange(b []byte, size int) (*Change, error) {
	c := &Change{Kind: ChangeKind(b[0]), Off: int64(binary.LittleEndian.Uint64(b[8:])), Length: int64(binary.LittleEndian.Uint64(b[16:]))}
	fits := (c.Kind == Data || c.Kind == Act || c.Kind == List) && c.Length == int64(size) || (c.Kind == Trim || c.Kind == Zero) && size == 0
	if !fits || c.Off < 0 || c.Length < 0 || c.Off > math.MaxInt64-BlockSize-c.Length {
		return nil, fault.New(fault.Invalid, "a change of kind %d, %d bytes at %d, with %d bytes of data", c.Kind, c.Length, c.Off, size)
	}
	return c, nil
}
