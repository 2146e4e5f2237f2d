package usernet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"steadfast/fault"
)

// many is a network of many guests on a subnet, and its leases' clock.
func many(t *testing.T, subnet string) (*Network, *time.Time) {
	t.Helper()
	n := network(t, Options{Many: true, Subnet: netip.MustParsePrefix(subnet)})
	now := time.Unix(1_800_000_000, 0)
	n.dhcp.leases.now = func() time.Time { return now }
	return n, &now
}

func macOf(i int) MAC { return MAC{0x02, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)} }

// say sends a message of a station's, and returns the kind of the answer and the address in it.
func say(t *testing.T, n *Network, m MAC, ciaddr string, options ...[]byte) (kind byte, a netip.Addr) {
	t.Helper()
	f := dhcp(ciaddr, options...)
	copy(f[header.EthernetMinimumSize+header.IPv4MinimumSize+header.UDPMinimumSize+28:], m[:])
	n.Send(f)
	select {
	case f = <-n.Frames():
	default:
		return 0, a
	}
	msg := header.UDP(header.IPv4(f[header.EthernetMinimumSize:]).Payload()).Payload()
	if !bytes.Equal(msg[28:34], m[:]) {
		t.Errorf("an answer to %x, not %v", msg[28:34], m)
	}
	if !bytes.Equal(f[:6], m[:]) && msg[dhcpFixed+4+2] != dhcpNack {
		t.Errorf("an answer to %v is on its way to %x", m, f[:6])
	}
	return msg[dhcpFixed+4+2], netip.AddrFrom4([4]byte(msg[16:20]))
}

func opt(code byte, value ...byte) [][]byte { return [][]byte{{code}, value} }

func kindOf(k byte) [][]byte { return opt(optType, k) }

func ask(a netip.Addr) [][]byte { return opt(optRequested, a.AsSlice()...) }

func join(all ...[][]byte) (list [][]byte) {
	for _, o := range all {
		list = append(list, o...)
	}
	return list
}

// leaseOf has a station get an address as clients do.
func leaseOf(t *testing.T, n *Network, m MAC) netip.Addr {
	t.Helper()
	kind, a := say(t, n, m, "0.0.0.0", kindOf(dhcpDiscover)...)
	if kind != dhcpOffer {
		t.Fatalf("to a discover of %v: %d", m, kind)
	}
	if kind, got := say(t, n, m, "0.0.0.0", join(kindOf(dhcpRequest), ask(a), opt(optServer, n.o.Gateway.AsSlice()...))...); kind != dhcpAck || got != a {
		t.Fatalf("to a request of %v for %v: %d, %v", m, a, kind, got)
	}
	return a
}

// TestLeases: each station gets an address of its own, the same again, and also from a network
// that has forgotten all.
func TestLeases(t *testing.T) {
	n, _ := many(t, "10.0.2.0/24")
	again, _ := many(t, "10.0.2.0/24")
	seen := map[netip.Addr]MAC{}
	for i := range 20 {
		m := macOf(i + 1)
		a := leaseOf(t, n, m)
		if other, taken := seen[a]; taken || !n.o.may(a) {
			t.Errorf("%v gets %v, as %v", m, a, other)
		}
		seen[a] = m
		if got := leaseOf(t, n, m); got != a {
			t.Errorf("%v gets %v, then %v", m, a, got)
		}
		if kind, got := say(t, n, m, a.String(), kindOf(dhcpRequest)...); kind != dhcpAck || got != a {
			t.Errorf("a renewal: %d, %v", kind, got)
		}
		if kind, got := say(t, again, m, a.String(), kindOf(dhcpRequest)...); kind != dhcpAck || got != a {
			t.Errorf("a renewal with a network made anew: %d, %v", kind, got)
		}
	}
	if got := leaseOf(t, network(t, Options{Many: true}), macOf(1)); seen[got] != macOf(1) {
		t.Errorf("a network made anew gives %v", got)
	}
	for i, l := range n.Leases() {
		if seen[l.Address] != l.MAC || l.Reserved || l.Until.IsZero() || i > 0 && !n.Leases()[i-1].Address.Less(l.Address) {
			t.Errorf("%+v", l)
		}
	}
	// What another has, one does not get; nor what is nobody's to have.
	for _, a := range []string{leaseOf(t, n, macOf(2)).String(), "10.0.2.2", "10.0.2.0", "10.0.2.255", "10.0.3.7"} {
		if kind, got := say(t, n, macOf(99), "0.0.0.0", join(kindOf(dhcpRequest), ask(netip.MustParseAddr(a)))...); kind != dhcpNack || !got.IsUnspecified() {
			t.Errorf("a request for %s: %d, %v", a, kind, got)
		}
		if kind, got := say(t, n, macOf(99), "0.0.0.0", join(kindOf(dhcpDiscover), ask(netip.MustParseAddr(a)))...); kind != dhcpOffer || got.String() == a {
			t.Errorf("a discover that wants %s: %d, %v", a, kind, got)
		}
	}
	want := netip.MustParseAddr("10.0.2.200")
	if kind, got := say(t, n, macOf(100), "0.0.0.0", join(kindOf(dhcpDiscover), ask(want))...); kind != dhcpOffer || got != want {
		t.Errorf("what is wanted and free: %d, %v", kind, got)
	}
	for _, m := range []MAC{{}, {0x01, 0, 0x5e, 0, 0, 1}} {
		if kind, _ := say(t, n, m, "0.0.0.0", kindOf(dhcpDiscover)...); kind != 0 {
			t.Errorf("%v is answered %d", m, kind)
		}
	}
}

// TestLeasesRunOut: a full network answers no more, until addresses are given back or run out.
func TestLeasesRunOut(t *testing.T) {
	n, now := many(t, "10.0.2.0/29") // five for guests
	for i := range 5 {
		leaseOf(t, n, macOf(i+1))
	}
	full := func() bool {
		kind, _ := say(t, n, macOf(9), "0.0.0.0", kindOf(dhcpDiscover)...)
		return kind == 0
	}
	if !full() {
		t.Fatal("it has more addresses than there are")
	}
	a := leaseOf(t, n, macOf(3))
	server := opt(optServer, n.o.Gateway.AsSlice()...)
	say(t, n, macOf(4), a.String(), join(kindOf(dhcpRelease), server)...) // which is not its own
	if !full() {
		t.Error("an address was given back by another")
	}
	say(t, n, macOf(3), a.String(), join(kindOf(dhcpRelease), server)...)
	if got := leaseOf(t, n, macOf(9)); got != a {
		t.Errorf("given back was %v, and given %v", a, got)
	}
	// Somebody else uses it: nobody gets it until that may be over.
	say(t, n, macOf(9), "0.0.0.0", join(kindOf(dhcpDecline), ask(a), server)...)
	if !full() {
		t.Error("an address that is in use was given")
	}
	if got := len(n.Leases()); got != 4 {
		t.Errorf("%d leases", got)
	}
	*now = now.Add(leaseSeconds*time.Second + 1)
	if full() {
		t.Error("nothing has run out")
	}
	// An offer that nobody takes is over soon.
	*now = now.Add(offerSeconds*time.Second + 1)
	if got := n.Leases(); len(got) != 0 {
		t.Errorf("an offer lasts: %+v", got)
	}
}

// TestReserve: a station gets what is reserved for it, and nobody else does.
func TestReserve(t *testing.T) {
	n, now := many(t, "10.0.2.0/24")
	addr := netip.MustParseAddr
	want := addr("10.0.2.20")
	had := leaseOf(t, n, macOf(1))
	if got, err := n.Reserve(macOf(1), want); err != nil || got != want {
		t.Fatal(got, err)
	}
	if kind, _ := say(t, n, macOf(1), had.String(), kindOf(dhcpRequest)...); kind != dhcpNack {
		t.Errorf("it may keep what it had: %d", kind)
	}
	*now = now.Add(100 * leaseSeconds * time.Second)
	if kind, got := say(t, n, macOf(2), "0.0.0.0", join(kindOf(dhcpDiscover), ask(want))...); kind != dhcpOffer || got == want {
		t.Errorf("another gets it: %d, %v", kind, got)
	}
	if got := leaseOf(t, n, macOf(1)); got != want {
		t.Errorf("it gets %v", got)
	}
	free, err := n.Reserve(macOf(3), netip.Addr{})
	if err != nil || leaseOf(t, n, macOf(3)) != free {
		t.Errorf("chosen was %v, %v", free, err)
	}
	for _, tc := range []struct {
		m    MAC
		a    netip.Addr
		want fault.Kind
	}{
		{macOf(4), want, fault.Busy},
		{macOf(4), leaseOf(t, n, macOf(5)), fault.Busy},
		{macOf(4), addr("10.0.2.2"), fault.Invalid},
		{macOf(4), addr("10.9.9.9"), fault.Invalid},
		{MAC{0xff}, addr("10.0.2.50"), fault.Invalid},
	} {
		if _, err := n.Reserve(tc.m, tc.a); !fault.Is(err, tc.want) {
			t.Errorf("%v for %v: %v, want %v", tc.a, tc.m, err, tc.want)
		}
	}
	if err := n.Unreserve(macOf(1)); err != nil {
		t.Error(err)
	}
	if err := n.Unreserve(macOf(1)); !fault.Is(err, fault.NotFound) {
		t.Errorf("twice: %v", err)
	}
	one := network(t, Options{})
	if _, err := one.Reserve(macOf(1), want); !fault.Is(err, fault.Invalid) {
		t.Errorf("on a network of one guest: %v", err)
	}
	if err := one.Unreserve(macOf(1)); !fault.Is(err, fault.NotFound) || one.Leases() != nil {
		t.Errorf("on a network of one guest: %v, %v", err, one.Leases())
	}
}

// TestLeasesBounded: however many ask, only so much is remembered, and what has run out makes
// place for others.
func TestLeasesBounded(t *testing.T) {
	n, now := many(t, "10.0.0.0/8")
	l := n.dhcp.leases
	answered := 0
	for i := range leasesMax + 50 {
		if _, ok := l.offer(macOf(i+1), netip.Addr{}); ok {
			answered++
		}
	}
	if answered != leasesMax || len(l.byAddress) != leasesMax || len(l.byMAC) != leasesMax {
		t.Errorf("%d answered, %d addresses and %d stations kept", answered, len(l.byAddress), len(l.byMAC))
	}
	if _, err := n.Reserve(macOf(1<<20), netip.Addr{}); !fault.Is(err, fault.Limit) {
		t.Errorf("one more: %v", err)
	}
	*now = now.Add(offerSeconds*time.Second + 1)
	if _, ok := l.offer(macOf(1<<20), netip.Addr{}); !ok || len(l.byAddress) != 1 || len(l.byMAC) != 1 {
		t.Errorf("%v, %d addresses", ok, len(l.byAddress))
	}
}

// TestForwardsChange: forwards come and go while the network runs; connections that one let in
// outlive it.
func TestForwardsChange(t *testing.T) {
	n := network(t, Options{})
	g := attach(t, n)
	l := g.listenTCP(t, n, 80)
	defer l.Close()
	go reverser(l)
	at, err := n.AddForward(Forward{Listen: "127.0.0.1:0", GuestPort: 80})
	if err != nil {
		t.Fatal(err)
	}
	if all := n.ForwardList(); len(all) != 1 || all[0] != (Forward{at.String(), n.o.Guest, 80}) || fmt.Sprint(n.Forwards()) != fmt.Sprint([]net.Addr{at}) {
		t.Errorf("%v, %v", all, n.Forwards())
	}
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// A byte that the guest has shows that the forward has taken the connection.
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); g.stack.Stats().TCP.PassiveConnectionOpenings.Value() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no connection comes")
		}
	}
	if err := n.RemoveForward(at.String()); err != nil {
		t.Fatal(err)
	}
	if err := n.RemoveForward(at.String()); !fault.Is(err, fault.NotFound) {
		t.Errorf("twice: %v", err)
	}
	if c, err := net.Dial("tcp", at.String()); err == nil {
		c.Close()
		t.Error("it takes connections")
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2)
	if m, err := c.Read(b); err != nil || string(b[:m]) != "x" {
		t.Errorf("a connection does not outlive its forward: %q, %v", b[:m], err)
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, tc := range []struct {
		f    Forward
		want fault.Kind
	}{
		{Forward{Listen: busy.Addr().String(), GuestPort: 80}, fault.Busy},
		{Forward{Listen: "here", GuestPort: 80}, fault.Invalid},
		{Forward{Listen: "127.0.0.1:0"}, fault.Invalid},
		{Forward{Listen: "127.0.0.1:0", Guest: n.o.Gateway, GuestPort: 80}, fault.Invalid},
	} {
		if _, err := n.AddForward(tc.f); !fault.Is(err, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.f, err, tc.want)
		}
	}
	for range forwardsMax {
		if _, err = n.AddForward(Forward{Listen: "127.0.0.1:0", GuestPort: 80}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = n.AddForward(Forward{Listen: "127.0.0.1:0", GuestPort: 80}); !fault.Is(err, fault.Limit) {
		t.Errorf("one more: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err = n.AddForward(Forward{Listen: "127.0.0.1:0", GuestPort: 80}); err == nil || errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed network: %v", err)
	}
}

// TestDeclines: what a station found in use is set aside for an hour, some such at a time,
// and who wants to reserve it hears why it cannot.
func TestDeclines(t *testing.T) {
	n, now := many(t, "10.1.0.0/24")
	server := opt(optServer, n.o.Gateway.AsSlice()...)
	decline := func(i int) netip.Addr {
		t.Helper()
		a := leaseOf(t, n, macOf(i))
		if !a.IsValid() {
			t.Fatalf("station %d got no address", i)
		}
		say(t, n, macOf(i), "0.0.0.0", join(kindOf(dhcpDecline), ask(a), server)...)
		*now = now.Add(time.Second)
		return a
	}
	first := decline(1)
	_, err := n.Reserve(macOf(2), first)
	if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "found in use") || strings.Contains(err.Error(), "00:00:00") {
		t.Errorf("reserve what was declined: %v", err)
	}
	*now = now.Add(declinedSeconds*time.Second - 2*time.Second)
	if _, err := n.Reserve(macOf(2), first); !fault.Is(err, fault.Busy) {
		t.Errorf("reserve what was declined, soon before the hour is over: %v", err)
	}
	*now = now.Add(2 * time.Second)
	if _, err := n.Reserve(macOf(2), first); err != nil {
		t.Errorf("reserve what was declined, after it: %v", err)
	}
	// A guest that declines all that it is given, by many names, leaves some to others.
	for i := range 2000 {
		decline(100 + i)
	}
	aside := 0
	for _, l := range n.dhcp.leases.byAddress {
		if l.MAC == (MAC{}) {
			aside++
		}
	}
	if aside != declinedMax {
		t.Errorf("%d addresses are set aside", aside)
	}
}
