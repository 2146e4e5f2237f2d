package usernet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/zeebo/xxh3"

	"steadfast/fault"
)

// Bounds of leases.
const (
	// leasesMax is how many addresses are given, reserved and set aside at a time.
	leasesMax = 1024
	// offerSeconds is how long an offered address waits for its client to take it.
	offerSeconds = 120
	// declinedSeconds is how long an address is set aside that its station found in use by
	// another: RFC 2131, 4.3.3, says no time. A day, as some servers have it, would be longer
	// than most reasons for it last.
	declinedSeconds = 3600
	// declinedMax is how many are set aside at a time, so that a guest that declines all it
	// is given leaves some to others: the first of more is given again.
	declinedMax = 64
)

// MAC is a station's link address.
type MAC [6]byte

// String implements fmt.Stringer.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Fails with fault.Invalid.
func (m *MAC) UnmarshalText(text []byte) error {
	a, err := net.ParseMAC(string(text))
	if err != nil || len(a) != len(m) {
		return fault.New(fault.Invalid, "%q is no link address, as 02:53:46:00:01:01 is", text)
	}
	*m = MAC(a)
	return nil
}

// station tells whether it is the address of one card (IEEE 802, 8.2.2: the first bit is 0).
func (m MAC) station() bool { return m[0]&1 == 0 && m != MAC{} }

// Lease is an address that a station has.
type Lease struct {
	MAC     MAC        `json:"mac"`
	Address netip.Addr `json:"address"`
	// Reserved says that no other station gets the address, whether this one asks or not.
	Reserved bool `json:"reserved"`
	// Until is when it runs out, unless the station renews it; zero if it has not asked.
	Until time.Time `json:"until,omitzero"`
}

// leases are the addresses of a network of many guests. An address follows from its
// station's MAC where it can, so that a network that is made anew, which has forgotten all,
// gives the same ones.
type leases struct {
	o   *Options
	now func() time.Time

	mu        sync.Mutex
	byMAC     map[MAC]*Lease
	byAddress map[netip.Addr]*Lease // and those set aside, which have no MAC
}

func newLeases(o *Options) *leases {
	return &leases{o: o, now: time.Now, byMAC: map[MAC]*Lease{}, byAddress: map[netip.Addr]*Lease{}}
}

// may tells whether an address is one for guests.
func (o *Options) may(a netip.Addr) bool {
	return o.Subnet.Contains(a) && a != o.Subnet.Addr() && a != o.broadcast() && a != o.Gateway
}

// offer returns the address that a station is to have, and keeps it for a while: the one that
// it has, else the one that it wants, else its own (RFC 2131, 4.3.1); false if none is left.
func (l *leases) offer(mac MAC, want netip.Addr) (netip.Addr, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !mac.station() {
		return netip.Addr{}, false
	}
	has := l.byMAC[mac]
	if has == nil {
		if !l.o.may(want) || !l.free(want) {
			var ok bool
			if want, ok = l.pick(mac); !ok {
				return netip.Addr{}, false
			}
		}
		if has = l.bind(mac, want); has == nil {
			return netip.Addr{}, false
		}
	}
	if hold := l.now().Add(offerSeconds * time.Second); !has.Reserved && has.Until.Before(hold) {
		has.Until = hold
	}
	return has.Address, true
}

// take tells whether a station may use an address, and gives it then. One that nobody has is
// given to who uses it already: this network, made anew, has forgotten that it gave it, and
// no other server has (RFC 2131, 4.3.2 has servers be silent for the sake of others).
func (l *leases) take(mac MAC, want netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	has := l.byMAC[mac]
	if has == nil {
		if !mac.station() || !l.o.may(want) || !l.free(want) {
			return false
		}
		if has = l.bind(mac, want); has == nil {
			return false
		}
	}
	if has.Address != want {
		return false
	}
	has.Until = l.now().Add(leaseSeconds * time.Second)
	return true
}

// release takes a station's address back (RFC 2131, 4.3.4).
func (l *leases) release(mac MAC, address netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if has := l.byMAC[mac]; has != nil && has.Address == address && !has.Reserved {
		l.forget(has)
	}
}

// decline sets an address aside, which its station has found in use by another (4.3.3). One
// that is reserved is not.
func (l *leases) decline(mac MAC, address netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	has := l.byMAC[mac]
	if has == nil || has.Address != address || has.Reserved {
		return
	}
	delete(l.byMAC, mac)
	has.MAC, has.Until = MAC{}, l.now().Add(declinedSeconds*time.Second)
	var first *Lease
	n := 0
	for _, d := range l.byAddress {
		if d.MAC != (MAC{}) {
			continue
		}
		if n++; first == nil || d.Until.Before(first.Until) {
			first = d
		}
	}
	if n > declinedMax {
		l.forget(first)
	}
}

// free tells whether an address is nobody's, or was until its lease ran out.
func (l *leases) free(a netip.Addr) bool {
	has := l.byAddress[a]
	return has == nil || !has.Reserved && l.now().After(has.Until)
}

// pick finds an address for a station: the first free one from its own on. At most leasesMax
// are not.
func (l *leases) pick(mac MAC) (netip.Addr, bool) {
	hosts := uint32(1)<<(32-l.o.Subnet.Bits()) - 2
	base := l.o.Subnet.Addr().As4()
	first := uint32(xxh3.Hash(mac[:]) % uint64(hosts))
	for i := range min(hosts, leasesMax+2) {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(base[:])+1+(first+i)%hosts)
		if a := netip.AddrFrom4(b); l.o.may(a) && l.free(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// bind gives an address, which is free, to a station that has none; nil at the bound.
func (l *leases) bind(mac MAC, a netip.Addr) *Lease {
	if old := l.byAddress[a]; old != nil {
		l.forget(old)
	}
	if len(l.byAddress) >= leasesMax {
		for _, old := range l.byAddress {
			if l.free(old.Address) {
				l.forget(old)
			}
		}
		if len(l.byAddress) >= leasesMax {
			return nil
		}
	}
	n := &Lease{MAC: mac, Address: a}
	l.byMAC[mac], l.byAddress[a] = n, n
	return n
}

func (l *leases) forget(old *Lease) {
	delete(l.byAddress, old.Address)
	if l.byMAC[old.MAC] == old {
		delete(l.byMAC, old.MAC)
	}
}

// reserve is Network.Reserve.
func (l *leases) reserve(mac MAC, want netip.Addr) (netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	has := l.byMAC[mac]
	switch {
	case !mac.station():
		return want, fault.New(fault.Invalid, "%v is no address of a card: its first byte is even", mac)
	case want.IsValid() && !l.o.may(want):
		return want, fault.New(fault.Invalid, "%v is no address for a machine in %v", want, l.o.Subnet)
	case has != nil && (!want.IsValid() || has.Address == want):
		has.Reserved = true
		return has.Address, nil
	case want.IsValid() && !l.free(want) && l.byAddress[want].MAC == MAC{}:
		return want, fault.New(fault.Busy, "%v was found in use by a station that did not get it from this network, and is set aside until %v; reserve another address", want, l.byAddress[want].Until.Format(time.TimeOnly))
	case want.IsValid() && !l.free(want):
		return want, fault.New(fault.Busy, "%v is %v's; reserve another address", want, l.byAddress[want].MAC)
	}
	if !want.IsValid() {
		var ok bool
		if want, ok = l.pick(mac); !ok {
			return want, fault.New(fault.Full, "no address is left in %v; make the subnet larger", l.o.Subnet)
		}
	}
	if has != nil {
		l.forget(has) // it hears of it when it renews what it has
	}
	n := l.bind(mac, want)
	if n == nil {
		return want, fault.New(fault.Limit, "%d addresses are given, and that is all that may be", leasesMax)
	}
	n.Reserved = true
	return want, nil
}

// list returns what is given and has not run out.
func (l *leases) list() []Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]Lease, 0, len(l.byMAC))
	for _, has := range l.byMAC {
		if !l.free(has.Address) {
			all = append(all, *has)
		}
	}
	slices.SortFunc(all, func(a, b Lease) int { return a.Address.Compare(b.Address) })
	return all
}

// Reserve keeps an address for a station, whether it asks for one or not; the zero value
// is one that the network chooses. It returns the address. A station that has another learns of it when it renews that.
// Fails with fault.Invalid, on a network of one guest, too, fault.Busy when another station has the
// address, fault.Full and fault.Limit.
func (n *Network) Reserve(mac MAC, want netip.Addr) (netip.Addr, error) {
	if n.dhcp.leases == nil {
		return want, fault.New(fault.Invalid, "this network has one guest, at %v", n.o.Guest)
	}
	return n.dhcp.leases.reserve(mac, want)
}

// Unreserve lets go of a reservation. The station has the address until its lease runs
// out. Fails with fault.NotFound.
func (n *Network) Unreserve(mac MAC) error {
	if l := n.dhcp.leases; l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if has := l.byMAC[mac]; has != nil && has.Reserved {
			has.Reserved = false
			return nil
		}
	}
	return fault.New(fault.NotFound, "no address is reserved for %v", mac)
}

// Leases are the addresses that are given or reserved, in their order; of a network of one
// guest, none.
func (n *Network) Leases() []Lease {
	if n.dhcp.leases == nil {
		return nil
	}
	return n.dhcp.leases.list()
}
