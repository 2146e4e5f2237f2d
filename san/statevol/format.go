package statevol

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"slices"

	"steadfast/block"
	"steadfast/fault"
)

// Layout, in blocks of block.BlockSize: docs/formats/state-volume.md.
const (
	version = 1

	sessionFirst  = 64 // block
	sessionBlocks = SessionsMax / sessionsPer
	sessionLen    = 64 // bytes
	sessionsPer   = block.BlockSize / sessionLen

	slotFirst  = 128 // block
	slotBlocks = 31
	slotHeader = 64 // bytes
)

var (
	volumeMagic = [8]byte{'S', 'F', 's', 't', 'a', 't', 'e', 0}
	slotMagic   = [8]byte{'S', 'F', 'u', 'n', 'i', 't', 0, 0}
)

// checksum is CRC-32C of parts, one after the other.
func checksum(parts ...[]byte) (sum uint32) {
	table := crc32.MakeTable(crc32.Castagnoli)
	for _, p := range parts {
		sum = crc32.Update(sum, table, p)
	}
	return sum
}

// blank reports whether b is all zeros.
func blank(b []byte) bool {
	return !slices.ContainsFunc(b, func(v byte) bool { return v != 0 })
}

// encodeHeader makes the volume's first block.
func encodeHeader() []byte {
	b := make([]byte, block.BlockSize)
	le := binary.LittleEndian
	copy(b, volumeMagic[:])
	for i, v := range []uint32{version, Units, slotFirst, slotBlocks, SessionsMax, sessionFirst} {
		le.PutUint32(b[8+4*i:], v)
	}
	le.PutUint32(b[32:], checksum(b[:32]))
	return b
}

// checkHeader reads the volume's first block. It returns true when it is all
// zeros. Fails with fault.Invalid for a volume of another version, and
// with fault.Corrupt for what is no state volume.
func checkHeader(b []byte) (fresh bool, err error) {
	if blank(b) {
		return true, nil
	}
	le := binary.LittleEndian
	switch v := le.Uint32(b[8:]); {
	case [8]byte(b[:8]) != volumeMagic:
		return false, fault.New(fault.Corrupt, "this is no state volume")
	case v != version:
		return false, fault.New(fault.Invalid, "the state volume is of version %d, and this program knows %d", v, version)
	case !slices.Equal(b[:36], encodeHeader()[:36]):
		return false, fault.New(fault.Corrupt, "the state volume's header does not match its checksum")
	}
	return false, nil
}

// slot is one of the two places of a unit's state.
type slot struct {
	kind  slotKind
	seq   uint64
	state []byte
}

type slotKind uint8

const (
	slotEmpty slotKind = iota // never written
	slotTorn                  // written in part
	slotWhole
)

// slotOffset returns where slot i of a unit begins, in bytes.
func slotOffset(unit uint32, i int) int64 {
	return (slotFirst + (2*int64(unit-1)+int64(i))*slotBlocks) * block.BlockSize
}

// encodeSlot makes the blocks of a slot that state needs.
func encodeSlot(unit uint32, seq uint64, state []byte) []byte {
	n := (slotHeader + len(state) + block.BlockSize - 1) / block.BlockSize * block.BlockSize
	b := make([]byte, n)
	le := binary.LittleEndian
	copy(b, slotMagic[:])
	le.PutUint32(b[8:], unit)
	le.PutUint32(b[12:], uint32(len(state)))
	le.PutUint64(b[16:], seq)
	le.PutUint32(b[24:], checksum(b[:24], state))
	copy(b[slotHeader:], state)
	return b
}

// slotLen returns how many bytes of a slot, in whole blocks, its first block
// says that it needs; one block when it says nothing that makes sense.
func slotLen(first []byte) int {
	n := int64(slotHeader) + int64(binary.LittleEndian.Uint32(first[12:]))
	if [8]byte(first[:8]) != slotMagic || n > slotBlocks*block.BlockSize {
		return block.BlockSize
	}
	return int((n + block.BlockSize - 1) / block.BlockSize * block.BlockSize)
}

// decodeSlot reads a slot: its blocks as slotLen counts them.
func decodeSlot(unit uint32, b []byte) slot {
	if blank(b[:block.BlockSize]) {
		// The first block may be the one that did not land, of a first write.
		return slot{kind: slotEmpty}
	}
	le := binary.LittleEndian
	n := int64(slotHeader) + int64(le.Uint32(b[12:]))
	if [8]byte(b[:8]) != slotMagic || le.Uint32(b[8:]) != unit || n > int64(len(b)) ||
		checksum(b[:24], b[slotHeader:n]) != le.Uint32(b[24:]) {
		return slot{kind: slotTorn}
	}
	return slot{slotWhole, le.Uint64(b[16:]), b[slotHeader:n]}
}

// encodeSession writes s into its place, whole: 64 bytes.
func encodeSession(b []byte, s Session) {
	clear(b[:sessionLen])
	if s == (Session{}) {
		return
	}
	le := binary.LittleEndian
	b[0] = 6
	if s.Alias.Addr().Is4() {
		b[0] = 4
	}
	le.PutUint16(b[4:], s.Alias.Port())
	le.PutUint16(b[6:], s.Client.Port())
	copy(b[8:24], s.Alias.Addr().AsSlice())
	copy(b[24:40], s.Client.Addr().AsSlice())
	le.PutUint32(b[60:], checksum(b[:60]))
}

// decodeSession reads a place. It returns false for a free one, and for one
// that was written in part: the table is good for hints only.
func decodeSession(b []byte) (s Session, ok bool) {
	le := binary.LittleEndian
	if le.Uint32(b[60:]) != checksum(b[:60]) {
		return s, false
	}
	var alias, client netip.Addr
	switch b[0] {
	case 4:
		alias, client = netip.AddrFrom4([4]byte(b[8:12])), netip.AddrFrom4([4]byte(b[24:28]))
	case 6:
		alias, client = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	default:
		return s, false
	}
	return plain(Session{netip.AddrPortFrom(alias, le.Uint16(b[4:])), netip.AddrPortFrom(client, le.Uint16(b[6:]))})
}

// plain gives a session the one form that it is compared and kept in: without
// zones, IPv4 addresses as such. It returns false when an end is no address
// with a port, or when the ends are of two families.
func plain(s Session) (Session, bool) {
	end := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	s = Session{end(s.Alias), end(s.Client)}
	ok := s.Alias.IsValid() && s.Client.IsValid() && s.Alias.Port() != 0 && s.Client.Port() != 0 &&
		s.Alias.Addr().Is4() == s.Client.Addr().Is4()
	return s, ok
}
