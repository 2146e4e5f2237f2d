package testbed

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Space is a network namespace without a name: it lives as long as its thread,
// the processes in it, and our file of it. A harness that was killed leaves none.
//
// It has a thread of its own, from which its processes are started: they ask
// the kernel to be killed with their parent (PDEATHSIG), and by that the kernel
// means the thread.
type Space struct {
	file *os.File
	work chan func()
}

// NewSpace makes a namespace, its loopback up. It needs root.
func NewSpace() (*Space, error) {
	s := &Space{work: make(chan func())}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := s.enter(); err != nil {
			made <- err
			return
		}
		made <- nil
		for f := range s.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("network namespace (root is needed): %w", err)
	}
	return s, nil
}

func (s *Space) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	var err error
	if s.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	return linkUp("lo")
}

// Do runs f in the namespace: sockets that f opens and processes that it starts
// are there. What f gives to other goroutines is not.
func (s *Space) Do(f func() error) error {
	done := make(chan error, 1)
	s.work <- func() { done <- f() }
	return <-done
}

// Fd refers to the namespace as long as it is open.
func (s *Space) Fd() int { return int(s.file.Fd()) }

// Close gives the namespace up; processes in it are killed by the kernel.
func (s *Space) Close() error {
	close(s.work)
	return s.file.Close()
}

// AddAddress gives an interface an address, at once good.
func (s *Space) AddAddress(link string, address netip.Prefix) error {
	return s.Do(func() error { return changeAddress(link, address, netlink.AddrReplace) })
}

// DelAddress takes it away.
func (s *Space) DelAddress(link string, address netip.Prefix) error {
	return s.Do(func() error { return changeAddress(link, address, netlink.AddrDel) })
}

func changeAddress(name string, address netip.Prefix, change func(netlink.Link, *netlink.Addr) error) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), address.Addr().BitLen()),
	}}
	if address.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := change(link, a); err != nil {
		return fmt.Errorf("address %v on %s: %w", address, name, err)
	}
	return nil
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return netlink.LinkSetUp(link)
}

// Cut is a way to cut a link.
type Cut int

const (
	// Unplug takes the switch's end down: the other end loses its carrier.
	Unplug Cut = iota
	// Drop loses every frame in both directions; the link looks well.
	Drop
)

func (c Cut) String() string { return [...]string{"unplug", "drop"}[c] }

// Switch is a switch with any number of bridges in a namespace of its own.
type Switch struct {
	space   *Space
	dropped []path
}

// path is what frames take from one port to another; an empty one is any.
type path struct{ from, to string }

// NewSwitch makes a switch with the bridges.
func NewSwitch(bridges ...string) (*Switch, error) {
	space, err := NewSpace()
	if err != nil {
		return nil, err
	}
	s := &Switch{space: space}
	err = space.Do(func() error {
		for _, name := range bridges {
			bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
			bridge.Name = name
			if err := netlink.LinkAdd(bridge); err != nil {
				return fmt.Errorf("bridge %s: %w", name, err)
			}
			if err := linkUp(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, space.Close())
	}
	return s, nil
}

// Close gives the switch up; its links go with it.
func (s *Switch) Close() error { return s.space.Close() }

// Attach joins a namespace to a bridge: inside, the link is called name and has
// the address, if it is one; port is its other end's name here, 15 bytes at most.
func (s *Switch) Attach(space *Space, bridge, port, name string, address netip.Prefix) error {
	err := s.space.Do(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: name, PeerNamespace: netlink.NsFd(space.Fd())}
		veth.Name = port
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("link %s: %w", port, err)
		}
		master, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, master); err != nil {
			return err
		}
		return linkUp(port)
	})
	if err != nil {
		return err
	}
	return space.Do(func() error {
		if err := linkUp(name); err != nil || !address.IsValid() {
			return err
		}
		return changeAddress(name, address, netlink.AddrReplace)
	})
}

// AttachTap joins a guest to a bridge: what is written to the file are frames
// that it sends, and what is read those that it gets, as QEMU's -netdev tap,fd=
// has it. port is the link's name here, 15 bytes at most. The link goes with the
// last who has the file open.
func (s *Switch) AttachTap(bridge, port string) (tap *os.File, err error) {
	err = s.space.Do(func() error {
		if tap, err = openTap(port); err != nil {
			return fmt.Errorf("tap %s: %w", port, err)
		}
		link, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		master, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(link, master); err != nil {
			return err
		}
		return linkUp(port)
	})
	if err != nil && tap != nil {
		return nil, errors.Join(err, tap.Close())
	}
	return tap, err
}

// openTap makes a tap device in the namespace of its caller. The header before
// each frame lets sums of packets be left to who needs them.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "/dev/net/tun")
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// Cut cuts the links of ports.
func (s *Switch) Cut(how Cut, ports ...string) error {
	if how == Drop {
		for _, port := range ports {
			s.dropped = append(s.dropped, path{from: port}, path{to: port})
		}
		return s.filter()
	}
	return s.each(ports, netlink.LinkSetDown)
}

// CutBetween loses every frame between two ports; all others reach both.
func (s *Switch) CutBetween(one, other string) error {
	s.dropped = append(s.dropped, path{one, other}, path{other, one})
	return s.filter()
}

// Mend undoes every kind of cut.
func (s *Switch) Mend(ports ...string) error {
	s.dropped = slices.DeleteFunc(s.dropped, func(p path) bool {
		return slices.Contains(ports, p.from) || slices.Contains(ports, p.to)
	})
	return errors.Join(s.filter(), s.each(ports, netlink.LinkSetUp))
}

func (s *Switch) each(ports []string, set func(netlink.Link) error) error {
	return s.space.Do(func() error {
		for _, port := range ports {
			link, err := netlink.LinkByName(port)
			if err == nil {
				err = set(link)
			}
			if err != nil {
				return fmt.Errorf("link %s: %w", port, err)
			}
		}
		return nil
	})
}

// filter has the bridges drop what takes a path of dropped.
// The table is replaced in one step: no frame passes in between.
func (s *Switch) filter() error {
	return s.space.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		table := &nftables.Table{Name: "cut", Family: nftables.TableFamilyBridge}
		conn.AddTable(table) // so that there is one to delete
		conn.DelTable(table)
		if len(s.dropped) > 0 {
			conn.AddTable(table)
			chain := conn.AddChain(&nftables.Chain{
				Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
			})
			for _, p := range s.dropped {
				conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: p.drop()})
			}
		}
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("drop frames of %v: %w", s.dropped, err)
		}
		return nil
	})
}

// drop is the rule that loses what takes the path.
func (p path) drop() []expr.Any {
	var rule []expr.Any
	match := func(key expr.MetaKey, port string) {
		if port == "" {
			return
		}
		name := []byte(port + strings.Repeat("\x00", unix.IFNAMSIZ-len(port)))
		rule = append(rule, &expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name})
	}
	match(expr.MetaKeyIIFNAME, p.from)
	match(expr.MetaKeyOIFNAME, p.to)
	return append(rule, &expr.Verdict{Kind: expr.VerdictDrop})
}
