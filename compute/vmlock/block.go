package vmlock

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"

	"steadfast/fault"
)

// BlockSize is the length of a lock block in bytes: what COMPARE AND WRITE
// replaces as a whole. SBC-3, 5.2.
const BlockSize = 512

// Versions of the lock block's form: the second one is written only of a machine
// that is, or within its generation was, on two hosts.
const (
	versionOne  = 1
	versionPair = 2
)

// Bounds of what keys are made of.
const (
	BootMax       = 1<<20 - 1
	GenerationMax = 1<<20 - 1
	AttemptMax    = 1<<8 - 1
)

var magic = [8]byte{'S', 'F', 'l', 'o', 'c', 'k', 0, 0}

// ID is a machine's identifier.
type ID [16]byte

// String returns it in hex.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID reads what String returns. Fails with fault.Invalid.
func ParseID(text string) (id ID, err error) {
	if b, err := hex.DecodeString(text); err == nil && len(b) == len(id) {
		return ID(b), nil
	}
	return id, fault.New(fault.Invalid, "%.80q is no identifier of a machine", text)
}

// Owner is a host in one of its lives.
type Owner struct {
	Host uint16 // the number that it was given once
	Boot uint32
}

// Block is what a lock block says.
type Block struct {
	VM ID
	// Generation is that of the placement which took the lock last; 0 before any.
	Generation uint64
	Owner      Owner
	// Attempt numbers the owner's attempts at this generation, from 1, and Nonce
	// tells any two apart: what a host reads after an answer was lost is its own
	// doing when the nonce is, and at no other time.
	Attempt uint8
	Nonce   [16]byte
	// Held is false when the owner has given the lock back.
	Held bool
	// Turn counts the changes within a generation: from alone to a pair and back,
	// and from one of a pair to the other. No two blocks of a generation share one.
	Turn uint32
	// Partner runs the machine's secondary, which may take the lock over from this
	// very block. The zero Owner: nobody may, the owner is alone.
	Partner Owner
}

// Paired tells whether a partner may take the lock over.
func (b Block) Paired() bool { return b.Partner != Owner{} }

// After tells whether the block was written later than another one of the same machine.
func (b Block) After(o Block) bool {
	return b.Generation > o.Generation || b.Generation == o.Generation && b.Turn > o.Turn
}

// Encode returns the block's bytes:
//
//	0 magic, 8 version, 12 flags (1 held, 2 paired), 16 machine, 32 generation,
//	40 host, 42 attempt, 44 boot, 48 nonce, 64 turn, 68 partner's host,
//	72 partner's boot, 508 CRC-32C of what is before
//
// little-endian; the rest is zero. A block without turn and partner is of version 1.
func (b Block) Encode() (p [BlockSize]byte) {
	le := binary.LittleEndian
	copy(p[:], magic[:])
	le.PutUint32(p[8:], versionOne)
	if b.Held {
		p[12] |= 1
	}
	if b.Paired() {
		p[12] |= 2
	}
	if b.Turn != 0 || b.Paired() {
		le.PutUint32(p[8:], versionPair)
	}
	copy(p[16:], b.VM[:])
	le.PutUint64(p[32:], b.Generation)
	le.PutUint16(p[40:], b.Owner.Host)
	p[42] = b.Attempt
	le.PutUint32(p[44:], b.Owner.Boot)
	copy(p[48:], b.Nonce[:])
	le.PutUint32(p[64:], b.Turn)
	le.PutUint16(p[68:], b.Partner.Host)
	le.PutUint32(p[72:], b.Partner.Boot)
	le.PutUint32(p[508:], checksum(p[:508]))
	return p
}

// Decode reads a lock block. Fails with fault.Corrupt for what is none, and with
// fault.Stale for one of a later version. What was decoded encodes to the same
// bytes.
func Decode(p [BlockSize]byte) (b Block, err error) {
	le := binary.LittleEndian
	switch {
	case [8]byte(p[:8]) != magic:
		return b, fault.New(fault.Corrupt, "this is no lock block of a machine")
	case le.Uint32(p[508:]) != checksum(p[:508]):
		return b, fault.New(fault.Corrupt, "the lock block does not match its checksum")
	case le.Uint32(p[8:]) > versionPair:
		return b, fault.New(fault.Stale, "the lock block is of version %d, and this program knows %d; upgrade this host", le.Uint32(p[8:]), versionPair)
	}
	b = Block{
		VM: ID(p[16:32]), Generation: le.Uint64(p[32:]), Owner: Owner{le.Uint16(p[40:]), le.Uint32(p[44:])},
		Attempt: p[42], Nonce: [16]byte(p[48:64]), Held: p[12]&1 != 0,
		Turn: le.Uint32(p[64:]), Partner: Owner{le.Uint16(p[68:]), le.Uint32(p[72:])},
	}
	if b.Encode() != p {
		return Block{}, fault.New(fault.Corrupt, "the lock block says what no program writes")
	}
	return b, nil
}

func checksum(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

// Key returns the reservation key of one attempt:
//
//	host number 16 bits, boot 20, generation 20, attempt 8
//
// No two attempts share one: numbers of hosts are given once, and each of the
// others only goes up under what is left of it. So "a key that is not mine" is
// somebody else's or a former life's, and is fenced without a doubt. It is never
// 0. Fails with fault.Limit beyond the bounds, and with fault.Invalid for a 0.
func Key(o Owner, generation uint64, attempt uint8) (uint64, error) {
	switch {
	case o.Host == 0 || o.Boot == 0 || generation == 0 || attempt == 0:
		return 0, fault.New(fault.Invalid, "there is no key of host %d, boot %d, generation %d, attempt %d", o.Host, o.Boot, generation, attempt)
	case o.Boot > BootMax:
		return 0, fault.New(fault.Limit, "host %d has begun %d times; remove the host and add it again, so that it gets another number", o.Host, o.Boot)
	case generation > GenerationMax:
		return 0, fault.New(fault.Limit, "the machine was placed %d times; export it and import it as another", generation)
	}
	return uint64(o.Host)<<48 | uint64(o.Boot)<<28 | generation<<8 | uint64(attempt), nil
}

// KeyOf takes a key apart.
func KeyOf(key uint64) (o Owner, generation uint64, attempt uint8) {
	return Owner{uint16(key >> 48), uint32(key>>28) & BootMax}, key >> 8 & GenerationMax, uint8(key)
}
