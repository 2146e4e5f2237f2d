package usernet

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"steadfast/fault"
)

// Bounds.
const (
	// MTUDefault is the largest IP packet if Options does not say, in bytes.
	MTUDefault = 1500
	mtuMin     = 576 // RFC 791, 3.1
	mtuMax     = 65535
	// framesMax is how many frames wait for the guest before more are dropped, in netstack's
	// queue, and in Frames.
	framesMax      = 4096
	largeShare     = 4 // with large frames it is a fourth of that
	framesReadyMax = 64
	// connectionsMax and flowsMax bound TCP connections and UDP flows of a network.
	connectionsMax = 4096
	flowsMax       = 1024
	// openingMax is how many TCP connections may be on their way outwards at a time.
	openingMax = 256
)

// nic is the number of the one interface in the gateway's stack.
const nic = 1

// gatewayMAC is the gateway's link address: locally administered, the same everywhere, as
// each network has its own link.
const gatewayMAC = tcpip.LinkAddress("\x02\x53\x46\x00\x00\x01")

// Options describe a network.
type Options struct {
	// Subnet is the network, at least a /30; the zero value is 10.0.2.0/24.
	Subnet netip.Prefix
	// Gateway is the gateway's address, the zero value the second of the subnet (10.0.2.2).
	Gateway netip.Addr
	// Guest is the address that DHCP gives, the zero value 10.0.2.15, or the third of another
	// subnet.
	Guest netip.Addr
	// Many makes it a network of many guests: DHCP gives each link address one of the
	// subnet's for its own (see Network.Reserve), and Guest is not used.
	Many bool
	// Hostname and Domain are told by DHCP; "" is not told.
	Hostname, Domain string
	// NoDNS makes the gateway serve no DNS, and DHCP tell of none.
	NoDNS bool
	// Resolvers are asked by the gateway, in this order; nil is those of this host's
	// /etc/resolv.conf, read anew for each question.
	Resolvers []netip.AddrPort
	// Isolated lets the guest reach nothing outside of the network; forwards work.
	Isolated bool
	// Forwards let connections in.
	Forwards []Forward
	// Dial opens this host's connections and UDP sockets; nil is
	// net.Dialer's. What it returns for "tcp" can close its half, as *net.TCPConn does.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// MTU is in bytes, 0 for MTUDefault.
	MTU int
	// Large lets the frames for the guest be TCP segments larger than the MTU, which its
	// network card cuts, or takes whole (virtio.NetFrame). From the guest such are always
	// taken.
	Large bool
	// Log takes what is worth telling; nil for nothing.
	Log *slog.Logger
}

// Forward carries TCP connections to an address of this host on to a guest.
type Forward struct {
	// Listen is the address: "127.0.0.1:8080". Port 0 takes any; see Network.Forwards.
	Listen string `json:"listen"`
	// Guest is the guest's address; the zero value is Options.Guest, but where there are many.
	Guest netip.Addr `json:"guest"`
	// GuestPort is the guest's.
	GuestPort uint16 `json:"guest_port"`
}

// Network is a network that runs. Its methods may be called by several goroutines.
type Network struct {
	o      Options
	log    *slog.Logger
	link   *channel.Endpoint
	stack  *stack.Stack
	frames chan []byte
	joined atomic.Pointer[net.Conn] // of Join: frames of the stack go there
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	dhcp   dhcpServer

	mu       sync.Mutex
	closed   bool
	open     map[io.Closer]struct{}
	conns    int
	flows    int
	forwards []*forward
}

// New starts a network. Fails with fault.Invalid for options that make no sense, and
// fault.Busy if the address of a forward is in use.
func New(o Options) (*Network, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	n := &Network{o: o, log: o.Log, frames: make(chan []byte, framesReadyMax), open: map[io.Closer]struct{}{}}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	n.dhcp = dhcpServer{o: &n.o}
	if o.Many {
		n.dhcp.leases = newLeases(&n.o)
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.startStack(); err != nil {
		n.cancel()
		return nil, err
	}
	n.wg.Go(n.pump)
	for _, f := range o.Forwards {
		if _, err := n.AddForward(f); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	return n, nil
}

// check fills in what was left out.
func (o *Options) check() error {
	if !o.Subnet.IsValid() {
		o.Subnet = netip.MustParsePrefix("10.0.2.0/24")
	}
	if !o.Subnet.Addr().Is4() || o.Subnet.Bits() > 30 || o.Subnet.Bits() < 8 {
		return fault.New(fault.Invalid, "a subnet is IPv4, from /8 to /30, not %v", o.Subnet)
	}
	o.Subnet = o.Subnet.Masked()
	first := o.Subnet.Addr().Next()
	if !o.Gateway.IsValid() {
		o.Gateway = first
		if o.Subnet.Bits() < 30 {
			o.Gateway = first.Next()
		}
	}
	if !o.Guest.IsValid() {
		o.Guest = o.Gateway.Next()
		if slirp := netip.MustParseAddr("10.0.2.15"); o.Subnet.Contains(slirp) && o.Subnet.Bits() <= 27 {
			o.Guest = slirp
		}
	}
	for _, a := range []netip.Addr{o.Gateway, o.Guest} {
		if !o.Subnet.Contains(a) || a == o.Subnet.Addr() || a == o.broadcast() {
			return fault.New(fault.Invalid, "%v is no address of a host in %v", a, o.Subnet)
		}
	}
	if o.Gateway == o.Guest && !o.Many {
		return fault.New(fault.Invalid, "gateway and guest are both %v", o.Guest)
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.MTU == 0 {
		o.MTU = MTUDefault
	}
	if o.MTU < mtuMin || o.MTU > mtuMax {
		return fault.New(fault.Invalid, "an MTU of %d: from %d to %d", o.MTU, mtuMin, mtuMax)
	}
	if len(o.Hostname) > 63 || len(o.Domain) > 253 {
		return fault.New(fault.Invalid, "the host's or the domain's name is too long")
	}
	o.Forwards = slices.Clone(o.Forwards)
	for i := range o.Forwards {
		if err := o.checkForward(&o.Forwards[i]); err != nil {
			return err
		}
	}
	return nil
}

// Options are the network's, with what was left out filled in.
func (n *Network) Options() Options { return n.o }

// broadcast is the subnet's last address.
func (o *Options) broadcast() netip.Addr {
	b := o.Subnet.Addr().As4()
	for i, m := range net.CIDRMask(o.Subnet.Bits(), 32) {
		b[i] |= ^m
	}
	return netip.AddrFrom4(b)
}

// startStack makes the gateway.
func (n *Network) startStack() error {
	queued := framesMax
	if n.o.Large {
		queued /= largeShare
	}
	n.link = channel.New(queued, uint32(n.o.MTU)+header.EthernetMinimumSize, gatewayMAC)
	if n.o.Large {
		n.link.SupportedGSOKind = stack.HostGSOSupported
	}
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	sack := tcpip.TCPSACKEnabled(true)
	buffers := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 4 << 20}
	sends := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 4 << 20}
	prefix := tcpip.AddressWithPrefix{Address: address(n.o.Gateway), PrefixLen: n.o.Subnet.Bits()}
	for _, step := range []func() tcpip.Error{
		func() tcpip.Error { return n.stack.CreateNIC(nic, ethernet.New(n.link)) },
		func() tcpip.Error {
			return n.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: prefix}, stack.AddressProperties{})
		},
		// The gateway speaks for every address outside: it takes what is sent to them, and
		// answers from them.
		func() tcpip.Error { return n.stack.SetPromiscuousMode(nic, true) },
		func() tcpip.Error { return n.stack.SetSpoofing(nic, true) },
		func() tcpip.Error { return n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack) },
		func() tcpip.Error { return n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &buffers) },
		func() tcpip.Error { return n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sends) },
	} {
		if err := step(); err != nil {
			n.stack.Destroy()
			return fault.New(fault.Internal, "netstack: %v", err)
		}
	}
	n.stack.SetRouteTable([]tcpip.Route{{Destination: prefix.Subnet(), NIC: nic}})
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(n.stack, 0, openingMax, n.outwardTCP).HandlePacket)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.stack, n.outwardUDP).HandlePacket)
	return nil
}

// address is netstack's form of an address.
func address(a netip.Addr) tcpip.Address { return tcpip.AddrFrom4(a.As4()) }

// Send takes an Ethernet frame from the guest, without its check sequence, and copies it.
// What makes no sense is dropped.
func (n *Network) Send(frame []byte) {
	if len(frame) < header.EthernetMinimumSize || len(frame) > n.o.MTU+header.EthernetMinimumSize && !segment(frame) || n.ctx.Err() != nil {
		return
	}
	if reply, mine := n.dhcp.answer(frame); mine {
		if reply != nil {
			n.deliver(reply)
		}
		return
	}
	if !n.allowed(frame) {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
	defer pkt.DecRef()
	n.link.InjectInbound(0, pkt)
}

// segment tells whether a frame is TCP over IPv4, which may be larger than the MTU: the stack
// checks its lengths and checksums as those of any other.
func segment(frame []byte) bool {
	if header.Ethernet(frame).Type() != header.IPv4ProtocolNumber {
		return false
	}
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	return ip.IsValid(len(ip)) && ip.TransportProtocol() == header.TCPProtocolNumber
}

// allowed tells whether the gateway is to see a frame. The stack answers an echo request to
// any address in its own name, since it speaks for all; only one to the gateway is true.
func (n *Network) allowed(frame []byte) bool {
	eth := header.Ethernet(frame)
	if dst := eth.DestinationAddress(); dst != gatewayMAC && dst != header.EthernetBroadcastAddress {
		return false
	}
	if eth.Type() != header.IPv4ProtocolNumber {
		return eth.Type() == header.ARPProtocolNumber && n.allowedARP(frame)
	}
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	if !ip.IsValid(len(ip)) {
		return false
	}
	return ip.TransportProtocol() != header.ICMPv4ProtocolNumber || ip.DestinationAddress() == address(n.o.Gateway)
}

// allowedARP tells whether an ARP packet is for the gateway: it would answer for every
// address, also for the guest's own when the guest asks whether another has it (RFC 5227).
func (n *Network) allowedARP(frame []byte) bool {
	p := header.ARP(frame[header.EthernetMinimumSize:])
	return p.IsValid() && tcpip.AddrFrom4Slice(p.ProtocolAddressTarget()) == address(n.o.Gateway)
}

// Frames are Ethernet frames for the guest. Who does not read them loses them. The channel
// is closed by Close.
func (n *Network) Frames() <-chan []byte { return n.frames }

// deliver queues a frame that no stack has made; it is dropped if the guest is too slow.
func (n *Network) deliver(frame []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	select {
	case n.frames <- frame:
	default:
	}
}

// pump brings frames from netstack's queue to the guest: to the socket of Join, if there is
// one, and else to Frames.
func (n *Network) pump() {
	for {
		pkt := n.link.ReadContext(n.ctx)
		if pkt == nil {
			return
		}
		view := pkt.ToView()
		checked(view.AsSlice(), pkt.GSOOptions)
		pkt.DecRef()
		if conn := n.joined.Load(); conn != nil {
			// What cannot be sent is lost, as on any network. A machine that has gone is
			// noticed by who reads.
			_, _ = (*conn).Write(view.AsSlice())
			view.Release()
			continue
		}
		frame := append([]byte(nil), view.AsSlice()...)
		view.Release()
		select {
		case n.frames <- frame:
		case <-n.ctx.Done():
			return
		}
	}
}

// checked puts the checksum into a TCP segment that netstack has left without: with Large
// that is each, and what stands in its place is the pseudo header's (RFC 9293, 3.1).
func checked(frame []byte, gso stack.GSO) {
	if gso.Type == stack.GSONone || !gso.NeedsCsum {
		return
	}
	tcp := frame[header.EthernetMinimumSize+int(gso.L3HdrLen):]
	header.TCP(tcp).SetChecksum(^checksum.Checksum(tcp, 0))
}

// Close ends the network and all that goes through it, and returns when nothing of it runs.
func (n *Network) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	forwards, open := n.forwards, slices.Collect(maps.Keys(n.open))
	n.mu.Unlock()
	var err error
	for _, f := range forwards {
		err = errors.Join(err, f.l.Close())
	}
	for _, c := range open {
		// Those that close it themselves report nothing either.
		_ = c.Close()
	}
	n.cancel()
	n.stack.Close()
	n.link.Close()
	n.wg.Wait()
	n.stack.Wait()
	close(n.frames)
	return err
}

// keep notes what Close has to close; false, and c closed, if that is over.
func (n *Network) keep(c io.Closer) bool {
	n.mu.Lock()
	closed := n.closed
	if !closed {
		n.open[c] = struct{}{}
	}
	n.mu.Unlock()
	if closed {
		_ = c.Close()
	}
	return !closed
}

// drop closes what was kept.
func (n *Network) drop(c io.Closer) {
	n.mu.Lock()
	delete(n.open, c)
	n.mu.Unlock()
	_ = c.Close()
}

// begin counts one more of a kind and its goroutine; false if there are too many, or the
// network is closed.
func (n *Network) begin(count *int, most int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed || *count >= most {
		return false
	}
	*count++
	n.wg.Add(1)
	return true
}

func (n *Network) finish(count *int) {
	n.mu.Lock()
	*count--
	n.mu.Unlock()
	n.wg.Done()
}
