// Package storetest judges a store. It has a model of a pool that is too dumb
// to be wrong (every snapshot and clone is a whole copy), knows which states a
// crash may leave, reads a pool in every way there is, and compares.
//
// What may be there after a crash: a store recovers a prefix of its log, so
// the state after the first k operations, for some k that covers at least
// every operation that was answered as durable, and, of operation k+1, any of
// the blocks it writes. If only the process died, k covers every operation
// that was answered at all.
package storetest

import (
	"encoding/binary"
	"fmt"

	"steadfast/block"
)

// SectorsPerBlock is how many sectors a block has.
const SectorsPerBlock = block.BlockSize / block.SectorSize

// Stamp names the content of one sector. Histories give every sector they
// write a new stamp, so that a sector says which write it is of. Zero stands
// for zeros.
type Stamp uint64

// Block is the content of one block.
type Block [SectorsPerBlock]Stamp

const wordsPerSector = block.SectorSize / 8

// step makes the words of a sector differ; it is odd, so that no word of a
// stamp but zero is zero.
const step = 0x9e3779b97f4a7c15

// Encode writes the sectors that stamps name to p.
func Encode(p []byte, stamps []Stamp) {
	for i, s := range stamps {
		for w := range wordsPerSector {
			binary.LittleEndian.PutUint64(p[i*block.SectorSize+w*8:], word(s, w))
		}
	}
}

// Bytes returns the sectors that stamps name.
func Bytes(stamps []Stamp) []byte {
	p := make([]byte, len(stamps)*block.SectorSize)
	Encode(p, stamps)
	return p
}

// Decode names the sectors in p. A sector that no stamp makes is an error:
// whatever it is, nobody has written it.
func Decode(p []byte) ([]Stamp, error) {
	out := make([]Stamp, len(p)/block.SectorSize)
	for i := range out {
		sector := p[i*block.SectorSize : (i+1)*block.SectorSize]
		s := Stamp(binary.LittleEndian.Uint64(sector))
		for w := range wordsPerSector {
			if got := binary.LittleEndian.Uint64(sector[w*8:]); got != word(s, w) {
				return nil, fmt.Errorf("sector %d was never written: begins as %#x, word %d is %#x", i, s, w, got)
			}
		}
		out[i] = s
	}
	return out, nil
}

func word(s Stamp, w int) uint64 { return uint64(s) * (1 + 2*uint64(w)*step) }
