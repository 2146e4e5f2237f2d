package trial

import (
	"bytes"
	"encoding/binary"
)

// Block is what is written and judged at once, in bytes.
const Block = 4096

// magic begins every sector that was stamped.
const magic = "SFTRIAL1"

// stamp says which write put a block there. The zero value is a block that was
// never written.
type stamp struct {
	run     uint64 // of the load
	block   uint64 // its number on the disk
	version uint64 // counts the writes of a block in a run, from 1 on
}

// put fills a block: each sector with the stamp, its own number, and noise made of
// both, so that no two sectors are alike and a block that was put together of two
// writes is none.
func (s stamp) put(p []byte) {
	if s == (stamp{}) {
		clear(p)
		return
	}
	le := binary.LittleEndian
	for i := range len(p) / Sector {
		sector := p[i*Sector : (i+1)*Sector]
		copy(sector, magic)
		le.PutUint64(sector[8:], s.run)
		le.PutUint64(sector[16:], s.block)
		le.PutUint64(sector[24:], s.version)
		le.PutUint64(sector[32:], uint64(i))
		x := s.run ^ s.block<<24 ^ s.version*0x9e3779b97f4a7c15 ^ uint64(i)<<56 | 1
		for at := 40; at < Sector; at += 8 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			le.PutUint64(sector[at:], x)
		}
	}
}

// stampOf reads a block's stamp, and reports whether the whole block is of it.
// Zeros are the zero stamp.
func stampOf(p []byte) (stamp, bool) {
	var s stamp
	if string(p[:8]) == magic {
		le := binary.LittleEndian
		s = stamp{le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:])}
	}
	want := make([]byte, len(p))
	s.put(want)
	return s, bytes.Equal(p, want)
}
