package testbed

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// AddBridge makes a bridge in the namespace with interfaces of it as its ports: a box's
// uplinks, and where the machines on it are joined to them.
func (s *Space) AddBridge(name string, ports ...string) error {
	return s.Do(func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
		bridge.Name = name
		if err := netlink.LinkAdd(bridge); err != nil {
			return fmt.Errorf("bridge %s: %w", name, err)
		}
		for _, port := range ports {
			link, err := netlink.LinkByName(port)
			if err == nil {
				err = netlink.LinkSetMaster(link, bridge)
			}
			if err != nil {
				return fmt.Errorf("interface %s on bridge %s: %w", port, name, err)
			}
		}
		return linkUp(name)
	})
}

// Do runs f in the namespace of the switch, where its bridges are.
func (s *Switch) Do(f func() error) error { return s.space.Do(f) }
