package usernet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"steadfast/fault"
)

// forwardsMax is how many forwards there are at a time.
const forwardsMax = 256

// forward is a Forward that is listened for.
type forward struct {
	Forward
	l net.Listener
}

// checkForward fills in whom a forward is to.
func (o *Options) checkForward(f *Forward) error {
	if !f.Guest.IsValid() && !o.Many {
		f.Guest = o.Guest
	}
	switch {
	case f.GuestPort == 0:
		return fault.New(fault.Invalid, "a forward from %s to no port", f.Listen)
	case !f.Guest.IsValid():
		return fault.New(fault.Invalid, "a forward from %s to nobody: this network has many guests, say which", f.Listen)
	case !o.may(f.Guest):
		return fault.New(fault.Invalid, "a forward from %s to %v, which is no guest's address in %v", f.Listen, f.Guest, o.Subnet)
	}
	return nil
}

// AddForward begins a forward, and returns the address that it listens at. Fails with
// fault.Invalid, fault.Busy if that is in use, fault.Limit, and fault.Canceled after Close.
func (n *Network) AddForward(f Forward) (net.Addr, error) {
	if err := n.o.checkForward(&f); err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddrPort(f.Listen); err != nil {
		return nil, fault.New(fault.Invalid, "a forward listens at ADDRESS:PORT, as 127.0.0.1:8080 is, not at %q", f.Listen)
	}
	l, err := (&net.ListenConfig{}).Listen(n.ctx, "tcp", f.Listen)
	if err != nil {
		return nil, fault.Wrap(fault.Busy, err, "a forward to a guest; choose another address")
	}
	f.Listen = l.Addr().String()
	if err := n.begun(&forward{f, l}); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l.Addr(), nil
}

// begun lets a forward run that is listened for.
func (n *Network) begun(f *forward) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed:
		return fault.New(fault.Canceled, "the network is closed")
	case len(n.forwards) >= forwardsMax:
		return fault.New(fault.Limit, "there are %d forwards, and that is all that may be; remove one", forwardsMax)
	}
	n.forwards = append(n.forwards, f)
	n.wg.Go(func() { n.accept(f) })
	return nil
}

// RemoveForward ends the forward that listens at an address; connections that it has let in
// go on. Fails with fault.NotFound.
func (n *Network) RemoveForward(listen string) error {
	n.mu.Lock()
	i := slices.IndexFunc(n.forwards, func(f *forward) bool { return f.Listen == listen })
	if i < 0 || n.closed {
		n.mu.Unlock()
		return fault.New(fault.NotFound, "nothing is forwarded from %s", listen)
	}
	f := n.forwards[i]
	n.forwards = slices.Delete(n.forwards, i, i+1)
	n.mu.Unlock()
	return fault.Wrap(fault.Failed, f.l.Close(), "a forward")
}

// Forwards are the addresses that are listened at: those of Options.Forwards in their
// order, then those that were added.
func (n *Network) Forwards() []net.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]net.Addr, 0, len(n.forwards))
	for _, f := range n.forwards {
		all = append(all, f.l.Addr())
	}
	return all
}

// ForwardList are the forwards, in the same order.
func (n *Network) ForwardList() []Forward {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make([]Forward, 0, len(n.forwards))
	for _, f := range n.forwards {
		all = append(all, f.Forward)
	}
	return all
}

// accept takes connections until the listener is closed.
func (n *Network) accept(f *forward) {
	for {
		c, err := f.l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			n.log.Warn("a forward does not accept", "address", f.Listen, "error", err)
			select {
			case <-n.ctx.Done():
				return
			case <-time.After(time.Second): // out of descriptors, most likely
			}
		case !n.begin(&n.conns, connectionsMax):
			_ = c.Close()
		default:
			go n.inward(c.(*net.TCPConn), &f.Forward)
		}
	}
}

// inward carries one connection to the guest.
func (n *Network) inward(c *net.TCPConn, f *Forward) {
	defer n.finish(&n.conns)
	if !n.keep(c) {
		return
	}
	defer n.drop(c)
	ctx, cancel := context.WithTimeout(n.ctx, dialTimeout)
	defer cancel()
	g, err := gonet.DialTCPWithBind(ctx, n.stack, tcpip.FullAddress{NIC: nic, Addr: address(n.o.Gateway)},
		tcpip.FullAddress{NIC: nic, Addr: address(f.Guest), Port: f.GuestPort}, ipv4.ProtocolNumber)
	if err != nil {
		n.log.Debug("the guest takes no connection", "guest", f.Guest.String(), "port", f.GuestPort, "error", err)
		// As the guest's refusal would look: a reset, not an orderly end.
		_ = c.SetLinger(0)
		return
	}
	if !n.keep(g) {
		return
	}
	defer n.drop(g)
	splice(c, g)
}
