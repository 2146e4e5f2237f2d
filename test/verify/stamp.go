package verify

import (
	"encoding/binary"
	"hash/crc32"
)

// Sector is the smallest unit that is written, and Block the one that a version
// counts for, in bytes.
const (
	Sector = 512
	Block  = 4096

	sectorsPerBlock = Block / Sector
)

// Where the fields of a stamp lie. A stamp fills its sector: what is not a
// field is noise made of the fields, so that no two sectors are alike, nothing
// compresses, and a sector that was put together of two writes has no good sum.
const (
	stampMagic   = 0 // "SFSTAMP1"
	stampRun     = 8
	stampDisk    = 16
	stampLane    = 20
	stampSector  = 24
	stampVersion = 32
	stampNoise   = 40
	stampCRC     = Sector - 4 // CRC-32C of all before
)

const magic = uint64(0x31504d4154534653) // "SFSTAMP1" as its bytes lie

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A Stamp says which write put a sector there.
type Stamp struct {
	Run     uint64 // of the Judge: stamps of earlier runs are told apart
	Disk    uint32
	Lane    uint32 // the writer
	Sector  uint64 // where it was to go, in sectors from the disk's start
	Version uint64 // counts the writes that touched the sector's block
}

// put fills one sector.
func (s Stamp) put(p []byte) {
	le := binary.LittleEndian
	le.PutUint64(p[stampMagic:], magic)
	le.PutUint64(p[stampRun:], s.Run)
	le.PutUint32(p[stampDisk:], s.Disk)
	le.PutUint32(p[stampLane:], s.Lane)
	le.PutUint64(p[stampSector:], s.Sector)
	le.PutUint64(p[stampVersion:], s.Version)
	x := s.Run ^ s.Sector<<32 ^ s.Version*0x9e3779b97f4a7c15 | 1
	at := stampNoise
	for ; at+8 <= stampCRC; at += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		le.PutUint64(p[at:], x)
	}
	le.PutUint32(p[at:], uint32(x))
	le.PutUint32(p[stampCRC:], crc32.Checksum(p[:stampCRC], castagnoli))
}

// stampOf reads one sector. Zeros are not a stamp, and not an error: zero tells.
func stampOf(p []byte) (s Stamp, zero, good bool) {
	le := binary.LittleEndian
	if le.Uint64(p[stampMagic:]) != magic {
		for _, b := range p[:Sector] {
			if b != 0 {
				return Stamp{}, false, false
			}
		}
		return Stamp{}, true, true
	}
	if le.Uint32(p[stampCRC:]) != crc32.Checksum(p[:stampCRC], castagnoli) {
		return Stamp{}, false, false
	}
	return Stamp{
		Run: le.Uint64(p[stampRun:]), Disk: le.Uint32(p[stampDisk:]), Lane: le.Uint32(p[stampLane:]),
		Sector: le.Uint64(p[stampSector:]), Version: le.Uint64(p[stampVersion:]),
	}, false, true
}
