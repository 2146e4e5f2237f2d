package alias

import "encoding/binary"

// NDKind tells a neighbor solicitation from an advertisement: the ICMPv6 type.
type NDKind uint8

// The kinds. RFC 4861, 4.3 and 4.4.
const (
	Solicitation  NDKind = 135
	Advertisement NDKind = 136
)

// Flags of an advertisement. RFC 4861, 4.4.
const (
	NDOverride  = 0x20
	NDSolicited = 0x40
)

const (
	ipv6Len   = 40
	ndLen     = 24 // type, code, checksum, flags, target
	ndLinkLen = 8  // the option that holds a MAC
	protoTCP  = 6
	protoND   = 58
	ndHops    = 255 // a router would have lowered it: so the frame is from this link
)

// ND is a neighbor solicitation or advertisement in its Ethernet frame.
type ND struct {
	EtherDst, EtherSrc MAC
	Src, Dst           IPv6
	Kind               NDKind
	Flags              uint8 // of an advertisement
	Target             IPv6
	// Link is the link-layer address option (source or target, by Kind); HasLink
	// says that it is there.
	Link    MAC
	HasLink bool
}

// ProbeND asks who has ip without claiming it, as duplicate address detection
// does: from the unspecified address, to the solicited-node group of ip.
// RFC 4862, 5.4.2.
func ProbeND(mac MAC, ip IPv6) ND {
	group := IPv6{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff, 13: ip[13], 14: ip[14], 15: ip[15]}
	return ND{
		EtherDst: MAC{0x33, 0x33, 0xff, ip[13], ip[14], ip[15]}, EtherSrc: mac,
		Dst: group, Kind: Solicitation, Target: ip,
	}
}

// AnnounceND tells all nodes of the link that mac has ip now, and to replace
// what they know: an unsolicited advertisement. RFC 4861, 7.2.6.
func AnnounceND(mac MAC, ip IPv6) ND {
	return ND{
		EtherDst: MAC{0x33, 0x33, 0, 0, 0, 1}, EtherSrc: mac,
		Src: ip, Dst: IPv6{0: 0xff, 1: 0x02, 15: 1},
		Kind: Advertisement, Flags: NDOverride, Target: ip, Link: mac, HasLink: true,
	}
}

// linkOption is the type of the link-layer address option that goes with kind.
func (k NDKind) linkOption() byte {
	if k == Solicitation {
		return 1 // source
	}
	return 2 // target
}

// Append appends the frame to b.
func (n ND) Append(b []byte) []byte {
	length := ndLen
	if n.HasLink {
		length += ndLinkLen
	}
	b = appendEther(b, n.EtherDst, n.EtherSrc, EtherTypeIPv6)
	b = appendIPv6(b, n.Src, n.Dst, protoND, ndHops, length)
	at := len(b)
	b = append(b, byte(n.Kind), 0, 0, 0, n.Flags, 0, 0, 0)
	b = append(b, n.Target[:]...)
	if n.HasLink {
		b = append(b, n.Kind.linkOption(), 1)
		b = append(b, n.Link[:]...)
	}
	sum := checksum(pseudo6(n.Src, n.Dst, protoND, length), b[at:])
	binary.BigEndian.PutUint16(b[at+2:], sum)
	return b
}

// ParseND reads a frame and checks what RFC 4861, 7.1 demands: hop limit,
// checksum, code, lengths, and options that do not run past the end.
func ParseND(frame []byte) (n ND, ok bool) {
	if len(frame) < etherLen+ipv6Len+ndLen || binary.BigEndian.Uint16(frame[12:]) != EtherTypeIPv6 {
		return ND{}, false
	}
	head, body := frame[etherLen:etherLen+ipv6Len], frame[etherLen+ipv6Len:]
	length := int(binary.BigEndian.Uint16(head[4:]))
	if head[0]>>4 != 6 || head[6] != protoND || head[7] != ndHops || length < ndLen || length > len(body) {
		return ND{}, false
	}
	body = body[:length]
	n = ND{
		EtherDst: MAC(frame), EtherSrc: MAC(frame[6:]),
		Src: IPv6(head[8:]), Dst: IPv6(head[24:]),
		Kind: NDKind(body[0]), Flags: body[4], Target: IPv6(body[8:]),
	}
	known := n.Kind == Solicitation || n.Kind == Advertisement
	if !known || body[1] != 0 || checksum(pseudo6(n.Src, n.Dst, protoND, length), body) != 0 {
		return ND{}, false
	}
	for options := body[ndLen:]; len(options) > 0; {
		if len(options) < 2 || options[1] == 0 || int(options[1])*8 > len(options) {
			return ND{}, false
		}
		if options[0] == n.Kind.linkOption() && options[1] == 1 {
			n.Link, n.HasLink = MAC(options[2:]), true
		}
		options = options[int(options[1])*8:]
	}
	return n, true
}

// Conflict tells whether n shows another station that uses ip, or that is about
// to, while mac probes for it: an advertisement of it, or a probe for it by
// someone else. RFC 4862, 5.4.3 and 5.4.4.
func (n ND) Conflict(mac MAC, ip IPv6) bool {
	if n.EtherSrc == mac || n.Target != ip {
		return false
	}
	return n.Kind == Advertisement || n.Src == IPv6{}
}

// Owner is the station that n speaks for.
func (n ND) Owner() MAC {
	if n.HasLink {
		return n.Link
	}
	return n.EtherSrc
}

// appendIPv6 appends a header for a payload of length bytes. RFC 8200, 3.
func appendIPv6(b []byte, src, dst IPv6, proto, hops byte, length int) []byte {
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, proto, hops)
	b = append(b, src[:]...)
	return append(b, dst[:]...)
}

// pseudo6 is what a checksum covers besides the payload. RFC 8200, 8.1.
func pseudo6(src, dst IPv6, proto byte, length int) []byte {
	b := make([]byte, 0, 40)
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return append(b, 0, 0, 0, proto)
}
