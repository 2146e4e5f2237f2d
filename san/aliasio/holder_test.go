package aliasio

import (
	"context"
	"net/netip"
	"os"
	"testing"

	"go.uber.org/goleak"

	"steadfast/fault"
	"steadfast/internal/netnstest"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

// world is two nodes and a client on one switch.
type world struct {
	wires        *netnstest.Switch
	a, b, client *netnstest.NS
}

// The world's addresses: the nodes' own, the client's, and an alias a family.
var (
	alias4 = Alias{"eth0", netip.MustParsePrefix("10.9.0.100/24")}
	alias6 = Alias{"eth0", netip.MustParsePrefix("fd09::100/64")}
)

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{wires: netnstest.NewSwitch(t)}
	for i, ns := range []**netnstest.NS{&w.a, &w.b, &w.client} {
		*ns = netnstest.New(t)
		w.attach(t, *ns, byte(i+1))
	}
	return w
}

// attach gives a namespace its interface on the switch.
func (w *world) attach(t testing.TB, ns *netnstest.NS, last byte) {
	t.Helper()
	w.wires.Attach(t, ns, "eth0",
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, 0, last}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x09, 15: last}), 64))
}

// openAt opens a holder in a namespace, for the time of t.
func openAt(t testing.TB, ns *netnstest.NS, o Options) *Holder {
	t.Helper()
	o.Namespace = ns.Fd()
	h, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil && !fault.Is(err, fault.Canceled) {
			t.Errorf("close: %v", err)
		}
	})
	return h
}

func hold(t testing.TB, h *Holder, a Alias) {
	t.Helper()
	if err := h.Hold(context.Background(), a, 0); err != nil {
		t.Fatal(err)
	}
}
