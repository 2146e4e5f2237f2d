package aliasio

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// Alias is an address that moves from node to node.
type Alias struct {
	Interface string
	Address   netip.Prefix // the address, and how much of it names the network
}

// Holder makes aliases live on this node. Its methods may be called by several
// goroutines; Hold and Release of one alias by one at a time.
type Holder struct {
	options Options
	links   *netlink.Handle
	tickler tickler

	mu     sync.Mutex
	gate   *gate
	held   map[netip.Addr]*held
	closed bool
}

// held is an alias in the care of a Holder.
type held struct {
	Alias
	link netlink.Link
	wire *wire // from the first probe to the last announcement; nil where nobody listens
	// ends is when the newest grant ends at the latest; zero before the first.
	ends Instant
	// stop ends the announcer; done is closed when it has ended.
	stop context.CancelFunc
	done chan struct{}
}

// Open takes the gate of this node, and clears away what a process before left:
// tables, addresses, connections. It fails with Busy while another lives.
func Open(o Options) (*Holder, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	h := &Holder{options: o, held: map[netip.Addr]*held{}}
	g, left, err := openGate(o)
	if err != nil {
		return nil, err
	}
	h.gate = g
	if h.links, err = openLinks(o.Namespace); err == nil {
		h.tickler, err = openTickler(o)
	}
	for _, a := range left {
		if err == nil {
			err = h.clear(a)
		}
	}
	if err != nil {
		return nil, errors.Join(err, h.closeAll())
	}
	return h, nil
}

// clear removes an alias that another process held.
func (h *Holder) clear(a netip.Addr) error {
	disconnect(h.options.Namespace, a)
	if err := removeAddress(h.links, a); err != nil {
		return err
	}
	return h.gate.forget(a, "")
}

// Hold makes a live here until a moment, or for a grant's time, whatever is
// shorter; Refresh prolongs it. A zero until knows no end of its own. It asks the
// network first, and fails with Busy when someone answers. An alias that is held
// already is released first. When it fails nothing of a stays.
//
// The caller has the right to hold a from before the call; Hold only acts.
func (h *Holder) Hold(ctx context.Context, a Alias, until Instant) error {
	address := a.Address.Addr()
	if !a.Address.IsValid() || address.Is4In6() || address.Zone() != "" || address.IsUnspecified() || address.IsMulticast() {
		return fault.New(fault.Invalid, "%v is no address that a node can have", a.Address)
	}
	if err := h.Release(address); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	it, err := h.prepare(a)
	if err == nil {
		// The address is there, and silent: the gate is shut.
		if err = h.probe(ctx, it); err == nil {
			err = h.open(it, until)
		}
		if err != nil {
			err = errors.Join(err, h.Release(address))
		}
	}
	if err != nil {
		return fmt.Errorf("hold %v on %s: %w", a.Address, a.Interface, err)
	}
	return nil
}

// prepare shuts the gate and adds the address behind it.
func (h *Holder) prepare(a Alias) (*held, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errClosed()
	}
	link, err := findLink(h.links, a.Interface)
	if err != nil {
		return nil, err
	}
	if err := absent(h.links, a.Address.Addr()); err != nil {
		return nil, err
	}
	if err := keepSecondaries(h.options.Namespace, a); err != nil {
		return nil, err
	}
	address := a.Address.Addr()
	if err := h.gate.shut(address, a.Interface); err != nil {
		return nil, err
	}
	if err := addAddress(h.links, link, a.Address); err != nil {
		return nil, errors.Join(err, h.gate.forget(address, a.Interface))
	}
	it := &held{Alias: a, link: link}
	h.held[address] = it
	return it, nil
}

// open gives the grant and starts to announce: in this order, so that whoever
// hears the announcement is answered.
func (h *Holder) open(it *held, until Instant) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errClosed()
	}
	if err := h.allow(it, until, false); err != nil {
		return err
	}
	return h.announce(it)
}

// Refresh prolongs the grant of an alias until a moment, or for a grant's time,
// whatever is shorter. It fails with Fenced when the grant has ended already or
// ends with until: then the alias is shut, and only a new Hold opens it.
func (h *Holder) Refresh(address netip.Addr, until Instant) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	it, err := h.find(address)
	if err != nil {
		return err
	}
	return h.allow(it, until, true)
}

// Shut ends the grant of an alias at once; address and connections stay, silent.
// It is for a holder that is about to give up its right, and may yet get it back:
// Reopen, or Release. Fails with fault.NotFound when the alias is not held.
func (h *Holder) Shut(address netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	it, err := h.find(address)
	if err != nil {
		return err
	}
	it.ends = Now() // what is to be announced yet is not
	return h.gate.revoke(address)
}

// Reopen opens the gate of a held alias whose grant has ended, for a caller that
// has, and never lost, the right to hold it: the process was late, and nobody else
// was here meanwhile. Connections go on, as after some lost packets. It fails as
// Refresh does; when the tables are gone, Hold makes them anew.
func (h *Holder) Reopen(address netip.Addr, until Instant) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	it, err := h.find(address)
	if err != nil {
		return err
	}
	return h.allow(it, until, false)
}

// allow has the kernel take a grant that ends with until.
func (h *Holder) allow(it *held, until Instant, renew bool) error {
	address := it.Address.Addr()
	for {
		before := Now()
		lasts := h.options.Grant
		if until != 0 {
			lasts = min(lasts, time.Duration(until-before))
		}
		if lasts < time.Millisecond { // what the kernel counts in
			err := fault.New(fault.Fenced, "the right to %v is over: find out who may hold it", address)
			return errors.Join(err, h.gate.revoke(address))
		}
		if err := h.gate.grant(address, lasts, renew); err != nil {
			return err
		}
		// The kernel counted from some moment in between. When this process was
		// stopped just then, the grant outlives the right it was meant for: cut it.
		it.ends = Now().Add(lasts)
		if until == 0 || it.ends <= until.Add(LateMax) {
			return nil
		}
		renew = true
	}
}

// Release ends an alias here, as planned: shut at once, its connections and the
// address gone. It fails with NotFound when the alias is not held. Let clients go
// before, with Clean, and give them a moment: what they have not acknowledged
// by now is not sent again.
func (h *Holder) Release(address netip.Addr) error {
	h.mu.Lock()
	it, err := h.find(address)
	if err != nil {
		h.mu.Unlock()
		return err
	}
	delete(h.held, address)
	err = h.gate.revoke(address)
	h.mu.Unlock()
	// The announcer takes the lock for each frame, so that it is waited for here.
	it.end()
	disconnect(h.options.Namespace, address)

	h.mu.Lock()
	defer h.mu.Unlock()
	// When the address stays, so does the gate: shut.
	if gone := removeAddress(h.links, address); gone != nil {
		return errors.Join(err, gone)
	}
	return errors.Join(err, h.gate.forget(address, it.Interface))
}

// Mend adds the address of a held alias again when somebody took it away, and
// announces it: the kernel takes IPv6 addresses when a cable is pulled, and
// programs that configure networks take what they do not know. That of an alias that
// is shut stays away until it is open again: a Sweeper takes it, so that who is on
// this node, too, finds the alias where it is now. It tells whether there was something
// to mend. Call it once a second, and when a link comes up.
func (h *Holder) Mend(address netip.Addr) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	it, err := h.find(address)
	if err != nil {
		return false, err
	}
	if err := absent(h.links, address); fault.Is(err, fault.Exists) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	link, err := findLink(h.links, it.Interface)
	if err != nil {
		return false, err
	}
	if link.Attrs().Index != it.link.Attrs().Index {
		// The gate's chain on its egress went with the old one.
		return false, fault.New(fault.Fenced, "interface %s was replaced by another: hold %v anew", it.Interface, address)
	}
	if Now() >= it.ends {
		return false, nil
	}
	if err := addAddress(h.links, link, it.Address); err != nil {
		return false, err
	}
	if Now() >= it.ends || !it.hasWire() {
		return true, nil
	}
	wire, err := h.openWire(it)
	if err != nil {
		return true, err
	}
	return true, explain(errors.Join(wire.tell(), wire.conn.Close()), "announce "+address.String())
}

func (h *Holder) find(address netip.Addr) (*held, error) {
	if h.closed {
		return nil, errClosed()
	}
	it, ok := h.held[address]
	if !ok {
		return nil, fault.New(fault.NotFound, "alias %v is not held here", address)
	}
	return it, nil
}

func errClosed() error { return fault.New(fault.Canceled, "the holder of aliases is closed") }

// Close releases all aliases and removes the tables.
func (h *Holder) Close() error {
	h.mu.Lock()
	var all []netip.Addr
	for address := range h.held {
		all = append(all, address)
	}
	h.mu.Unlock()
	var errs []error
	for _, address := range all {
		if err := h.Release(address); err != nil && !fault.Is(err, fault.NotFound) {
			errs = append(errs, err)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return errClosed()
	}
	h.closed = true
	if len(errs) > 0 {
		// Something may still have an alias's address: leave the gate shut before it.
		// The next Open clears both away.
		return errors.Join(append(errs, h.gate.disconnect(), h.closeSockets())...)
	}
	return h.closeAll()
}

func (h *Holder) closeAll() error { return errors.Join(h.gate.close(), h.closeSockets()) }

func (h *Holder) closeSockets() error {
	if h.links != nil {
		h.links.Close()
	}
	return h.tickler.close()
}

// Clear takes away what a process that died has left on this node: addresses and connections.
// For who is on this node, too, an alias is elsewhere only when its address is not here: the
// kernel looks no further. The gate stays. It fails with Busy while a process has it.
func Clear(o Options) error {
	h, err := Open(o)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	return errors.Join(h.gate.disconnect(), h.closeSockets())
}

// Clean marks a connection, so that the gate lets its end through to the client:
// for a close that the client shall hear of.
func (h *Holder) Clean(conn syscall.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return explain(err, "mark a connection")
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(h.options.MarkClean))
	})
	return explain(errors.Join(err, failed), "mark a connection")
}
