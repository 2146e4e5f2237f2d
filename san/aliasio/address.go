package aliasio

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// openLinks opens a netlink socket for links and addresses.
func openLinks(namespace int) (*netlink.Handle, error) {
	at := netns.None()
	if namespace > 0 {
		at = netns.NsHandle(namespace)
	}
	links, err := netlink.NewHandleAt(at, unix.NETLINK_ROUTE)
	if err == nil {
		err = links.SetSocketTimeout(netlinkMax)
	}
	return links, explain(err, "open rtnetlink")
}

// inside runs f on a thread in the namespace. Sockets that f opens stay in it.
func inside(namespace int, f func() error) error {
	if namespace <= 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and nobody else meets
		// the namespace it is in.
		runtime.LockOSThread()
		if err := unix.Setns(namespace, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// findLink finds an interface that is up.
func findLink(links *netlink.Handle, name string) (netlink.Link, error) {
	link, err := links.LinkByName(name)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil, fault.New(fault.NotFound, "this node has no interface %q: name one that `ip link` shows", name)
	}
	if err != nil {
		return nil, explain(err, "find interface "+name)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return nil, fault.New(fault.Failed, "interface %s is down: `ip link set %s up`", name, name)
	}
	return link, nil
}

// everyAddress calls f with each address of each interface.
func everyAddress(links *netlink.Handle, f func(a netip.Addr, have netlink.Addr) error) error {
	all, err := links.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return explain(err, "list addresses")
	}
	for _, have := range all {
		if a, ok := netip.AddrFromSlice(have.IP); ok {
			if err := f(a.Unmap(), have); err != nil {
				return err
			}
		}
	}
	return nil
}

// absent makes sure that this machine does not have the address by other means.
func absent(links *netlink.Handle, address netip.Addr) error {
	return everyAddress(links, func(a netip.Addr, have netlink.Addr) error {
		if a != address {
			return nil
		}
		return fault.New(fault.Exists, "this node has %v already, on the interface with index %d, and not from us: "+
			"remove it (`ip address del`) and from the system's configuration", a, have.LinkIndex)
	})
}

// addAddress adds an alias. There is no duplicate address detection by the
// kernel: it takes a second, in which the address is not to be used, and was
// done by us.
func addAddress(links *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return explain(links.AddrAdd(link, a), fmt.Sprintf("add %v to %s", p, link.Attrs().Name))
}

// removeAddress removes an alias from every interface that has it.
func removeAddress(links *netlink.Handle, address netip.Addr) error {
	return everyAddress(links, func(a netip.Addr, have netlink.Addr) error {
		if a != address {
			return nil
		}
		link, err := links.LinkByIndex(have.LinkIndex)
		if err != nil {
			return explain(err, "find the interface of "+a.String())
		}
		err = links.AddrDel(link, &have)
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil // gone meanwhile, which is what is wanted
		}
		return explain(err, "remove "+a.String())
	})
}

// keepSecondaries has the kernel keep the other addresses of a network when the
// one that came first goes. Without it the end of one alias ends all that came
// after it on the same network.
func keepSecondaries(namespace int, a Alias) error {
	if a.Address.Addr().Is6() {
		return nil
	}
	err := inside(namespace, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/conf/"+a.Interface+"/promote_secondaries", []byte("1"), 0)
	})
	return explain(err, "set promote_secondaries of "+a.Interface)
}
