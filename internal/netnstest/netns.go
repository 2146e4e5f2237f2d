// Package netnstest makes network namespaces for tests, and joins them by a
// switch. A namespace here has no name: it lives as long as a thread, a process
// or a file refers to it. So nothing is left behind, not even by a test that was
// killed.
//
// It needs root, and a kernel with network namespaces, veth and bridges.
package netnstest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is a network namespace.
type NS struct{ file *os.File }

// New makes a namespace with its loopback interface up, for the time of t. It
// skips t, with the reason, where that cannot be done.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: network namespaces need root")
	}
	ns := &NS{}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		ns.file = file
		return up("lo")
	})
	if err != nil {
		t.Skipf("SKIP: no network namespace here: %v", err)
	}
	t.Cleanup(func() { _ = ns.file.Close() })
	return ns
}

// Fd returns the file descriptor that refers to the namespace.
func (ns *NS) Fd() int { return int(ns.file.Fd()) }

// Do runs f inside of the namespace. Sockets that f opens and processes that it
// starts stay there. What f hands to another goroutine does not run there.
func (ns *NS) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(ns.Fd(), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return f()
	})
}

// onThread runs f on a thread of its own, which ends with it: a thread that has
// changed its namespace must not be used for anything else.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return netlink.LinkSetUp(link)
}

// Switch is a bridge in a namespace of its own.
type Switch struct {
	ns    *NS
	ports int
}

// NewSwitch makes a switch for the time of t.
func NewSwitch(t testing.TB) *Switch {
	t.Helper()
	s := &Switch{ns: New(t)}
	err := s.ns.Do(func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
		bridge.Name = "br0"
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		return up("br0")
	})
	if err != nil {
		t.Skipf("SKIP: no bridge here: %v", err)
	}
	return s
}

// Attach gives ns an interface on the switch with the addresses.
func (s *Switch) Attach(t testing.TB, ns *NS, name string, addresses ...netip.Prefix) {
	t.Helper()
	s.ports++
	port := fmt.Sprintf("port%d", s.ports)
	err := s.ns.Do(func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: name, PeerNamespace: netlink.NsFd(ns.Fd())}
		veth.Name = port
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("veth: %w", err)
		}
		bridge, err := netlink.LinkByName("br0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(veth, bridge); err != nil {
			return err
		}
		return up(port)
	})
	if err == nil {
		err = ns.Do(func() error {
			if err := up(name); err != nil {
				return err
			}
			for _, address := range addresses {
				if err := addAddress(name, address); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		t.Fatalf("attach %s: %v", name, err)
	}
}

// addAddress gives an interface an address that is good at once: no duplicate
// address detection.
func addAddress(name string, address netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), address.Addr().BitLen()),
	}}
	if address.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, a); err != nil {
		return fmt.Errorf("address %v: %w", address, err)
	}
	return nil
}
