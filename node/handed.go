package node

import (
	"net"
	"net/netip"

	"steadfast/fault"
	"steadfast/node/handed"
)

// serveHanded takes in the connections that another process accepts at the
// groups' aliases, when the node is configured to leave them to it: see package
// handed.
func (n *Node) serveHanded() error {
	if !n.cfg.Cluster.HandedAliases {
		return nil
	}
	r, err := handed.Receive(handed.Socket(n.cfg.DataDir), handedOver{n}, n.log)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.servers = append(n.servers, r.Close)
	return nil
}

// handedOver implements handed.Handler.
type handedOver struct{ n *Node }

// tag returns a group's portal group tag. Fails with fault.Fenced when this node
// has no part in the group, or does not serve it now.
func (h handedOver) tag(group string) (uint16, error) {
	gs := h.n.haGroups()
	if gs == nil {
		return 0, fault.New(fault.Fenced, "this node has no part in group %q now", group)
	}
	g, err := gs.Group(group)
	if err != nil {
		return 0, fault.Wrap(fault.Fenced, err, "this node has no part in it")
	}
	tag := g.Spec().Tag()
	if !h.n.targets.Admits(tag) {
		return 0, fault.New(fault.Fenced, "this node does not serve group %q now", group)
	}
	return tag, nil
}

// Serves implements handed.Handler.
func (h handedOver) Serves(group string) error {
	_, err := h.tag(group)
	return err
}

// Take implements handed.Handler.
func (h handedOver) Take(conn net.Conn, group string) error {
	tag, err := h.tag(group)
	if err != nil {
		return err
	}
	return h.n.targets.Adopt(conn, tag)
}

// Admit implements handed.Handler. A node that anybody else could reach does not:
// this is for a trial.
func (h handedOver) Admit(volume string) (target string, lun int32, err error) {
	for _, p := range h.n.cfg.Portals {
		if at, err := netip.ParseAddrPort(string(p.Address)); err != nil || !at.Addr().IsLoopback() {
			return "", 0, fault.New(fault.Denied, "this node has a portal at %s, which is not on loopback: it admits only who it is told of", p.Address)
		}
	}
	m, err := h.n.AdmitAnyone(volume)
	if err != nil {
		return "", 0, err
	}
	return m.Target, m.Lun, nil
}
