package virtio

import (
	"encoding/binary"
	"math/bits"
)

// What a network card does in its driver's place: checksums, and cutting TCP segments that
// are larger than the MTU. All of it is a function of the frame and of the card's MTU.

// frameMost is the longest frame: an Ethernet header with one VLAN tag, and IPv4's most.
const frameMost = netFrameLeast + 4 + 65535

// Offsets in headers. RFC 791, 3.1; RFC 9293, 3.1; IEEE 802.1Q, 9.6.
const (
	etherType     = 12
	etherTypeIPv4 = 0x0800
	etherTypeVLAN = 0x8100

	ipLength    = 2
	ipID        = 4
	ipFragment  = 6
	ipProtocol  = 9
	ipChecksum  = 10
	ipAddresses = 12
	ipLeast     = 20
	ipTCP       = 6
	// ipFragmented are the bits of a packet that is a part of another one.
	ipFragmented = 0x3fff

	tcpSequence = 4
	tcpOffset   = 12
	tcpFlags    = 13
	tcpChecksum = 16
	tcpLeast    = 20

	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// sum16 adds bytes to a one's complement sum, as words of the network's order. RFC 1071.
func sum16(sum uint64, p []byte) uint64 {
	carry := uint64(0)
	for ; len(p) >= 8; p = p[8:] {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(p), carry)
	}
	var last [8]byte
	copy(last[:], p)
	sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(last[:]), carry)
	sum, carry = bits.Add64(sum, 0, carry)
	return sum + carry
}

// fold makes 16 bits of a sum.
func fold(sum uint64) uint16 {
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// complete puts the checksum of a frame from start on into the place at, which holds the
// sum of what is to be in it besides; false if they are not in the frame. 5.1.6.2.
func complete(frame []byte, start, at int) bool {
	if start >= len(frame) || at+2 > len(frame) {
		return false
	}
	sum := ^fold(sum16(0, frame[start:]))
	if sum == 0 { // which is no checksum to UDP (RFC 768), and the same to others
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(frame[at:], sum)
	return true
}

// tcp4 is where the parts of a whole TCP segment are in a frame.
type tcp4 struct {
	frame            []byte
	ip, tcp, payload int
}

// parseTCP4 finds them; false of any other frame.
func parseTCP4(frame []byte) (t tcp4, ok bool) {
	be := binary.BigEndian
	at := etherType
	if len(frame) >= at+6 && be.Uint16(frame[at:]) == etherTypeVLAN {
		at += 4
	}
	if len(frame) < at+2+ipLeast+tcpLeast || be.Uint16(frame[at:]) != etherTypeIPv4 {
		return t, false
	}
	t.frame, t.ip = frame, at+2
	ip := frame[t.ip:]
	size := int(ip[0]&15) * 4
	if ip[0]>>4 != 4 || size < ipLeast || len(ip) < size+tcpLeast || ip[ipProtocol] != ipTCP ||
		be.Uint16(ip[ipFragment:])&ipFragmented != 0 || int(be.Uint16(ip[ipLength:])) != len(ip) {
		return t, false
	}
	t.tcp = t.ip + size
	size = int(frame[t.tcp+tcpOffset]>>4) * 4
	t.payload = t.tcp + size
	return t, size >= tcpLeast && t.payload <= len(frame)
}

// most is the payload of a segment that fits a packet of so many bytes.
func (t tcp4) most(mtu int) int { return mtu - (t.payload - t.ip) }

// pseudo is the sum of the pseudo header. RFC 9293, 3.1.
func (t tcp4) pseudo() uint64 {
	return sum16(ipTCP+uint64(len(t.frame)-t.tcp), t.frame[t.ip+ipAddresses:][:8])
}

// setPseudo leaves the segment's checksum to who takes it further: it holds the sum of the
// pseudo header.
func (t tcp4) setPseudo() {
	binary.BigEndian.PutUint16(t.frame[t.tcp+tcpChecksum:], fold(t.pseudo()))
}

// cut calls do with the segments that one makes with at most so much payload each, until
// it returns false. The frames are good until do returns.
func (t tcp4) cut(most int, do func(frame []byte) bool) bool {
	be := binary.BigEndian
	buf := make([]byte, t.payload+most)
	head, data := t.frame[:t.payload], t.frame[t.payload:]
	id, sequence := be.Uint16(head[t.ip+ipID:]), be.Uint32(head[t.tcp+tcpSequence:])
	flags := head[t.tcp+tcpFlags]
	for n, off := uint16(0), 0; off < len(data); n++ { // the options of both headers are in each
		size := min(most, len(data)-off)
		s := tcp4{append(append(buf[:0], head...), data[off:off+size]...), t.ip, t.tcp, t.payload}
		ip, tcp := s.frame[s.ip:s.tcp], s.frame[s.tcp:]
		be.PutUint16(ip[ipLength:], uint16(len(s.frame)-s.ip))
		be.PutUint16(ip[ipID:], id+n)
		be.PutUint16(ip[ipChecksum:], 0)
		be.PutUint16(ip[ipChecksum:], ^fold(sum16(0, ip)))
		be.PutUint32(tcp[tcpSequence:], sequence+uint32(off))
		tcp[tcpFlags] = flags
		if off > 0 {
			tcp[tcpFlags] &^= tcpCWR // it tells of one reduction, once (RFC 3168, 6.1.2)
		}
		if off += size; off < len(data) {
			tcp[tcpFlags] &^= tcpFIN | tcpPSH
		}
		s.setPseudo()
		complete(s.frame, s.tcp, s.tcp+tcpChecksum)
		if !do(s.frame) {
			return false
		}
	}
	return true
}

// WholeTCP4 tells whether a frame is a whole TCP segment over IPv4, with one VLAN tag at most,
// whose lengths are its own: what a NetFrame that is larger than the MTU has to be.
func WholeTCP4(frame []byte) bool {
	_, ok := parseTCP4(frame)
	return ok
}

// CutTCP4 calls do with the frames of packets of at most mtu bytes that one makes of such a
// segment as cards do it, checksums right; each is good until do returns. It is false, and do is not
// called, for any other frame, and for one whose headers leave no room.
func CutTCP4(frame []byte, mtu int, do func(frame []byte)) bool {
	t, ok := parseTCP4(frame)
	if !ok || t.most(mtu) <= 0 {
		return false
	}
	return t.cut(t.most(mtu), func(piece []byte) bool { do(piece); return true })
}
