package alias

import "encoding/binary"

// ARPOp tells an ARP request from a reply.
type ARPOp uint16

// The operations that matter here. RFC 826.
const (
	ARPRequest ARPOp = 1
	ARPReply   ARPOp = 2
)

const arpLen = 28

// ARP is an ARP packet for IPv4 in its Ethernet frame. RFC 826.
type ARP struct {
	Dst, Src MAC // of the frame
	Op       ARPOp
	Sender   MAC
	SenderIP IPv4 // zero in a probe
	Target   MAC
	TargetIP IPv4
}

// ProbeARP asks who has ip without claiming it: the sender's address is zero,
// so that nobody's cache learns it. RFC 5227, 2.1.1.
func ProbeARP(mac MAC, ip IPv4) ARP {
	return ARP{Dst: broadcast(), Src: mac, Op: ARPRequest, Sender: mac, TargetIP: ip}
}

// AnnounceARP says that mac has ip, as a request and as a reply. RFC 5227, 3
// wants the request; there is equipment that learns only from one of the two.
func AnnounceARP(mac MAC, ip IPv4) [2]ARP {
	request := ARP{Dst: broadcast(), Src: mac, Op: ARPRequest, Sender: mac, SenderIP: ip, TargetIP: ip}
	reply := request
	reply.Op, reply.Target = ARPReply, mac // Linux takes a reply for gratuitous only so
	return [2]ARP{request, reply}
}

// Append appends the frame to b. Drivers pad it to the shortest frame allowed.
func (a ARP) Append(b []byte) []byte {
	b = appendEther(b, a.Dst, a.Src, EtherTypeARP)
	// Hardware Ethernet, protocol IPv4, and their lengths.
	b = append(b, 0, 1, 0x08, 0x00, 6, 4)
	b = binary.BigEndian.AppendUint16(b, uint16(a.Op))
	b = append(b, a.Sender[:]...)
	b = append(b, a.SenderIP[:]...)
	b = append(b, a.Target[:]...)
	return append(b, a.TargetIP[:]...)
}

// ParseARP reads a frame. It says no to anything but a request or reply for
// IPv4 over Ethernet. Padding after it is ignored.
func ParseARP(frame []byte) (a ARP, ok bool) {
	if len(frame) < etherLen+arpLen || binary.BigEndian.Uint16(frame[12:]) != EtherTypeARP {
		return ARP{}, false
	}
	body := frame[etherLen:]
	if [6]byte(body) != [6]byte{0, 1, 0x08, 0x00, 6, 4} {
		return ARP{}, false
	}
	a = ARP{
		Dst: MAC(frame), Src: MAC(frame[6:]),
		Op:     ARPOp(binary.BigEndian.Uint16(body[6:])),
		Sender: MAC(body[8:]), SenderIP: IPv4(body[14:]),
		Target: MAC(body[18:]), TargetIP: IPv4(body[24:]),
	}
	return a, a.Op == ARPRequest || a.Op == ARPReply
}

// Conflict tells whether a shows another station that uses ip, or that is about
// to, while mac probes for it. RFC 5227, 2.1.1: any packet sent from the address,
// and a probe for it by someone else.
func (a ARP) Conflict(mac MAC, ip IPv4) bool {
	if a.Sender == mac {
		return false // our own frame, come back by a switch's mirror or a loop
	}
	probe := a.Op == ARPRequest && a.SenderIP == IPv4{} && a.TargetIP == ip
	return a.SenderIP == ip || probe
}
