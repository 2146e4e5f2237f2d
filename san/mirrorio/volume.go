package mirrorio

import (
	"steadfast/block"
	"steadfast/fault"
	"steadfast/san/mirror"
)

// Volume is a volume of a group: what is answered is on both nodes, as the
// group's rules have it.
type Volume struct {
	group  *Group
	number uint32
	size   func() int64
	cached func() bool // the volume has a write cache
}

var _ block.Device = (*Volume)(nil)

// Volume returns the group's volume of a number. size and cached tell what it is
// at the moment.
func (g *Group) Volume(number uint32, size func() int64, cached func() bool) *Volume {
	return &Volume{group: g, number: number, size: size, cached: cached}
}

// Size implements block.Device.
func (v *Volume) Size() int64 { return v.size() }

// op describes an operation on a range of bytes.
func (v *Volume) op(kind mirror.Kind, off, n int64) (mirror.Op, error) {
	if size := v.size(); off < 0 || n < 0 || off > size-n || off%block.SectorSize != 0 || n%block.SectorSize != 0 {
		return mirror.Op{}, fault.New(fault.Invalid, "%d bytes at %d are not whole sectors of a volume of %d bytes", n, off, size)
	}
	first, end := off/BlockSize, (off+n+BlockSize-1)/BlockSize
	return mirror.Op{Kind: kind, Volume: v.number, Block: uint64(first), Count: uint64(end - first)}, nil
}

// ReadAt implements block.Device.
func (v *Volume) ReadAt(p []byte, off int64) error {
	op, err := v.op(mirror.Read, off, int64(len(p)))
	if err != nil || len(p) == 0 {
		return err
	}
	if v.group.readPast(op, p, off) {
		return nil
	}
	return v.group.begin(op, &request{read: p, off: off})
}

// TryReadAt is ReadAt if that needs no waiting, neither for a drive nor for
// another node, and else returns false with p undefined.
func (v *Volume) TryReadAt(p []byte, off int64) bool {
	op, err := v.op(mirror.Read, off, int64(len(p)))
	return err == nil && len(p) > 0 && v.group.tryReadPast(op, p, off)
}

// pieceMax bounds the bytes of one operation that carries data; a larger write is
// several, for which no order is promised. A store does as much in one step
// (128 blocks), so that what it has no room for is not there in part.
const pieceMax = 512 << 10

// WriteAt implements block.Device.
func (v *Volume) WriteAt(p []byte, off int64, flags block.Flags) error {
	for {
		n := min(len(p), pieceMax-int(off%BlockSize))
		if err := v.change(&Change{Kind: Data, Off: off, Length: int64(n), Data: p[:n]}, flags); err != nil || n == len(p) {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
}

// Trim implements block.Device.
func (v *Volume) Trim(off, n int64) error {
	return v.change(&Change{Kind: Trim, Off: off, Length: n}, 0)
}

// Zero implements block.Device. The blocks at the ends that are zeroed in part
// are operations of their own: they need room, which the rest does not, and what
// is refused for want of it has to be read.
func (v *Volume) Zero(off, n int64, flags block.Flags) error {
	for n > 0 {
		part := n
		switch rest := off % BlockSize; {
		case rest != 0:
			part = min(n, BlockSize-rest)
		case n > BlockSize:
			part = n / BlockSize * BlockSize
		}
		if err := v.change(&Change{Kind: Zero, Off: off, Length: part}, flags); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

func (v *Volume) change(c *Change, flags block.Flags) error {
	op, err := v.op(mirror.Write, c.Off, c.Length)
	if err != nil || c.Length == 0 {
		return err
	}
	op.Durable, op.Payload = flags&block.FUA != 0 || !v.cached(), c
	return v.group.begin(op, &request{})
}

// CompareAndWrite implements block.Device. The comparison is made when the
// operation's turn has come: it holds its blocks until the write is done.
func (v *Volume) CompareAndWrite(off int64, old, new []byte, flags block.Flags) (mismatch int64, err error) {
	op, err := v.op(mirror.Compare, off, int64(len(old)))
	if err != nil || len(old) == 0 {
		return -1, err
	}
	op.Durable = flags&block.FUA != 0 || !v.cached()
	op.Payload = &Change{Kind: Data, Off: off, Length: int64(len(new)), Data: new}
	r := &request{read: make([]byte, len(old)), off: off, expected: old}
	err = v.group.begin(op, r)
	return r.mismatch, err
}

// Flush implements block.Device.
func (v *Volume) Flush() error {
	return v.group.begin(mirror.Op{Kind: mirror.Flush}, &request{})
}
