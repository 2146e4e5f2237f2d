package usernet

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const guestMAC = tcpip.LinkAddress("\x02\x53\x46\x00\x00\x99")

// guest is a second stack, as a machine's kernel would be.
type guest struct {
	stack *stack.Stack
	link  *channel.Endpoint
	// sent and received are the longest frames.
	sent, received atomic.Int64
}

// network starts one, and checks when the test ends that nothing of it is left.
func network(t testing.TB, o Options) *Network {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t, leaks)
	})
	return n
}

// attach makes a guest with the network's address for it and carries its frames. On a
// network with large frames it sends such, too, as a guest does whose card completes them.
func attach(t testing.TB, n *Network) *guest {
	t.Helper()
	g := &guest{link: channel.New(4096, uint32(n.o.MTU)+header.EthernetMinimumSize, guestMAC)}
	if n.o.Large {
		g.link.SupportedGSOKind = stack.HostGSOSupported
	}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	must := func(err tcpip.Error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(g.stack.CreateNIC(1, ethernet.New(g.link)))
	must(g.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: address(n.o.Guest), PrefixLen: n.o.Subnet.Bits()},
	}, stack.AddressProperties{}))
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: tcpip.AddressWithPrefix{Address: address(n.o.Gateway), PrefixLen: n.o.Subnet.Bits()}.Subnet(), NIC: 1},
		{Destination: header.IPv4EmptySubnet, Gateway: address(n.o.Gateway), NIC: 1},
	})
	sack := tcpip.TCPSACKEnabled(true)
	must(g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			pkt := g.link.ReadContext(ctx)
			if pkt == nil {
				return
			}
			frame := pkt.ToView().AsSlice()
			checked(frame, pkt.GSOOptions)
			pkt.DecRef()
			g.sent.Store(max(g.sent.Load(), int64(len(frame))))
			n.Send(frame)
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case f, ok := <-n.Frames():
				if !ok {
					return
				}
				g.received.Store(max(g.received.Load(), int64(len(f))))
				g.receive(f)
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		g.stack.Destroy()
	})
	return g
}

func (g *guest) receive(frame []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	defer pkt.DecRef()
	g.link.InjectInbound(0, pkt)
}

func full(a string) tcpip.FullAddress {
	p := netip.MustParseAddrPort(a)
	return tcpip.FullAddress{NIC: 1, Addr: address(p.Addr()), Port: p.Port()}
}

func (g *guest) dialTCP(ctx context.Context, a string) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, g.stack, full(a), ipv4.ProtocolNumber)
}

func (g *guest) dialUDP(t testing.TB, a string) *gonet.UDPConn {
	t.Helper()
	to := full(a)
	c, err := gonet.DialUDP(g.stack, nil, &to, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (g *guest) listenTCP(t testing.TB, n *Network, port uint16) *gonet.TCPListener {
	t.Helper()
	l, err := gonet.ListenTCP(g.stack, tcpip.FullAddress{NIC: 1, Addr: address(n.o.Guest), Port: port}, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// elsewhere is a Dial that brings all to the same address of this host.
func elsewhere(to string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, to)
	}
}
