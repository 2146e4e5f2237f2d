// Package alias knows the frames and the rules by which an alias IP moves from
// node to node: how an address is asked for before its first use, what counts as
// a conflict, how its new place is announced, and which segment makes a client's
// kernel give up a connection whose server is gone. Package aliasio sends them.
//
// It trusts nothing that it decodes: a frame comes from whoever is on the wire.
// A decoder takes what it can prove (lengths, types, checksums) and says no to
// the rest. Pure: bytes in, bytes out.
package alias

import "encoding/binary"

// Addresses as they stand in frames. They are arrays, so that they compare.
type (
	// MAC is an Ethernet address.
	MAC [6]byte
	// IPv4 is an address in network order.
	IPv4 [4]byte
	// IPv6 is an address in network order.
	IPv6 [16]byte
)

// String writes a MAC as people and switches do.
func (m MAC) String() string {
	const digits = "0123456789abcdef"
	text := make([]byte, 0, 3*len(m))
	for i, b := range m {
		if i > 0 {
			text = append(text, ':')
		}
		text = append(text, digits[b>>4], digits[b&15])
	}
	return string(text)
}

// broadcast reaches every station of the segment.
func broadcast() MAC { return MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// EtherTypes of the frames that this package speaks.
const (
	EtherTypeARP  = 0x0806
	EtherTypeIPv6 = 0x86dd
)

const etherLen = 14

// appendEther appends an Ethernet header.
func appendEther(b []byte, dst, src MAC, etherType uint16) []byte {
	b = append(b, dst[:]...)
	b = append(b, src[:]...)
	return binary.BigEndian.AppendUint16(b, etherType)
}

// checksum is the Internet checksum of a and b, one after the other. RFC 1071.
// a must have an even length. Over data that holds a right checksum it is 0.
func checksum(a, b []byte) uint16 {
	var sum uint32
	for _, part := range [2][]byte{a, b} {
		for len(part) >= 2 {
			sum += uint32(part[0])<<8 | uint32(part[1])
			part = part[2:]
		}
		if len(part) == 1 {
			sum += uint32(part[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
