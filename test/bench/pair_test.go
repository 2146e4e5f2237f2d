package main

import (
	"net/netip"
	"os"
	"regexp"
	"testing"

	"steadfast/test/testbed"
)

// TestPairRowNames: each row can be asked for alone, and no row of one node is
// asked for with it.
func TestPairRowNames(t *testing.T) {
	for _, r := range pairRows() {
		b := &bench{rows: regexp.MustCompile("^" + r.name + "$")}
		n := 0
		for _, other := range pairRows() {
			if b.rows.MatchString(other.name) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d rows are called %s", n, r.name)
		}
		for _, m := range modes() {
			if b.asked(m) {
				t.Errorf("%s asks for rows of %s", r.name, m.name)
			}
		}
	}
}

// TestWire measures a shaped link: the rate that it is given is not passed, and a
// large message takes its time on it.
func TestWire(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: network namespaces need root")
	}
	sw, err := testbed.NewSwitch(backNet)
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	t.Cleanup(func() { _ = sw.Close() })
	var spaces [2]*testbed.Space
	addresses := [2]netip.Addr{memberAddress(nodeA, backNet), memberAddress(nodeB, backNet)}
	for i := range spaces {
		if spaces[i], err = testbed.NewSpace(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = spaces[i].Close() })
		if err := sw.Attach(spaces[i], backNet, memberName(i)+"-back", backNet, netip.PrefixFrom(addresses[i], 24)); err != nil {
			t.Fatal(err)
		}
		shape := testbed.Shape{BytesPerSecond: 4e6, BurstBytes: 4000, QueueBytes: 1 << 20}
		if err := spaces[i].Shape(backNet, shape); err != nil {
			t.Skipf("SKIP: %v", err)
		}
	}
	rate, err := linkLimit(spaces, addresses, 0.3)
	if err != nil {
		t.Fatal(err)
	}
	if rate <= 0 || rate > 8e6 {
		t.Errorf("a link of 4 MB/s carried %.1f", rate/1e6) // what a late reader finds waiting counts as well
	}
	w, err := newWire(spaces[0], spaces[1], addresses[1])
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	const size = 40000 // 10 ms at that rate, of which the burst spares 1
	trip, err := w.roundTrip(size, 0, 0.3)
	if err != nil {
		t.Fatal(err)
	}
	if trip < 8000 {
		t.Errorf("%d bytes and back in %.0f us", size, trip)
	}
}
