package aliasio

import (
	"errors"
	"maps"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"steadfast/fault"
)

// Sweeper takes aliases away that a process holds and can do nothing for any more: it is
// stopped. Their gate has shut by itself, but their addresses are still here, and to who is on
// this node, too, an alias is elsewhere only when its address is not here: the kernel looks no
// further. It is for another process than the holder's. One caller at a time.
//
// It may be wrong about a holder that is only slow: what has no grant may not be used
// anyway, and Mend brings back an address of an alias that is held.
type Sweeper struct {
	options Options
	conn    *nftables.Conn
	gate    *side
	links   *netlink.Handle
	shut    map[netip.Addr]Instant // since when aliases were seen without a grant
}

// OpenSweeper makes one. Close is to follow.
func OpenSweeper(o Options) (*Sweeper, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	conn, _, err := dialNFT(o.Namespace)
	if err != nil {
		return nil, err
	}
	links, err := openLinks(o.Namespace)
	if err != nil {
		return nil, errors.Join(err, conn.CloseLasting())
	}
	return &Sweeper{options: o, conn: conn, gate: newSide(nftables.TableFamilyINet, o.Table), links: links, shut: map[netip.Addr]Instant{}}, nil
}

// Sweep takes away the aliases whose grant has been over for that long, as far as was seen by
// it. Call it several times in that time. It returns those that it took away. Of a gate that it
// cannot read it takes none, and begins to look anew.
func (s *Sweeper) Sweep(after time.Duration) (swept []netip.Addr, err error) {
	tables, err := s.conn.ListTables()
	var aliases, granted map[netip.Addr]bool
	if err == nil && s.gate.in(tables) {
		var failed error
		aliases, err = addresses(s.conn, s.gate.aliases)
		granted, failed = addresses(s.conn, s.gate.granted)
		err = errors.Join(err, failed)
	}
	if err != nil {
		clear(s.shut)
		return nil, explain(err, "look at the gate")
	}
	maps.DeleteFunc(s.shut, func(a netip.Addr, _ Instant) bool { return !aliases[a] || granted[a] })
	now := Now()
	for a := range aliases {
		since, seen := s.shut[a]
		switch {
		case granted[a]:
		case !seen:
			s.shut[a] = now
		case now >= since.Add(after) && fault.Is(absent(s.links, a), fault.Exists):
			disconnect(s.options.Namespace, a)
			if e := removeAddress(s.links, a); e != nil {
				err = errors.Join(err, e)
				continue
			}
			swept = append(swept, a)
			delete(s.shut, a)
		}
	}
	return swept, err
}

// Close ends it.
func (s *Sweeper) Close() error {
	s.links.Close()
	return s.conn.CloseLasting()
}
