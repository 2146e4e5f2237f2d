package usernet

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"steadfast/fault"
)

// patience bounds what should take moments.
const patience = 20 * time.Second

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// noise is n bytes that compress to nothing and repeat nowhere.
func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// reverser answers each connection with what it got, backwards, once it has all.
func reverser(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			b, err := io.ReadAll(c)
			if err != nil {
				return
			}
			for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
				b[i], b[j] = b[j], b[i]
			}
			_, _ = c.Write(b)
		}()
	}
}

// converse sends noise, ends its half, and expects it backwards.
func converse(t *testing.T, c halfCloser) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	want := noise(3 << 20)
	go func() {
		if _, err := c.Write(want); err != nil {
			t.Error(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	for i, j := 0, len(got)-1; i < j; i, j = i+1, j-1 {
		got[i], got[j] = got[j], got[i]
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes back, other than the %d sent", len(got), len(want))
	}
}

func TestForward(t *testing.T) {
	n := network(t, Options{Forwards: []Forward{{Listen: "127.0.0.1:0", GuestPort: 80}, {Listen: "127.0.0.1:0", GuestPort: 81}}})
	g := attach(t, n)
	l := g.listenTCP(t, n, 80)
	defer l.Close()
	go reverser(l)
	for range 2 {
		c, err := net.Dial("tcp", n.Forwards()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		converse(t, c.(*net.TCPConn))
		c.Close()
	}
	// Nobody listens at port 81: whoever connects learns it, maybe while it still does.
	c, err := net.Dial("tcp", n.Forwards()[1].String())
	if err == nil {
		defer c.Close()
		if err = c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a refused connection ended with %v, not a reset", err)
	}
}

func TestOutwardTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go reverser(l)
	n := network(t, Options{Dial: elsewhere(l.Addr().String())})
	g := attach(t, n)
	c, err := g.dialTCP(within(t), "198.51.100.7:1234")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	converse(t, c)
}

// TestNotReached: what is not the guest's to reach is refused, and nothing of this host is
// even tried.
func TestNotReached(t *testing.T) {
	for _, tc := range []struct {
		name, to string
		o        Options
	}{
		{"link-local", "169.254.169.254:80", Options{}},
		{"isolated", "198.51.100.7:80", Options{Isolated: true}},
		{"another of the subnet", "10.0.2.99:80", Options{}},
		{"the gateway", "10.0.2.2:80", Options{}},
		{"DNS that is off", "10.0.2.2:53", Options{NoDNS: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.o.Dial = func(context.Context, string, string) (net.Conn, error) {
				t.Error("it was tried")
				return nil, errors.New("no")
			}
			n := network(t, tc.o)
			g := attach(t, n)
			ctx := within(t)
			if c, err := g.dialTCP(ctx, tc.to); err == nil {
				c.Close()
				t.Error("it was reached by TCP")
			} else if ctx.Err() != nil {
				t.Errorf("not refused in time: %v", err)
			}
			u := g.dialUDP(t, tc.to)
			defer u.Close()
			if _, err := u.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		})
	}
	n := network(t, Options{})
	for _, a := range []string{"127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "169.254.1.1", "224.0.0.1", "255.255.255.255", "10.0.2.7"} {
		if n.mayReach(netip.MustParseAddr(a)) {
			t.Errorf("the guest may reach %s", a)
		}
	}
	for _, a := range []string{"8.8.8.8", "10.0.3.1", "192.168.1.1"} {
		if !n.mayReach(netip.MustParseAddr(a)) {
			t.Errorf("the guest may not reach %s", a)
		}
	}
}

// udpServer answers datagrams by f; its address.
func udpServer(t *testing.T, f func([]byte) []byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 1<<16)
		for {
			got, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if a := f(b[:got]); a != nil {
				_, _ = c.WriteTo(a, from)
			}
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// exchange sends a datagram and returns the answer.
func exchange(t *testing.T, c net.Conn, question []byte) []byte {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(question); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	got, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:got]
}

func TestOutwardUDP(t *testing.T) {
	at := udpServer(t, bytes.ToUpper)
	n := network(t, Options{Dial: elsewhere(at.String())})
	c := attach(t, n).dialUDP(t, "198.51.100.7:9")
	defer c.Close()
	for _, text := range []string{"one", strings.Repeat("two", 300), strings.Repeat("fragments", 500)} {
		if got := exchange(t, c, []byte(text)); string(got) != strings.ToUpper(text) {
			t.Errorf("%.20q... came back as %.20q", text, got)
		}
	}
}

func TestDNS(t *testing.T) {
	answer := func(q []byte) []byte {
		a := append(bytes.Clone(q), "answer"...)
		a[2] |= 0x80
		return a
	}
	question := append([]byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, "\x07example\x00\x00\x01\x00\x01"...)
	silent := udpServer(t, func([]byte) []byte { return nil })
	wrong := udpServer(t, func(q []byte) []byte {
		a := answer(q)
		a[0]++
		return a
	})
	good := udpServer(t, answer)
	t.Run("the next one is asked", func(t *testing.T) {
		n := network(t, Options{Resolvers: []netip.AddrPort{silent, good}})
		c := attach(t, n).dialUDP(t, "10.0.2.2:53")
		defer c.Close()
		if diff := cmp.Diff(answer(question), exchange(t, c, question)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("none answers", func(t *testing.T) {
		n := network(t, Options{Resolvers: []netip.AddrPort{wrong}})
		c := attach(t, n).dialUDP(t, "10.0.2.2:53")
		defer c.Close()
		want := []byte{0x12, 0x34, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0}
		if diff := cmp.Diff(want, exchange(t, c, question)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("over TCP", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go reverser(l)
		n := network(t, Options{Resolvers: []netip.AddrPort{netip.MustParseAddrPort(l.Addr().String())}})
		c, err := attach(t, n).dialTCP(within(t), "10.0.2.2:53")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		converse(t, c)
	})
}

// ping is an echo request of the guest's.
func ping(n *Network, to string) []byte {
	b := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+header.ICMPv4MinimumSize)
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: gatewayMAC, Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(b[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber),
		SrcAddr: address(n.o.Guest), DstAddr: address(netip.MustParseAddr(to)),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	m := header.ICMPv4(ip[header.IPv4MinimumSize:])
	m.SetType(header.ICMPv4Echo)
	m.SetIdent(7)
	m.SetChecksum(header.ICMPv4Checksum(m, 0))
	return b
}

// arpRequest asks who has an address.
func arpRequest(n *Network, who string) []byte {
	b := make([]byte, header.EthernetMinimumSize+header.ARPSize)
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: header.EthernetBroadcastAddress, Type: header.ARPProtocolNumber})
	a := header.ARP(b[header.EthernetMinimumSize:])
	a.SetIPv4OverEthernet()
	a.SetOp(header.ARPRequest)
	copy(a.HardwareAddressSender(), guestMAC)
	copy(a.ProtocolAddressSender(), n.o.Guest.AsSlice())
	copy(a.ProtocolAddressTarget(), netip.MustParseAddr(who).AsSlice())
	return b
}

// TestOnlyTheGatewayAnswers: the gateway answers pings and ARP for itself, and not in the
// name of others: not of the guest's own address when the guest probes it.
func TestOnlyTheGatewayAnswers(t *testing.T) {
	n := network(t, Options{})
	n.Send(arpRequest(n, "10.0.2.15"))
	n.Send(arpRequest(n, "10.0.2.77"))
	n.Send(ping(n, "198.51.100.7"))
	n.Send(arpRequest(n, "10.0.2.2"))
	first := <-n.Frames()
	a := header.ARP(first[header.EthernetMinimumSize:])
	if header.Ethernet(first).Type() != header.ARPProtocolNumber || a.Op() != header.ARPReply || tcpip.AddrFrom4Slice(a.ProtocolAddressSender()) != address(n.o.Gateway) {
		t.Fatalf("the first answer is not the gateway's to ARP: %x", first)
	}
	n.Send(ping(n, "10.0.2.2"))
	for f := range n.Frames() {
		switch header.Ethernet(f).Type() {
		case header.ARPProtocolNumber:
			// The gateway looks for the guest, to answer.
			r := make([]byte, len(f))
			copy(r, f)
			header.Ethernet(r).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: gatewayMAC, Type: header.ARPProtocolNumber})
			p := header.ARP(r[header.EthernetMinimumSize:])
			p.SetOp(header.ARPReply)
			copy(p.HardwareAddressSender(), guestMAC)
			copy(p.ProtocolAddressSender(), n.o.Guest.AsSlice())
			copy(p.HardwareAddressTarget(), gatewayMAC)
			copy(p.ProtocolAddressTarget(), n.o.Gateway.AsSlice())
			n.Send(r)
		case header.IPv4ProtocolNumber:
			ip := header.IPv4(f[header.EthernetMinimumSize:])
			if ip.TransportProtocol() != header.ICMPv4ProtocolNumber || ip.SourceAddress() != address(n.o.Gateway) {
				t.Errorf("no answer of the gateway's to a ping: %x", f)
			}
			return
		}
	}
}

// dhcp makes a client's message of options: code, value, code, value, ...
func dhcp(ciaddr string, options ...[]byte) []byte {
	m := make([]byte, dhcpFixed, 400)
	m[0], m[1], m[2] = dhcpRequestOp, 1, 6
	copy(m[4:], "XID!")
	copy(m[12:], netip.MustParseAddr(ciaddr).AsSlice())
	copy(m[28:], guestMAC)
	m = binary.BigEndian.AppendUint32(m, dhcpCookie)
	for i := 0; i < len(options); i += 2 {
		m = appendOption(m, options[i][0], options[i+1])
	}
	m = append(m, optEnd)
	b := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+header.UDPMinimumSize+len(m))
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: guestMAC, DstAddr: header.EthernetBroadcastAddress, Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(b[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: address(netip.MustParseAddr(ciaddr)), DstAddr: header.IPv4Broadcast})
	ip.SetChecksum(^ip.CalculateChecksum())
	u := header.UDP(ip[header.IPv4MinimumSize:])
	u.Encode(&header.UDPFields{SrcPort: dhcpClientPort, DstPort: dhcpServerPort, Length: uint16(len(u))})
	copy(u[header.UDPMinimumSize:], m)
	return b
}

// dhcpReply is what a test looks at of a reply.
type dhcpReply struct {
	To      string
	Yiaddr  string
	XID     string
	Options map[byte]string
}

func readDHCP(t *testing.T, n *Network) dhcpReply {
	t.Helper()
	var f []byte
	select {
	case f = <-n.Frames():
	default:
		t.Fatal("no reply")
	}
	ip := header.IPv4(f[header.EthernetMinimumSize:])
	u := header.UDP(ip.Payload())
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), u.Length())
	if !ip.IsChecksumValid() || u.CalculateChecksum(checksum.Checksum(u.Payload(), sum)) != 0xffff {
		t.Error("a checksum is wrong")
	}
	if u.SourcePort() != 67 || u.DestinationPort() != 68 || len(u.Payload()) < 300 {
		t.Errorf("from port %d to %d, %d bytes", u.SourcePort(), u.DestinationPort(), len(u.Payload()))
	}
	m := u.Payload()
	r := dhcpReply{ip.DestinationAddress().String(), netip.AddrFrom4([4]byte(m[16:20])).String(), string(m[4:8]), map[byte]string{}}
	for o := m[dhcpFixed+4:]; o[0] != optEnd; o = o[2+int(o[1]):] {
		r.Options[o[0]] = string(o[2 : 2+int(o[1])])
	}
	return r
}

func TestDHCP(t *testing.T) {
	n := network(t, Options{Hostname: "vm1", Domain: "example"})
	kind := func(k byte) []byte { return []byte{k} }
	want := dhcpReply{"10.0.2.15", "10.0.2.15", "XID!", map[byte]string{
		optType: "\x02", optServer: "\x0a\x00\x02\x02", optLease: "\x00\x01\x51\x80", optRenewal: "\x00\x00\xa8\xc0", optRebinding: "\x00\x01\x27\x50",
		optSubnet: "\xff\xff\xff\x00", optRouter: "\x0a\x00\x02\x02", optBroadcast: "\x0a\x00\x02\xff", optMTU: "\x05\xdc",
		optDNS: "\x0a\x00\x02\x02", optHostname: "vm1", optDomain: "example",
	}}
	n.Send(dhcp("0.0.0.0", kind(optType), kind(dhcpDiscover)))
	if diff := cmp.Diff(want, readDHCP(t, n)); diff != "" {
		t.Error("offer", diff)
	}
	want.Options[optType] = "\x05"
	n.Send(dhcp("0.0.0.0", kind(optType), kind(dhcpRequest), kind(optRequested), []byte{10, 0, 2, 15}, kind(optServer), []byte{10, 0, 2, 2}))
	if diff := cmp.Diff(want, readDHCP(t, n)); diff != "" {
		t.Error("acknowledgement", diff)
	}
	n.Send(dhcp("10.0.2.15", kind(optType), kind(dhcpRequest)))
	if diff := cmp.Diff(want, readDHCP(t, n)); diff != "" {
		t.Error("renewal", diff)
	}
	n.Send(dhcp("0.0.0.0", kind(optType), kind(dhcpRequest), kind(optRequested), []byte{10, 0, 2, 16}))
	nack := dhcpReply{"255.255.255.255", "0.0.0.0", "XID!", map[byte]string{optType: "\x06", optServer: "\x0a\x00\x02\x02"}}
	if diff := cmp.Diff(nack, readDHCP(t, n)); diff != "" {
		t.Error("refusal", diff)
	}
	// Not for this server, or no message: no answer.
	n.Send(dhcp("0.0.0.0", kind(optType), kind(dhcpRequest), kind(optServer), []byte{10, 0, 2, 9}))
	n.Send(dhcp("0.0.0.0", kind(optType), kind(dhcpOffer)))
	select {
	case f := <-n.Frames():
		t.Errorf("an answer to what is none of the server's: %x", f)
	default:
	}
}

func TestOptions(t *testing.T) {
	pre, addr := netip.MustParsePrefix, netip.MustParseAddr
	for _, o := range []Options{
		{Subnet: pre("fd00::/64")},
		{Subnet: pre("10.0.0.0/31")},
		{Gateway: addr("10.0.3.1")},
		{Guest: addr("10.0.2.255")},
		{Guest: addr("10.0.2.0")},
		{Gateway: addr("10.0.2.15")},
		{MTU: 100},
		{MTU: 1 << 17},
		{Forwards: []Forward{{Listen: "127.0.0.1:0", GuestPort: 0}}},
	} {
		if n, err := New(o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", o, err)
			if n != nil {
				n.Close()
			}
		}
	}
	o := Options{Subnet: pre("192.168.7.4/30")}
	if err := o.check(); err != nil || o.Gateway != addr("192.168.7.5") || o.Guest != addr("192.168.7.6") {
		t.Errorf("%+v, %v", o, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := New(Options{Forwards: []Forward{{Listen: l.Addr().String(), GuestPort: 80}}}); !fault.Is(err, fault.Busy) {
		t.Errorf("an address in use: %v", err)
	}
}

// TestCloseInTheMiddle: Close ends what is going on, and nothing is left of it (network
// checks that).
func TestCloseInTheMiddle(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := network(t, Options{Dial: elsewhere(l.Addr().String()), Forwards: []Forward{{Listen: "127.0.0.1:0", GuestPort: 80}}})
	g := attach(t, n)
	gl := g.listenTCP(t, n, 80)
	defer gl.Close()
	in, err := net.Dial("tcp", n.Forwards()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := gl.Accept(); err != nil {
		t.Fatal(err)
	}
	out, err := g.dialTCP(within(t), "198.51.100.7:1234")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	u := g.dialUDP(t, "198.51.100.7:9")
	defer u.Close()
	if _, err := u.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := in.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection outlives the network: %v", err)
	}
	n.Send(arpRequest(n, "10.0.2.2")) // and nothing happens
}

// TestLarge: with large frames both ways, what arrives is what was sent; without them, none is
// larger than the MTU.
func TestLarge(t *testing.T) {
	for _, large := range []bool{false, true} {
		n := network(t, Options{Large: large, Forwards: []Forward{{Listen: "127.0.0.1:0", GuestPort: 80}}})
		g := attach(t, n)
		l := g.listenTCP(t, n, 80)
		defer l.Close()
		go reverser(l)
		c, err := net.Dial("tcp", n.Forwards()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		converse(t, c.(*net.TCPConn))
		c.Close()
		const most = MTUDefault + header.EthernetMinimumSize
		for what, longest := range map[string]int64{"sent": g.sent.Load(), "received": g.received.Load()} {
			if (longest > 4*most) != large || !large && longest > most {
				t.Errorf("large %v: a frame of %d bytes was %s", large, longest, what)
			}
		}
	}
}

// TestTooLong: a frame that is longer than the MTU and no segment is not looked at.
func TestTooLong(t *testing.T) {
	n := network(t, Options{})
	long := append(ping(n, "10.0.2.2"), make([]byte, MTUDefault)...)
	for _, f := range [][]byte{long, append(arpRequest(n, "10.0.2.2"), make([]byte, MTUDefault)...)} {
		before := n.stack.Stats().IP.PacketsReceived.Value() + n.stack.Stats().ARP.PacketsReceived.Value()
		n.Send(f)
		if n.stack.Stats().IP.PacketsReceived.Value()+n.stack.Stats().ARP.PacketsReceived.Value() != before {
			t.Errorf("a frame of %d bytes went to the stack", len(f))
		}
	}
}

// TestJoin: frames cross a socket, and either end ends it.
func TestJoin(t *testing.T) {
	for _, who := range []string{"machine", "network"} {
		t.Run(who, func(t *testing.T) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			var ends [2]net.Conn
			for i, fd := range fds {
				f := os.NewFile(uintptr(fd), "frames")
				if ends[i], err = net.FileConn(f); err != nil {
					t.Fatal(err)
				}
				f.Close()
			}
			n := network(t, Options{})
			joined := make(chan error, 1)
			go func() { joined <- n.Join(ends[0]) }()
			machine := ends[1]
			defer machine.Close()
			if err := machine.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := machine.Write(arpRequest(n, "10.0.2.2")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 2000)
			got, err := machine.Read(b)
			if err != nil || header.ARP(b[header.EthernetMinimumSize:got]).Op() != header.ARPReply {
				t.Errorf("%v: %x", err, b[:got])
			}
			if who == "machine" {
				machine.Close()
			} else if err := n.Close(); err != nil {
				t.Error(err)
			}
			select {
			case err := <-joined:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Fatal("Join does not end")
			}
		})
	}
}

// FuzzSend: no frame of a guest's does harm.
func FuzzSend(f *testing.F) {
	n, err := New(Options{Isolated: true, NoDNS: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { n.Close() })
	go func() {
		for range n.Frames() {
		}
	}()
	f.Add(arpRequest(n, "10.0.2.2"))
	f.Add(ping(n, "10.0.2.2"))
	f.Add(dhcp("0.0.0.0", []byte{optType}, []byte{dhcpDiscover}, []byte{optRequested}, []byte{1, 2, 3, 4}))
	f.Fuzz(func(_ *testing.T, frame []byte) { n.Send(frame) })
}

// BenchmarkForward is one TCP connection from this host into the guest.
func BenchmarkForward(b *testing.B) {
	n := network(b, Options{Forwards: []Forward{{Listen: "127.0.0.1:0", GuestPort: 80}}})
	g := attach(b, n)
	l := g.listenTCP(b, n, 80)
	defer l.Close()
	got := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		m, _ := io.Copy(io.Discard, struct{ io.Reader }{c})
		got <- m
	}()
	c, err := net.Dial("tcp", n.Forwards()[0].String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	chunk := noise(64 << 10)
	b.SetBytes(int64(len(chunk)))
	b.ResetTimer()
	for range b.N {
		if _, err := c.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		b.Fatal(err)
	}
	if m := <-got; m != int64(b.N*len(chunk)) {
		b.Fatalf("%d bytes of %d came", m, b.N*len(chunk))
	}
}
