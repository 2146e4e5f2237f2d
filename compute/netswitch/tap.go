package netswitch

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"steadfast/compute/netswitch/bridge"
	"steadfast/fault"
)

// tunDevice is where the kernel makes taps (Documentation/networking/tuntap.rst).
const tunDevice = "/dev/net/tun"

// Tap is a port of this host's own switch, a bridge of the kernel's. It is there as long as it
// is open. Its methods may be called by several goroutines.
type Tap struct {
	name string
	mtu  int
	f    *os.File

	up, down, dropped atomic.Uint64
	joint             joint
	tasks             sync.WaitGroup
}

// NewTap makes an interface and puts it on a bridge, which is there already and says what its
// MTU is. It needs CAP_NET_ADMIN. Close is to follow, and takes the interface away, as the
// process's end does. Fails with fault.Denied, fault.NotFound if there is no such bridge, fault.Exists
// if there is such an interface, and fault.Invalid.
func NewTap(name, bridgeName string) (*Tap, error) {
	on, err := netlink.LinkByName(bridgeName)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil, fault.New(fault.NotFound, "this host has no bridge %q; make it: ip link add %s type bridge", bridgeName, bridgeName)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "the bridge "+bridgeName)
	}
	if on.Type() != "bridge" {
		return nil, fault.New(fault.Invalid, "%q is no bridge, but a %s", bridgeName, on.Type())
	}
	if _, err := netlink.LinkByName(name); err == nil {
		return nil, fault.New(fault.Exists, "this host has an interface %q already", name)
	}
	f, err := openTap(name)
	if err != nil {
		return nil, err
	}
	t := &Tap{name: name, mtu: on.Attrs().MTU, f: f}
	t.tasks.Go(t.carryDown)
	if err := t.plug(on); err != nil {
		return nil, errors.Join(fault.Wrap(fault.Denied, err, "the interface "+name+" on "+bridgeName), t.Close())
	}
	return t, nil
}

// openTap makes an interface that is this descriptor's.
func openTap(name string) (*os.File, error) {
	req, err := unix.NewIfreq(name)
	if err != nil || name == "" {
		return nil, fault.New(fault.Invalid, "%q is no name of an interface: from 1 to 15 characters", name)
	}
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, tunDevice+" (without root, use \"steadfast switch\")")
	}
	// Frames as they are, without the kernel's four bytes before each; one process at a time.
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		_ = unix.Close(fd) // it is nothing yet
		return nil, fault.Wrap(fault.Denied, err, "the interface "+name+" (without root, use \"steadfast switch\")")
	}
	// From here on it can be waited for, which before TUNSETIFF it cannot.
	return os.NewFile(uintptr(fd), tunDevice), nil
}

// plug puts the interface on the bridge.
func (t *Tap) plug(on netlink.Link) error {
	link, err := netlink.LinkByName(t.name)
	if err != nil {
		return err
	}
	// The host is to say nothing of its own at this port. A kernel without IPv6 refuses, and
	// has nothing to say.
	_ = netlink.LinkSetIP6AddrGenMode(link, 1) // IN6_ADDR_GEN_MODE_NONE
	if err := netlink.LinkSetMTU(link, t.mtu); err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(link, on); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// Name is the interface's.
func (t *Tap) Name() string { return t.name }

// MTU is the bridge's, in bytes, as it was when the interface was made.
func (t *Tap) MTU() int { return t.mtu }

// Frames are those that went to the kernel, those that came from it, and those dropped for
// want of room or of a wire.
func (t *Tap) Frames() (up, down, dropped uint64) {
	return t.up.Load(), t.down.Load(), t.dropped.Load()
}

// Join carries frames between the interface and a machine at the other end of wire, as
// Uplink.Join does.
func (t *Tap) Join(wire net.Conn) error {
	return t.joint.join(wire, func(frame []byte) {
		switch {
		case !bridge.Large(frame, t.mtu):
			t.Send(frame)
		case !bridge.Cut(frame, t.mtu, t.Send):
			t.dropped.Add(1)
		}
	})
}

// Send gives the kernel a frame, the machine's or an announcement that it is here now.
func (t *Tap) Send(frame []byte) {
	// It takes none that is shorter than a header, and none while the interface is down.
	if _, err := t.f.Write(frame); err != nil {
		t.dropped.Add(1)
		return
	}
	t.up.Add(1)
}

// carryDown brings the kernel's frames to the wire, until the interface is gone.
func (t *Tap) carryDown() {
	b := make([]byte, messageMax+1)
	for {
		n, err := t.f.Read(b)
		if err != nil {
			return
		}
		if !t.joint.down(b[:n]) {
			t.dropped.Add(1)
			continue
		}
		t.down.Add(1)
	}
}

// Close takes the interface away, ends what is joined, and returns when nothing of it runs.
func (t *Tap) Close() error {
	t.joint.close()
	err := t.f.Close()
	t.tasks.Wait()
	t.joint.tasks.Wait()
	return fault.Wrap(fault.Failed, err, "the interface "+t.name)
}
