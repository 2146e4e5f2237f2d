package usernet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"steadfast/fault"
)

// Times.
const (
	// dialTimeout bounds the opening of a connection, outwards and inwards.
	dialTimeout = 20 * time.Second
	// udpIdle ends a UDP flow that nothing passed in either direction (RFC 4787, REQ-5,
	// wants at least two minutes).
	udpIdle = 2 * time.Minute
)

// copyBytes is how much is copied at a time.
const copyBytes = 64 << 10

// dnsPort is DNS's (RFC 1035, 4.2).
const dnsPort = 53

// destination is where a flow of the guest leads to.
func destination(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)
}

// mayReach tells whether the guest may speak with an address outside. What means this host
// or this link there is not the guest's.
func (n *Network) mayReach(a netip.Addr) bool {
	return !n.o.Isolated && !n.o.Subnet.Contains(a) && a.IsGlobalUnicast() && a.As4()[0] != 0
}

// outwardTCP opens a connection that the guest wants.
func (n *Network) outwardTCP(r *tcp.ForwarderRequest) {
	if !n.begin(&n.conns, connectionsMax) {
		r.Complete(true)
		return
	}
	defer n.finish(&n.conns)
	to := destination(r.ID())
	out, err := n.dialOut(to)
	if err != nil {
		n.log.Debug("a guest's connection failed", "to", to.String(), "error", err)
		r.Complete(true)
		return
	}
	if !n.keep(out) {
		r.Complete(true)
		return
	}
	defer n.drop(out)
	var wq waiter.Queue
	ep, tcpErr := r.CreateEndpoint(&wq)
	if tcpErr != nil {
		r.Complete(true)
		return
	}
	r.Complete(false)
	in := gonet.NewTCPConn(&wq, ep)
	if !n.keep(in) {
		return
	}
	defer n.drop(in)
	splice(in, out)
}

// dialOut opens a connection of this host for one of the guest.
func (n *Network) dialOut(to netip.AddrPort) (halfCloser, error) {
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	targets := []netip.AddrPort{to}
	switch {
	case to == netip.AddrPortFrom(n.o.Gateway, dnsPort) && !n.o.NoDNS:
		targets = n.resolvers()
	case !n.mayReach(to.Addr()):
		return nil, fault.New(fault.Denied, "%v is not to be reached from here", to)
	}
	err := error(fault.New(fault.Unreachable, "this host knows no resolver"))
	for _, t := range targets {
		var c net.Conn
		if c, err = n.o.Dial(ctx, "tcp", t.String()); err == nil {
			return c.(halfCloser), nil
		}
	}
	return nil, err
}

// halfCloser is a connection with two directions that end apart.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// copyBuffers are what splice copies with.
var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBytes); return &b }}

// splice carries bytes both ways until both directions have ended, or one has failed.
func splice(a, b halfCloser) {
	var wg sync.WaitGroup
	one := func(to, from halfCloser) {
		buf := copyBuffers.Get().(*[]byte)
		defer copyBuffers.Put(buf)
		// Without the shortcuts of io.Copy, which bring buffers of their own.
		_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, *buf)
		if err == nil {
			err = to.CloseWrite()
		}
		if err != nil {
			_ = a.Close()
			_ = b.Close()
		}
	}
	wg.Go(func() { one(a, b) })
	one(b, a)
	wg.Wait()
}

// outwardUDP begins a flow: the guest's first datagram from one address to another.
func (n *Network) outwardUDP(r *udp.ForwarderRequest) bool {
	to := destination(r.ID())
	dns := to == netip.AddrPortFrom(n.o.Gateway, dnsPort) && !n.o.NoDNS
	if !dns && !n.mayReach(to.Addr()) || !n.begin(&n.flows, flowsMax) {
		return false
	}
	var wq waiter.Queue
	ep, err := r.CreateEndpoint(&wq)
	if err != nil {
		n.finish(&n.flows)
		return false
	}
	guest := gonet.NewUDPConn(&wq, ep)
	go func() {
		defer n.finish(&n.flows)
		if !n.keep(guest) {
			return
		}
		defer n.drop(guest)
		if dns {
			n.serveDNS(guest)
			return
		}
		n.relayUDP(guest, to)
	}()
	return true
}

// relayUDP carries the datagrams of a flow until it is idle.
func (n *Network) relayUDP(guest net.Conn, to netip.AddrPort) {
	out, err := n.o.Dial(n.ctx, "udp", to.String())
	if err != nil {
		n.log.Debug("a guest's flow failed", "to", to.String(), "error", err)
		return
	}
	if !n.keep(out) {
		return
	}
	defer n.drop(out)
	var last atomic.Int64
	last.Store(time.Now().UnixNano())
	var wg sync.WaitGroup
	wg.Go(func() { copyDatagrams(out, guest, &last) })
	copyDatagrams(guest, out, &last)
	// One direction has ended: the flow has.
	_ = guest.Close()
	_ = out.Close()
	wg.Wait()
}

// copyDatagrams copies until an error, or until nothing has passed in either direction.
func copyDatagrams(to, from net.Conn, last *atomic.Int64) {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	for {
		idle := time.Unix(0, last.Load()).Add(udpIdle)
		if err := from.SetReadDeadline(idle); err != nil {
			return
		}
		got, err := from.Read(*buf)
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			if time.Since(time.Unix(0, last.Load())) < udpIdle {
				continue
			}
			return
		}
		if err != nil {
			return
		}
		last.Store(time.Now().UnixNano())
		// A datagram that cannot be sent is lost, as on any network.
		_, _ = to.Write((*buf)[:got])
	}
}
