package aliasio

import (
	"errors"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// shut makes a an alias: from here on nothing goes to it or comes from it,
// until grant. Tables that somebody took away are made anew.
func (g *gate) shut(a netip.Addr, device string) error {
	g.aliases[a] = true
	g.devices[device]++
	err := g.tryShut(a, device)
	if errors.Is(err, unix.ENOENT) {
		err = g.build()
	}
	if err != nil {
		g.uncount(a, device)
	}
	return explain(err, "shut the gate of "+a.String())
}

func (g *gate) tryShut(a netip.Addr, device string) error {
	for _, s := range g.sides {
		if s.perDevice && g.devices[device] == 1 {
			g.addChains(s, egress(device))
		}
		if err := g.addAlias(s, a); err != nil {
			return err
		}
	}
	return g.flush()
}

// uncount forgets an alias and tells whether its interface has no other.
func (g *gate) uncount(a netip.Addr, device string) (last bool) {
	delete(g.aliases, a)
	if device == "" {
		return false
	}
	g.devices[device]--
	if last = g.devices[device] == 0; last {
		delete(g.devices, device)
	}
	return last
}

// eachGrant calls f with each set that has a's grant.
func (g *gate) eachGrant(a netip.Addr, f func(set *nftables.Set) error) error {
	for _, s := range g.sides {
		if s.onlyIPv4 && !a.Is4() {
			continue
		}
		if err := f(s.granted[indexOf(a)]); err != nil {
			return err
		}
	}
	return g.flush()
}

// grant opens the gate of a for a time. When renew is set, the grant must still
// live: one that has ended is not revived, for somebody may have counted on it.
func (g *gate) grant(a netip.Addr, lasts time.Duration, renew bool) error {
	element := []nftables.SetElement{{Key: a.AsSlice(), Timeout: lasts}}
	err := g.eachGrant(a, func(set *nftables.Set) error {
		if !renew {
			return g.conn.SetAddElements(set, element)
		}
		// Adding an element that is there does not renew it on most kernels, so it is
		// replaced. One that is missing fails the whole batch.
		return errors.Join(g.conn.SetDeleteElements(set, element), g.conn.SetAddElements(set, element))
	})
	if errors.Is(err, unix.ENOENT) {
		return fault.New(fault.Fenced, "the grant of %v has ended, or its tables were removed: find out whether this node may still hold it, then hold it anew (%w)", a, err)
	}
	return explain(err, "grant "+a.String())
}

// revoke ends the grant of a, if there is one.
func (g *gate) revoke(a netip.Addr) error {
	element := []nftables.SetElement{{Key: a.AsSlice(), Timeout: netlinkMax}}
	err := g.eachGrant(a, func(set *nftables.Set) error {
		// Added first, so that there is something to delete.
		return errors.Join(g.conn.SetAddElements(set, element), g.conn.SetDeleteElements(set, element))
	})
	if errors.Is(err, unix.ENOENT) {
		return g.missing("end the grant of " + a.String())
	}
	return explain(err, "end the grant of "+a.String())
}

// missing makes the tables anew when somebody took them away: shut, all of them.
func (g *gate) missing(doing string) error { return explain(g.build(), doing) }

// forget makes a an address like any other. The address must be gone by then.
func (g *gate) forget(a netip.Addr, device string) error {
	last := g.uncount(a, device)
	for _, s := range g.sides {
		if s.onlyIPv4 && !a.Is4() {
			continue
		}
		// Added first, so that there is something to delete.
		err := errors.Join(g.addAlias(s, a),
			g.conn.SetDeleteElements(s.aliases[indexOf(a)], []nftables.SetElement{{Key: a.AsSlice()}}))
		if err != nil {
			return explain(err, "forget "+a.String())
		}
	}
	err := g.flush()
	if errors.Is(err, unix.ENOENT) {
		return g.missing("forget " + a.String())
	}
	if err == nil && last {
		err = g.dropChains(device)
	}
	return explain(err, "forget "+a.String())
}

// dropChains removes the chain of an interface that has no alias any more. When
// the interface is gone, so is the chain.
func (g *gate) dropChains(device string) error {
	for _, s := range g.sides {
		if !s.perDevice {
			continue
		}
		g.conn.DelChain(&nftables.Chain{Table: s.gate, Name: egress(device).name + "_judge"})
		if err := g.flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}
