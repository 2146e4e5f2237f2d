package alias

import "encoding/binary"

// A tickle is a bare ACK that fits no state of the client's connection: its
// sequence and acknowledgment numbers are made up. RFC 9293, 3.10.7.4 has the
// client answer it with an ACK that holds its right numbers. That answer comes to
// the alias's new owner, whose kernel knows no such connection and sends a reset
// with just those numbers (RFC 9293, 3.10.7.1), which the client believes. So
// the one who resets needs to know nothing but the four ends. CTDB does it so.
//
// Linux answers at most one such ACK in half a second (tcp_invalid_ratelimit), and
// the former owner may have had that answer: its probes of a window that is zero
// are of the same kind. What takes up sequence space is answered always. So
// every second try has a FIN. It ends nothing: it would have to lie in the window
// with a fitting acknowledgment, and nobody sends what is missing before it.

const (
	ipv4Len  = 20
	tcpLen   = 20
	tcpFIN   = 0x01
	tcpACK   = 0x10
	hops     = 64
	windowed = 1234 // any value: nobody sends on it
)

// tickleSeq makes up the numbers of the n-th try. They differ, so that a try
// whose numbers happened to lie in the window is not the only one.
func tickleSeq(try int) uint32 { return uint32(try) * 0x40000001 }

// Tickle4 returns the IPv4 packet of the n-th try, from the alias to a client.
func Tickle4(src, dst IPv4, srcPort, dstPort uint16, try int) []byte {
	b := make([]byte, 0, ipv4Len+tcpLen)
	b = append(b, 0x45, 0, 0, ipv4Len+tcpLen, 0, 0, 0x40, 0, hops, protoTCP, 0, 0)
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	binary.BigEndian.PutUint16(b[10:], checksum(b, nil))
	pseudo := append(append(make([]byte, 0, 12), src[:]...), dst[:]...)
	pseudo = append(pseudo, 0, protoTCP, 0, tcpLen)
	return appendACK(b, pseudo, srcPort, dstPort, try)
}

// Tickle6 returns the IPv6 packet of the n-th try, from the alias to a client.
func Tickle6(src, dst IPv6, srcPort, dstPort uint16, try int) []byte {
	b := appendIPv6(make([]byte, 0, ipv6Len+tcpLen), src, dst, protoTCP, hops, tcpLen)
	return appendACK(b, pseudo6(src, dst, protoTCP, tcpLen), srcPort, dstPort, try)
}

// appendACK appends the TCP header of a tickle. RFC 9293, 3.1.
func appendACK(b, pseudo []byte, srcPort, dstPort uint16, try int) []byte {
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, srcPort)
	b = binary.BigEndian.AppendUint16(b, dstPort)
	b = binary.BigEndian.AppendUint32(b, tickleSeq(try))
	b = binary.BigEndian.AppendUint32(b, tickleSeq(try))
	b = append(b, tcpLen/4<<4, tcpACK|tcpFIN*byte(try%2))
	b = binary.BigEndian.AppendUint16(b, windowed)
	b = append(b, 0, 0, 0, 0)
	binary.BigEndian.PutUint16(b[at+16:], checksum(pseudo, b[at:]))
	return b
}
