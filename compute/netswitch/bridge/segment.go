package bridge

import "encoding/binary"

// Of headers: RFC 791, 3.1; RFC 9293, 3.1; IEEE 802.1Q, 9.6.
const (
	typeIPv4 = 0x0800
	typeVLAN = 0x8100

	ipLeast     = 20
	ipTCP       = 6
	ipFragments = 0x3fff // more fragments, or an offset
	tcpLeast    = 20

	flagFIN, flagPSH, flagCWR = 0x01, 0x08, 0x80
)

// segment is where the parts of a whole TCP segment over IPv4 are in its frame.
type segment struct {
	ip, tcp, data int
}

// parse finds them; false of any other frame, and of one whose lengths are not its own.
func parse(frame []byte) (s segment, ok bool) {
	be := binary.BigEndian
	kind := 12
	if len(frame) >= kind+tagBytes+2 && be.Uint16(frame[kind:]) == typeVLAN {
		kind += tagBytes
	}
	s.ip = kind + 2
	if len(frame) < s.ip+ipLeast+tcpLeast || len(frame) > FrameMax || be.Uint16(frame[kind:]) != typeIPv4 {
		return s, false
	}
	ip := frame[s.ip:]
	size := int(ip[0]&15) * 4
	if ip[0]>>4 != 4 || size < ipLeast || len(ip) < size+tcpLeast || ip[9] != ipTCP ||
		be.Uint16(ip[6:])&ipFragments != 0 || int(be.Uint16(ip[2:])) != len(ip) {
		return s, false
	}
	s.tcp = s.ip + size
	size = int(frame[s.tcp+12]>>4) * 4
	s.data = s.tcp + size
	return s, size >= tcpLeast && s.data <= len(frame)
}

// whole tells whether a frame is a TCP segment, which may be large.
func whole(frame []byte) bool {
	_, ok := parse(frame)
	return ok
}

// Large tells whether a frame is longer than an ordinary one, so that who takes only those is
// to be given what Cut makes of it.
func Large(frame []byte, mtu int) bool { return len(frame) > ordinary(mtu) }

// Cut calls do with the frames of at most mtu that one makes of a large segment, each
// good until do returns. Of a frame that is no such segment it makes none: false. The options of
// both headers are in each of them, as cards do it.
func Cut(frame []byte, mtu int, do func(frame []byte)) bool {
	s, ok := parse(frame)
	most := mtu - (s.data - s.ip)
	if !ok || most <= 0 {
		return false
	}
	be := binary.BigEndian
	head, data := frame[:s.data], frame[s.data:]
	id, sequence, flags := be.Uint16(head[s.ip+4:]), be.Uint32(head[s.tcp+4:]), head[s.tcp+13]
	piece := make([]byte, 0, s.data+most)
	for off := 0; off < len(data); id++ {
		size := min(most, len(data)-off)
		piece = append(append(piece[:0], head...), data[off:off+size]...)
		ip, tcp := piece[s.ip:s.tcp], piece[s.tcp:]
		be.PutUint16(ip[2:], uint16(len(piece)-s.ip))
		be.PutUint16(ip[4:], id)
		be.PutUint16(ip[10:], 0)
		be.PutUint16(ip[10:], ^sum(0, ip))
		be.PutUint32(tcp[4:], sequence+uint32(off))
		tcp[13] = flags
		if off > 0 {
			tcp[13] &^= flagCWR // it tells of one reduction, once (RFC 3168, 6.1.2)
		}
		if off += size; off < len(data) {
			tcp[13] &^= flagFIN | flagPSH
		}
		be.PutUint16(tcp[16:], 0)
		pseudo := uint64(ipTCP+len(tcp)) + uint64(be.Uint16(ip[12:])) + uint64(be.Uint16(ip[14:])) + uint64(be.Uint16(ip[16:])) + uint64(be.Uint16(ip[18:]))
		be.PutUint16(tcp[16:], ^sum(pseudo, tcp))
		do(piece)
	}
	return true
}

// sum is the one's complement sum of 16 bits of words in the network's order, and of what was
// there before. RFC 1071.
func sum(s uint64, p []byte) uint16 {
	for ; len(p) >= 4; p = p[4:] { // no carry is lost: 64 KiB of 32 bits each
		s += uint64(binary.BigEndian.Uint32(p))
	}
	if len(p) >= 2 {
		s += uint64(binary.BigEndian.Uint16(p))
		p = p[2:]
	}
	if len(p) == 1 {
		s += uint64(p[0]) << 8
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
