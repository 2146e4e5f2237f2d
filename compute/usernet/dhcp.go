package usernet

import (
	"encoding/binary"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// DHCP (RFC 2131) and its options (RFC 2132).
const (
	dhcpServerPort, dhcpClientPort = 67, 68
	dhcpFixed                      = 236 // bytes before the options' cookie
	dhcpCookie                     = 0x63825363
	dhcpRequestOp, dhcpReplyOp     = 1, 2
	dhcpBytesMin                   = 300 // as BOOTP's relays and old clients expect (RFC 1542, 2.1)
	// leaseSeconds is long: the address is this guest's as long as it lives.
	leaseSeconds = 24 * 3600

	optSubnet, optRouter, optDNS, optHostname, optDomain    = 1, 3, 6, 12, 15
	optMTU, optBroadcast, optRequested, optLease            = 26, 28, 50, 51
	optType, optServer, optRenewal, optRebinding, optPad    = 53, 54, 58, 59, 0
	optEnd                                                  = 255
	dhcpDiscover, dhcpOffer, dhcpRequest, dhcpAck, dhcpNack = 1, 2, 3, 5, 6
	dhcpDecline, dhcpRelease, dhcpInform                    = 4, 7, 8
)

// dhcpServer gives guests their addresses. Without leases it keeps no state: the address is
// always the same, whoever asks on the guest's link.
type dhcpServer struct {
	o      *Options
	leases *leases // of many guests; nil for one
}

// dhcpMessage is what is used of a client's message.
type dhcpMessage struct {
	kind              byte
	xid               [4]byte
	flags             uint16
	ciaddr            netip.Addr
	giaddr            [4]byte
	chaddr            [16]byte
	hlen              byte
	requested, server netip.Addr
}

// answer returns the reply to a frame, nil if it gets none, and whether the frame is the
// server's to look at.
func (s *dhcpServer) answer(frame []byte) (reply []byte, mine bool) {
	if header.Ethernet(frame).Type() != header.IPv4ProtocolNumber {
		return nil, false
	}
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	if !ip.IsValid(len(ip)) || ip.TransportProtocol() != header.UDPProtocolNumber || ip.FragmentOffset() != 0 || ip.More() {
		return nil, false
	}
	u := header.UDP(ip.Payload())
	if len(u) < header.UDPMinimumSize || u.DestinationPort() != dhcpServerPort {
		return nil, false
	}
	// Also unicast: to renew, the client writes to the gateway.
	if dst := ip.DestinationAddress(); dst != header.IPv4Broadcast && dst != address(s.o.Gateway) && dst != address(s.o.broadcast()) {
		return nil, false
	}
	n := int(u.Length())
	if n < header.UDPMinimumSize || n > len(u) {
		return nil, true
	}
	m, ok := parseDHCP(u[header.UDPMinimumSize:n])
	if !ok {
		return nil, true
	}
	return s.reply(m), true
}

// parseDHCP reads a client's message; false if it is none.
func parseDHCP(b []byte) (dhcpMessage, bool) {
	var m dhcpMessage
	if len(b) < dhcpFixed+4 || b[0] != dhcpRequestOp || b[1] != 1 || b[2] != 6 || binary.BigEndian.Uint32(b[dhcpFixed:]) != dhcpCookie {
		return m, false
	}
	m.hlen = b[2]
	copy(m.xid[:], b[4:])
	m.flags = binary.BigEndian.Uint16(b[10:])
	m.ciaddr = netip.AddrFrom4([4]byte(b[12:16]))
	copy(m.giaddr[:], b[24:])
	copy(m.chaddr[:], b[28:])
	for o := b[dhcpFixed+4:]; len(o) > 0 && o[0] != optEnd; {
		if o[0] == optPad {
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return m, false
		}
		v := o[2 : 2+int(o[1])]
		switch {
		case o[0] == optType && len(v) == 1:
			m.kind = v[0]
		case o[0] == optRequested && len(v) == 4:
			m.requested = netip.AddrFrom4([4]byte(v))
		case o[0] == optServer && len(v) == 4:
			m.server = netip.AddrFrom4([4]byte(v))
		}
		o = o[2+len(v):]
	}
	return m, true
}

// mac is the client's link address.
func (m *dhcpMessage) mac() MAC { return MAC(m.chaddr[:6]) }

// offer is the address that a client is to have, with leases one of its own.
func (s *dhcpServer) offer(m *dhcpMessage) (netip.Addr, bool) {
	if s.leases == nil {
		return s.o.Guest, true
	}
	return s.leases.offer(m.mac(), m.requested)
}

// take tells whether a client may use the address that it asks for.
func (s *dhcpServer) take(m *dhcpMessage, want netip.Addr) bool {
	if s.leases == nil {
		return want == s.o.Guest
	}
	return s.leases.take(m.mac(), want)
}

// reply makes the frame that answers a message (RFC 2131, 4.3); nil if there is none.
func (s *dhcpServer) reply(m dhcpMessage) []byte {
	kind, mine := byte(dhcpAck), netip.IPv4Unspecified()
	switch m.kind {
	case dhcpDiscover:
		var ok bool
		if mine, ok = s.offer(&m); !ok {
			return nil // no address is left
		}
		kind = dhcpOffer
	case dhcpRequest:
		if m.server.IsValid() && m.server != s.o.Gateway {
			return nil // it has chosen another server
		}
		if mine = m.requested; !mine.IsValid() {
			mine = m.ciaddr
		}
		if !s.take(&m, mine) {
			kind, mine = dhcpNack, netip.IPv4Unspecified()
		}
	case dhcpInform:
	case dhcpDecline, dhcpRelease:
		s.giveBack(&m)
		return nil
	default:
		return nil
	}
	b := make([]byte, dhcpFixed, 2*dhcpBytesMin)
	b[0], b[1], b[2] = dhcpReplyOp, 1, m.hlen
	copy(b[4:], m.xid[:])
	binary.BigEndian.PutUint16(b[10:], m.flags)
	if kind != dhcpNack {
		copy(b[12:], m.ciaddr.AsSlice())
		copy(b[16:], mine.AsSlice())
	}
	copy(b[24:], m.giaddr[:])
	copy(b[28:], m.chaddr[:])
	b = binary.BigEndian.AppendUint32(b, dhcpCookie)
	b = append(b, optType, 1, kind)
	b = appendOption(b, optServer, s.o.Gateway.AsSlice())
	if kind != dhcpNack {
		b = s.appendOptions(b, m.kind != dhcpInform)
	}
	b = append(b, optEnd)
	for len(b) < dhcpBytesMin {
		b = append(b, optPad)
	}
	if m.kind == dhcpInform {
		mine = m.ciaddr
	}
	return s.frame(m, mine, b)
}

// giveBack takes an address back that a client does not use any more, or cannot.
func (s *dhcpServer) giveBack(m *dhcpMessage) {
	switch {
	case s.leases == nil || m.server != s.o.Gateway:
	case m.kind == dhcpRelease:
		s.leases.release(m.mac(), m.ciaddr)
	default:
		s.leases.decline(m.mac(), m.requested)
	}
}

// appendOptions tells the client about the network.
func (s *dhcpServer) appendOptions(b []byte, lease bool) []byte {
	if lease {
		b = appendOption(b, optLease, binary.BigEndian.AppendUint32(nil, leaseSeconds))
		b = appendOption(b, optRenewal, binary.BigEndian.AppendUint32(nil, leaseSeconds/2))
		b = appendOption(b, optRebinding, binary.BigEndian.AppendUint32(nil, leaseSeconds/8*7))
	}
	b = appendOption(b, optSubnet, net.CIDRMask(s.o.Subnet.Bits(), 32))
	b = appendOption(b, optRouter, s.o.Gateway.AsSlice())
	b = appendOption(b, optBroadcast, s.o.broadcast().AsSlice())
	b = appendOption(b, optMTU, binary.BigEndian.AppendUint16(nil, uint16(s.o.MTU)))
	if !s.o.NoDNS {
		b = appendOption(b, optDNS, s.o.Gateway.AsSlice())
	}
	if s.o.Hostname != "" {
		b = appendOption(b, optHostname, []byte(s.o.Hostname))
	}
	if s.o.Domain != "" {
		b = appendOption(b, optDomain, []byte(s.o.Domain))
	}
	return b
}

func appendOption(b []byte, code byte, value []byte) []byte {
	return append(append(b, code, byte(len(value))), value...)
}

// frame packs a reply. It is broadcast where the client asks for that, cannot yet have an
// address, or has the wrong one: an unspecified dst; else it goes to dst, the address that
// the client has or gets.
func (s *dhcpServer) frame(m dhcpMessage, dst netip.Addr, msg []byte) []byte {
	mac := tcpip.LinkAddress(m.chaddr[:6])
	if m.flags&0x8000 != 0 || dst.IsUnspecified() {
		dst, mac = netip.AddrFrom4([4]byte{255, 255, 255, 255}), header.EthernetBroadcastAddress
	}
	b := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+header.UDPMinimumSize+len(msg))
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: gatewayMAC, DstAddr: mac, Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(b[header.EthernetMinimumSize:])
	src, to := address(s.o.Gateway), address(dst)
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: src, DstAddr: to})
	ip.SetChecksum(^ip.CalculateChecksum())
	u := header.UDP(ip[header.IPv4MinimumSize:])
	length := uint16(len(u))
	u.Encode(&header.UDPFields{SrcPort: dhcpServerPort, DstPort: dhcpClientPort, Length: length})
	copy(u[header.UDPMinimumSize:], msg)
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, src, to, length)
	u.SetChecksum(^u.CalculateChecksum(checksum.Checksum(msg, sum)))
	return b
}
