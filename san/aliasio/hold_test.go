package aliasio

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"steadfast/fault"
	"steadfast/internal/netnstest"
)

// traces is what of this package is to be seen in a namespace: tables, and the
// addresses that newWorld did not give.
func traces(t testing.TB, ns *netnstest.NS) []string {
	t.Helper()
	found := []string{}
	conn, err := nftables.New(nftables.WithNetNSFd(ns.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		found = append(found, fmt.Sprintf("table %s of family %d", table.Name, table.Family))
	}
	err = ns.Do(func() error {
		all, err := net.InterfaceAddrs()
		for _, a := range all {
			p := netip.MustParsePrefix(a.String())
			if p.Addr() == alias4.Address.Addr() || p.Addr() == alias6.Address.Addr() {
				found = append(found, "address "+a.String())
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestClear: what a dead holder leaves is taken away, of a living one nothing; and the next one
// finds all free.
func TestClear(t *testing.T) {
	w := newWorld(t)
	for _, a := range []Alias{alias4, alias6} {
		first := startOwner(t, w.a, a)
		conn := dial(t, w.client, a)
		exchange(t, conn)
		if err := Clear(Options{Namespace: w.a.Fd()}); !fault.Is(err, fault.Busy) {
			t.Errorf("beside a living holder: %v", err)
		}
		exchange(t, conn)
		first.kill()
		if err := Clear(Options{Namespace: w.a.Fd()}); err != nil {
			t.Fatal(err)
		}
		for _, trace := range traces(t, w.a) {
			if strings.HasPrefix(trace, "address") {
				t.Errorf("after it there is %s", trace)
			}
		}
		if got := len(sessionsOf(t, w.a, a)); got != 0 {
			t.Errorf("after it there are %d connections", got)
		}
		h := openAt(t, w.a, Options{})
		hold(t, h, a)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSweep: an alias of a holder that is stopped is taken away, and not before its grant is over
// for a while; one of a holder that lives is left alone, and one that was stopped can hold it again.
func TestSweep(t *testing.T) {
	w := newWorld(t)
	sweeper := func(ns *netnstest.NS) *Sweeper {
		s, err := OpenSweeper(Options{Namespace: ns.Fd()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	here := func() bool {
		return slices.ContainsFunc(traces(t, w.a), func(trace string) bool { return strings.HasPrefix(trace, "address") })
	}
	const after, every = 200 * time.Millisecond, 20 * time.Millisecond

	// One with a grant that is not over while this looks, also when nobody refreshes it.
	h := openAt(t, w.a, Options{Grant: time.Hour})
	hold(t, h, alias4)
	s := sweeper(w.a)
	for end := time.Now().Add(2 * after); time.Now().Before(end); time.Sleep(every) {
		if swept, err := s.Sweep(after); err != nil || len(swept) > 0 || !here() {
			t.Fatalf("of a holder with a grant it took %v, %v", swept, err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}

	first := startOwner(t, w.a, alias4)
	first.stop()
	stopped := time.Now()
	s = sweeper(w.a)
	var swept []netip.Addr
	for ; len(swept) == 0; time.Sleep(every) {
		var err error
		if swept, err = s.Sweep(after); err != nil {
			t.Fatal(err)
		}
		if time.Since(stopped) > time.Minute {
			t.Fatal("an alias of a holder that is stopped stays")
		}
	}
	if swept[0] != alias4.Address.Addr() || here() {
		t.Errorf("it took %v, and there is %q", swept, traces(t, w.a))
	}
	if took := time.Since(stopped); took < after {
		t.Errorf("it was taken %v after the stop", took)
	}
	first.kill()
	h = openAt(t, w.a, Options{})
	hold(t, h, alias4)
	if !here() {
		t.Error("the next holder has no address")
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSweepUnreadable: of a gate whose grants cannot be read nothing is taken away, however long
// that lasts.
func TestSweepUnreadable(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{Grant: time.Hour})
	hold(t, h, alias4)
	s, err := OpenSweeper(Options{Namespace: w.a.Fd()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for i := range s.gate.granted {
		s.gate.granted[i].Name = "absent" // to it
	}
	const after = 100 * time.Millisecond
	for end := time.Now().Add(3 * after); time.Now().Before(end); time.Sleep(after / 5) {
		if swept, err := s.Sweep(after); err == nil || len(swept) > 0 {
			t.Fatalf("it took %v, %v", swept, err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestNothingStays ends a holder in each way and looks for what it leaves.
func TestNothingStays(t *testing.T) {
	w := newWorld(t)
	for _, a := range []Alias{alias4, alias6} {
		first := startOwner(t, w.a, a)
		if _, err := Open(Options{Namespace: w.a.Fd()}); !fault.Is(err, fault.Busy) {
			t.Errorf("a second holder beside a living one: %v", err)
		}
		conn := dial(t, w.client, a)
		exchange(t, conn)
		first.kill()
		if got := traces(t, w.a); len(got) < 2 {
			t.Errorf("after kill -9 there is %q, want address and gate", got)
		}
		h := openAt(t, w.a, Options{})
		for _, trace := range traces(t, w.a) {
			if strings.HasPrefix(trace, "address") {
				t.Errorf("after the next open there is %s", trace)
			}
		}
		if got := len(sessionsOf(t, w.a, a)); got != 0 {
			t.Errorf("after the next open there are %d connections", got)
		}
		if len(h.gate.aliases) != 0 {
			t.Errorf("the gate still knows %v", h.gate.aliases)
		}
		hold(t, h, alias4)
		hold(t, h, alias6)
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{}, traces(t, w.a)); d != "" {
			t.Errorf("after close: %s", d)
		}
	}
}

// TestConflict tries to hold an address that the client has.
func TestConflict(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{})
	other := openAt(t, w.client, Options{})
	var mac string
	if err := w.client.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		mac = eth0.HardwareAddr.String()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, a := range []Alias{alias4, alias6} {
		hold(t, other, a)
		start := time.Now()
		err := h.Hold(t.Context(), a, 0)
		t.Logf("after %v: %v", time.Since(start), err)
		if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), mac) {
			t.Errorf("an address in use: %v, want busy, and the MAC %s", err, mac)
		}
		if err := h.Refresh(a.Address.Addr(), 0); !fault.Is(err, fault.NotFound) {
			t.Errorf("it is held nevertheless: %v", err)
		}
		for _, trace := range traces(t, w.a) {
			if trace == "address "+a.Address.String() {
				t.Errorf("after a conflict there is %s", trace)
			}
		}
		if err := other.Release(a.Address.Addr()); err != nil {
			t.Fatal(err)
		}
		hold(t, h, a)
	}
}

// TestRefusals asks for what cannot be.
func TestRefusals(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{})
	for _, tc := range []struct {
		name string
		a    Alias
		kind fault.Kind
	}{
		{"no such interface", Alias{"eth9", alias4.Address}, fault.NotFound},
		{"no address", Alias{"eth0", netip.Prefix{}}, fault.Invalid},
		{"multicast", Alias{"eth0", netip.MustParsePrefix("224.0.0.1/24")}, fault.Invalid},
		{"mapped", Alias{"eth0", netip.PrefixFrom(netip.MustParseAddr("::ffff:10.9.0.100"), 120)}, fault.Invalid},
		{"the node's own", Alias{"eth0", netip.MustParsePrefix("10.9.0.1/24")}, fault.Exists},
	} {
		err := h.Hold(t.Context(), tc.a, 0)
		if !fault.Is(err, tc.kind) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.kind)
		}
		t.Logf("%s: %v", tc.name, err)
	}
	if err := h.Release(alias4.Address.Addr()); !fault.Is(err, fault.NotFound) {
		t.Errorf("release of what is not held: %v", err)
	}
	session := []Session{{netip.AddrPortFrom(alias4.Address.Addr(), port), netip.MustParseAddrPort("10.9.0.3:1")}}
	if err := h.Tickle(t.Context(), session); !fault.Is(err, fault.NotFound) {
		t.Errorf("tickle from what is not held: %v", err)
	}
	if _, err := Open(Options{Grant: time.Millisecond}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a grant too short: %v", err)
	}
}

// TestNoPermission opens a holder on a thread without capabilities.
func TestNoPermission(t *testing.T) {
	ns := netnstest.New(t)
	err := ns.Do(func() error {
		runtime.LockOSThread() // and never unlocked: the capabilities are gone for good
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		_, err := Open(Options{})
		return err
	})
	if !fault.Is(err, fault.Denied) {
		t.Errorf("without capabilities: %v, want denied", err)
	}
	t.Log(err)
}

// TestSecondaries releases the first of two aliases of a network on which the
// node has no other address: the second stays.
func TestSecondaries(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{})
	one := Alias{"eth0", netip.MustParsePrefix("10.10.0.1/24")}
	two := Alias{"eth0", netip.MustParsePrefix("10.10.0.2/24")}
	hold(t, h, one)
	hold(t, h, two)
	if err := h.Release(one.Address.Addr()); err != nil {
		t.Fatal(err)
	}
	if err := absent(h.links, two.Address.Addr()); !fault.Is(err, fault.Exists) {
		t.Errorf("the second alias went with the first: %v", err)
	}
}

// TestMend takes addresses away from under a holder, as a pulled cable does.
func TestMend(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{Grant: 5 * time.Second})
	serve(t, w.a)
	for _, a := range []Alias{alias4, alias6} {
		address := a.Address.Addr()
		hold(t, h, a)
		if mended, err := h.Mend(address); mended || err != nil {
			t.Errorf("a whole alias: mended %v, %v", mended, err)
		}
		if err := removeAddress(h.links, address); err != nil {
			t.Fatal(err)
		}
		if mended, err := h.Mend(address); !mended || err != nil {
			t.Errorf("mended %v, %v", mended, err)
		}
		exchange(t, dial(t, w.client, a))
	}
}

// TestMendShut: the address of an alias that is shut stays where a Sweeper has put it, which is nowhere,
// until the alias is open again.
func TestMendShut(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{Grant: 5 * time.Second})
	serve(t, w.a)
	address := alias4.Address.Addr()
	hold(t, h, alias4)
	if err := h.Shut(address); err != nil {
		t.Fatal(err)
	}
	if err := removeAddress(h.links, address); err != nil {
		t.Fatal(err)
	}
	if mended, err := h.Mend(address); mended || err != nil {
		t.Errorf("one that is shut: mended %v, %v", mended, err)
	}
	if err := absent(h.links, address); err != nil {
		t.Errorf("its address is there: %v", err)
	}
	if err := h.Reopen(address, 0); err != nil {
		t.Fatal(err)
	}
	if mended, err := h.Mend(address); !mended || err != nil {
		t.Errorf("one that is open again: mended %v, %v", mended, err)
	}
	exchange(t, dial(t, w.client, alias4))
}

// TestInterfaceGone takes the whole interface away, and gives another one.
func TestInterfaceGone(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{Grant: 5 * time.Second})
	serve(t, w.a)
	hold(t, h, alias4)
	hold(t, h, alias6)
	link, err := h.links.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.links.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Mend(alias4.Address.Addr()); !fault.Is(err, fault.NotFound) {
		t.Errorf("mended without an interface: %v", err)
	}
	if err := h.Release(alias4.Address.Addr()); err != nil {
		t.Error(err)
	}
	if err := h.Hold(t.Context(), alias4, 0); !fault.Is(err, fault.NotFound) {
		t.Errorf("held without an interface: %v", err)
	}
	w.attach(t, w.a, 1)
	if _, err := h.Mend(alias6.Address.Addr()); !fault.Is(err, fault.Fenced) {
		t.Errorf("mended on another interface: %v", err)
	}
	hold(t, h, alias4)
	hold(t, h, alias6)
	exchange(t, dial(t, w.client, alias4))
	exchange(t, dial(t, w.client, alias6))
	it := h.held[alias4.Address.Addr()]
	h.mu.Lock()
	if err := h.gate.revoke(alias4.Address.Addr()); err != nil {
		t.Error(err)
	}
	h.mu.Unlock()
	if wire, err := h.openWire(it); err != nil {
		t.Error(err)
	} else if err := errors.Join(wire.tell(), wire.conn.Close()); !errors.Is(err, unix.ENOBUFS) && len(h.gate.sides) == 3 {
		t.Errorf("the new interface is not guarded: %v", err)
	}
}

// TestCosts measures what is done often.
func TestCosts(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{Grant: 5 * time.Second})
	serve(t, w.a)
	hold(t, h, alias4)
	const clients = 200
	for range clients {
		exchange(t, dial(t, w.client, alias4))
	}
	each := func(name string, rounds int, f func() error) {
		start := time.Now()
		for range rounds {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%s: %v", name, time.Since(start)/time.Duration(rounds))
	}
	each("refresh", 200, func() error { return h.Refresh(alias4.Address.Addr(), 0) })
	each(fmt.Sprintf("list %d sessions", clients), 20, func() error {
		all, err := h.Sessions(alias4.Address.Addr())
		if err == nil && len(all) != clients {
			err = fmt.Errorf("%d sessions, want %d", len(all), clients)
		}
		return err
	})
}

// TestReopen: a holder that was late to refresh goes on with its clients'
// connections, which Hold would end without a word to them.
func TestReopen(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{Grant: 100 * time.Millisecond})
	hold(t, h, alias4)
	serve(t, w.a)
	conn := dial(t, w.client, alias4)
	address := alias4.Address.Addr()
	for h.Refresh(address, 0) == nil {
		<-time.After(150 * time.Millisecond) // too late
	}
	if err := h.Reopen(address, 0); err != nil {
		t.Fatal(err)
	}
	if err := h.Refresh(address, 0); err != nil {
		t.Fatal(err)
	}
	if err := h.Reopen(address, Now()); !fault.Is(err, fault.Fenced) {
		t.Errorf("reopened without a right: %v", err)
	}
	if err := h.Reopen(address, 0); err != nil { // that had shut the gate
		t.Fatal(err)
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(30 * time.Millisecond):
				_ = h.Refresh(address, 0)
			}
		}
	}()
	exchange(t, conn)
	if err := h.Reopen(alias6.Address.Addr(), 0); !fault.Is(err, fault.NotFound) {
		t.Errorf("reopened what is not held: %v", err)
	}
}
