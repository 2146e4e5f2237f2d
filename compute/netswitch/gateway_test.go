package netswitch

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"steadfast/block"
	"steadfast/compute/filedisk"
	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/machineio"
	"steadfast/compute/usernet"
	"steadfast/fault"
)

// dhcp is what a client sends: a discover (1), or a request (3) of an address.
func dhcp(m usernet.MAC, kind byte, want netip.Addr) []byte {
	msg := make([]byte, 236, 300)
	msg[0], msg[1], msg[2] = 1, 1, 6
	copy(msg[28:], m[:])
	msg = append(msg, 0x63, 0x82, 0x53, 0x63, 53, 1, kind)
	if want.IsValid() {
		msg = append(append(msg, 50, 4), want.AsSlice()...)
	}
	msg = append(msg, 255)
	b := make([]byte, header.EthernetMinimumSize+header.IPv4MinimumSize+header.UDPMinimumSize+len(msg))
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(m[:]), DstAddr: header.EthernetBroadcastAddress, Type: header.IPv4ProtocolNumber})
	ip := header.IPv4(b[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber), DstAddr: header.IPv4Broadcast})
	ip.SetChecksum(^ip.CalculateChecksum())
	u := header.UDP(ip[header.IPv4MinimumSize:])
	u.Encode(&header.UDPFields{SrcPort: 68, DstPort: 67, Length: uint16(len(u))})
	copy(u[header.UDPMinimumSize:], msg)
	return b
}

// lease has a station ask for its address through the switch.
func lease(e *end, m usernet.MAC) netip.Addr {
	e.t.Helper()
	reply := func(kind byte) netip.Addr {
		for {
			f := e.next()
			if len(f) > 290 && binary.BigEndian.Uint16(f[12:]) == 0x0800 && f[23] == 17 && binary.BigEndian.Uint16(f[36:]) == 68 && bytes.Equal(f[42+28:42+34], m[:]) {
				if got := f[42+236+4+2]; got != kind {
					e.t.Fatalf("DHCP answers %d, want %d", got, kind)
				}
				return netip.AddrFrom4([4]byte(f[42+16 : 42+20]))
			}
		}
	}
	e.send(dhcp(m, 1, netip.Addr{}))
	offered := reply(2)
	e.send(dhcp(m, 3, offered))
	if got := reply(5); got != offered {
		e.t.Fatalf("offered was %v, and given %v", offered, got)
	}
	return offered
}

// guest is a machine's kernel: a stack of its own at a port.
type guest struct {
	address netip.Addr
	stack   *stack.Stack
	longest atomic.Int64 // frame that came
}

// boot attaches a guest, which asks for its address, and runs until the test ends.
func boot(t *testing.T, s *Switch, name string, m usernet.MAC, large bool) *guest {
	t.Helper()
	e := plug(t, s, "unixpacket", Hello{Port: name, Machine: name, Large: large})
	g := &guest{address: lease(e, m)}
	must(t, e.c.SetDeadline(time.Time{}))
	link := channel.New(4096, 1514, tcpip.LinkAddress(m[:]))
	if large {
		link.SupportedGSOKind = stack.HostGSOSupported
	}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	ok := func(err tcpip.Error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(g.stack.CreateNIC(1, ethernet.New(link)))
	own := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(g.address.As4()), PrefixLen: s.gateway.Options().Subnet.Bits()}
	ok(g.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: own}, stack.AddressProperties{}))
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: own.Subnet(), NIC: 1},
		{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(s.gateway.Options().Gateway.As4()), NIC: 1},
	})
	sack := tcpip.TCPSACKEnabled(true)
	ok(g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			pkt := link.ReadContext(ctx)
			if pkt == nil {
				return
			}
			f := pkt.ToView().AsSlice()
			if pkt.GSOOptions.NeedsCsum { // as its card does it
				seg := header.TCP(f[14+int(pkt.GSOOptions.L3HdrLen):])
				n := uint16(len(seg))
				ip := header.IPv4(f[14:])
				seg.SetChecksum(0)
				seg.SetChecksum(^seg.CalculateChecksum(sumOf(header.PseudoHeaderChecksum(tcp.ProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), n), seg.Payload())))
			}
			pkt.DecRef()
			if e.l.write(f) != nil {
				return
			}
		}
	})
	wg.Go(func() {
		b := make([]byte, messageMax+1)
		for {
			n, err := e.l.read(b)
			if err != nil {
				return
			}
			g.longest.Store(max(g.longest.Load(), int64(n)))
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[:n])})
			link.InjectInbound(0, pkt)
			pkt.DecRef()
		}
	})
	t.Cleanup(func() {
		cancel()
		e.c.Close()
		wg.Wait()
		g.stack.Destroy()
	})
	return g
}

// sumOf adds bytes to a checksum of netstack's.
func sumOf(s uint16, p []byte) uint16 {
	t := uint32(s)
	for i, b := range p {
		t += uint32(b) << (8 * (1 - i%2))
		t = t>>16 + t&0xffff
	}
	return uint16(t)
}

func (g *guest) listen(t *testing.T, port uint16) {
	t.Helper()
	l, err := gonet.ListenTCP(g.stack, tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(g.address.As4()), Port: port}, ipv4.ProtocolNumber)
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() { reverse(l) })
	t.Cleanup(func() { l.Close(); wg.Wait() })
}

func (g *guest) dial(t *testing.T, to netip.AddrPort) *gonet.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := gonet.DialContextTCP(ctx, g.stack, tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(to.Addr().As4()), Port: to.Port()}, ipv4.ProtocolNumber)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// reverse answers each connection with what it got, backwards.
func reverse(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b, err := io.ReadAll(c)
		if err == nil {
			_, _ = c.Write(backwards(b))
		}
		_ = c.Close()
	}
}

func backwards(b []byte) []byte {
	r := make([]byte, len(b))
	for i := range b {
		r[len(b)-1-i] = b[i]
	}
	return r
}

// converse sends something, and expects it backwards.
func converse(t *testing.T, c interface {
	net.Conn
	CloseWrite() error
},
) {
	t.Helper()
	must(t, c.SetDeadline(time.Now().Add(patience)))
	want := make([]byte, 2<<20)
	for i := range want {
		want[i] = byte(i * i >> 7)
	}
	go func() {
		_, _ = c.Write(want) // the answer tells
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	must(t, err)
	if !bytes.Equal(got, backwards(want)) {
		t.Fatalf("%d bytes came back, other than the %d sent", len(got), len(want))
	}
}

// TestGateway: guests get an address each, and reach each other, are reached by forwards made
// while they run, and reach what is outside.
func TestGateway(t *testing.T) {
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var wg sync.WaitGroup
	wg.Go(func() { reverse(outside) })
	defer wg.Wait()
	defer outside.Close()
	s := open(t, Options{Gateway: usernet.Options{
		Subnet: netip.MustParsePrefix("192.168.77.0/24"), NoDNS: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, outside.Addr().String())
		},
	}})
	client := Client{Socket: s.o.Socket}
	want := netip.MustParseAddr("192.168.77.20")
	if got, err := client.Reserve(t.Context(), mac(1), want); err != nil || got != want {
		t.Fatalf("reserved %v, %v", got, err)
	}
	at, err := client.AddForward(t.Context(), usernet.Forward{Listen: "127.0.0.1:0", Guest: want, GuestPort: 80})
	must(t, err)
	a := boot(t, s, "vm1", mac(1), true)
	b := boot(t, s, "vm2", mac(2), false)
	c := boot(t, s, "vm3", mac(3), true)
	if a.address != want || b.address == c.address {
		t.Errorf("addresses %v, %v and %v", a.address, b.address, c.address)
	}
	for _, g := range []*guest{a, b, c} {
		g.listen(t, 80)
	}
	in, err := net.Dial("tcp", at)
	must(t, err)
	converse(t, in.(*net.TCPConn))
	in.Close()
	converse(t, a.dial(t, netip.AddrPortFrom(b.address, 80)))
	converse(t, b.dial(t, netip.MustParseAddrPort("198.51.100.7:1234")))
	if b.longest.Load() > 1514 {
		t.Errorf("a guest without a card for it got a frame of %d bytes", b.longest.Load())
	}
	c.longest.Store(0)
	converse(t, a.dial(t, netip.AddrPortFrom(c.address, 80)))
	if c.longest.Load() <= 4*1514 {
		t.Errorf("the longest frame between guests with cards for it had %d bytes", c.longest.Load())
	}
	st, err := client.State(t.Context())
	must(t, err)
	if !slices.Equal(st.Forwards, []usernet.Forward{{Listen: at, Guest: want, GuestPort: 80}}) {
		t.Errorf("forwards are %v", st.Forwards)
	}
	// Those of the gateway and the three.
	if len(st.Stations) != 4 || len(st.Leases) != 3 || st.Subnet.String() != "192.168.77.0/24" || st.Ports[0].Port != GatewayPort {
		t.Errorf("%+v", st)
	}
	must(t, client.RemoveForward(t.Context(), at))
	if c, err := net.Dial("tcp", at); err == nil {
		c.Close()
		t.Error("a forward that was removed takes connections")
	}
}

// TestControl: what cannot be done is told, with its kind.
func TestControl(t *testing.T) {
	s := open(t, Options{Gateway: usernet.Options{Isolated: true}})
	c := Client{Socket: s.o.Socket}
	ctx := t.Context()
	_, err := c.AddForward(ctx, usernet.Forward{Listen: "127.0.0.1:0", GuestPort: 80})
	isKind(t, err, fault.Invalid)
	_, err = c.AddForward(ctx, usernet.Forward{Listen: "here", Guest: netip.MustParseAddr("10.0.2.20"), GuestPort: 80})
	isKind(t, err, fault.Invalid)
	_, err = c.AddForward(ctx, usernet.Forward{Listen: "127.0.0.1:0", Guest: netip.MustParseAddr("10.0.3.20"), GuestPort: 80})
	isKind(t, err, fault.Invalid)
	isKind(t, c.RemoveForward(ctx, "127.0.0.1:1"), fault.NotFound)
	_, err = c.Reserve(ctx, everybody, netip.Addr{})
	isKind(t, err, fault.Invalid)
	isKind(t, c.Unreserve(ctx, mac(1)), fault.NotFound)
	if a, err := c.Reserve(ctx, mac(1), netip.Addr{}); err != nil || !a.IsValid() {
		t.Errorf("%v, %v", a, err)
	}
	must(t, c.Unreserve(ctx, mac(1)))
	_, err = c.ask(ctx, request{Verb: "dance"})
	isKind(t, err, fault.Invalid)
	_, err = Client{Socket: s.o.Socket + "x"}.State(ctx)
	isKind(t, err, fault.Unreachable)
	plain := open(t, Options{})
	_, err = Client{Socket: plain.o.Socket}.Reserve(ctx, mac(1), netip.Addr{})
	isKind(t, err, fault.NotFound)
	st, err := Client{Socket: plain.o.Socket}.State(ctx)
	if err != nil || st.Gateway.IsValid() || len(st.Ports) != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	for _, bad := range []string{"\n", "{}\n", "[]\n", "x"} {
		conn, err := net.Dial("unix", s.o.Socket+controlSuffix)
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(patience)))
		_, err = io.WriteString(conn, bad)
		must(t, err)
		must(t, conn.(*net.UnixConn).CloseWrite())
		b, err := io.ReadAll(conn)
		if err != nil || !bytes.Contains(b, []byte(`"kind":"invalid"`)) {
			t.Errorf("%q: %q, %v", bad, b, err)
		}
		conn.Close()
	}
}

func isKind(t *testing.T, err error, want fault.Kind) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%v; want one that is %v", err, want)
	}
}

// TestMachines: machines exchange frames through the switch.
func TestMachines(t *testing.T) {
	s := open(t, Options{})
	var machines [2]*computer
	for i := range machines {
		machines[i] = start(t, s, i)
	}
	machines[0].live.Type([]byte("n"))
	machines[1].says(string(machinetest.ObeyFrame()[14:18]))
	machines[1].live.Type([]byte("n"))
	machines[0].says(string(machinetest.ObeyFrame()[14:18]))
}

// computer is a machine that lives in this process, with a wire as vmm has it.
type computer struct {
	t      *testing.T
	live   *machineio.Live
	wire   net.Conn
	screen *io.PipeReader
}

// Send implements machineio.Wire.
func (c *computer) Send(frame []byte) { _, _ = c.wire.Write(frame) }

// start runs a machine at a port, until the test ends.
func start(t *testing.T, s *Switch, i int) *computer {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(name, make([]byte, 1<<20), 0o600))
	disk, err := filedisk.Open(name, false)
	must(t, err)
	m, err := machine.New(machine.Config{
		Memory: machinetest.ObeyMemory, Disks: []machine.Disk{{Size: 1 << 20}}, Nets: []machine.Net{{MAC: mac(i + 1)}},
		Seed: bytes.Repeat([]byte{1}, 32), Wall: 1_800_000_000_000_000_000,
	})
	must(t, err)
	must(t, m.Load(machinetest.Obey(), nil))
	theirs, ours := pair(t)
	screen, serial := io.Pipe()
	c := &computer{t: t, wire: theirs.c, screen: screen}
	c.live, err = machineio.New(m, machineio.Options{Disks: []block.Device{disk}, Wires: []machineio.Wire{c}, Serial: serial})
	must(t, err)
	u, err := NewUplink(UplinkOptions{Socket: s.o.Socket, Hello: Hello{Port: fmt.Sprint("vm", i), Large: true}})
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = c.live.Run(ctx) }) // how it ends is not the test's
	wg.Go(func() {
		b := make([]byte, messageMax)
		for {
			n, err := c.wire.Read(b)
			if err != nil || !c.live.FrameWait(0, bytes.Clone(b[:n])) {
				return
			}
		}
	})
	wg.Go(func() {
		if err := u.Join(ours); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = screen.Close()
		_ = c.wire.Close()
		wg.Wait()
		must(t, u.Close())
		must(t, disk.Close())
	})
	c.says(machinetest.ObeyUp)
	until(t, "it is attached, and the machine joined", func() bool {
		u.joint.mu.Lock()
		defer u.joint.mu.Unlock()
		return u.State().Attached && u.joint.wire != nil
	})
	return c
}

// says reads what the machine writes next.
func (c *computer) says(want string) {
	c.t.Helper()
	late := time.AfterFunc(patience, func() { _ = c.screen.CloseWithError(os.ErrDeadlineExceeded) })
	defer late.Stop()
	b := make([]byte, len(want))
	if n, err := io.ReadFull(c.screen, b); err != nil || string(b) != want {
		c.t.Fatalf("the console says %q, %v; want %q", b[:n], err, want)
	}
}
