package netswitch

import (
	"bytes"
	"net"
	"os"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"

	"steadfast/fault"
	"steadfast/internal/netnstest"
)

// TestTap: two machines on taps of a bridge exchange frames, the host does with them, and a
// large segment arrives in pieces. The interfaces end with their taps.
func TestTap(t *testing.T) {
	ns := netnstest.New(t)
	if _, err := os.Stat(tunDevice); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	var taps [2]*Tap
	var at *packet.Conn
	err := ns.Do(func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
		br.Name = "br0"
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(br); err != nil {
			return err
		}
		for _, tc := range []struct {
			name, on string
			want     fault.Kind
		}{{"t0", "br9", fault.NotFound}, {"t0", "lo", fault.Invalid}, {"br0", "br0", fault.Exists}, {"0123456789abcdef", "br0", fault.Invalid}} {
			if _, err := NewTap(tc.name, tc.on); !fault.Is(err, tc.want) {
				t.Errorf("%s on %s: %v, want %v", tc.name, tc.on, err, tc.want)
			}
		}
		for i, name := range []string{"t0", "t1"} {
			tap, err := NewTap(name, "br0")
			if err != nil {
				return err
			}
			taps[i] = tap
			t.Cleanup(func() { tap.Close() })
		}
		ifi, err := net.InterfaceByName("br0")
		if err != nil {
			return err
		}
		at, err = packet.Listen(ifi, packet.Raw, 0x88b5, nil)
		return err
	})
	must(t, err)
	defer at.Close()
	must(t, at.SetDeadline(time.Now().Add(patience)))
	joined := make(chan error, 2)
	var ends [2]*end
	for i, tap := range taps {
		e, wire := pair(t)
		ends[i] = e
		go func() { joined <- tap.Join(wire) }()
	}
	// A bridge's port takes frames when it is forwarding: until then they are lost.
	hello, answer := frame(mac(1), everybody, 1, 60), frame(mac(2), mac(1), 2, 60)
	stop := make(chan struct{})
	said := make(chan struct{})
	go func() {
		defer close(said)
		for {
			_ = ends[0].l.write(hello)
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	ends[1].expectAmong(hello)
	close(stop)
	<-said
	b := make([]byte, 2000)
	if n, _, err := at.ReadFrom(b); err != nil || !bytes.Equal(b[:n], hello) {
		t.Errorf("the host got %x, %v", b[:n], err)
	}
	ends[1].send(answer)
	ends[0].expectAmong(answer)
	large := frame(mac(2), mac(1), 0, 14+20+20+30000)
	n := len(large) - 14
	copy(large[12:], []byte{8, 0, 0x45, 0, byte(n >> 8), byte(n), 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2})
	large[14+20+12] = 5 << 4
	ends[1].send(large)
	for got := 0; got < 30000; {
		p := ends[0].next()
		if p[12] != 8 || p[13] != 0 || p[23] != 6 {
			continue
		}
		if len(p) > 1514 {
			t.Fatalf("a frame of %d bytes", len(p))
		}
		got += len(p) - 54
	}
	for i, tap := range taps {
		must(t, tap.Close())
		if err := <-joined; err != nil {
			t.Error(err)
		}
		until(t, "the interface is gone", func() bool {
			return ns.Do(func() error { _, err := netlink.LinkByName(tap.Name()); return err }) != nil
		})
		if up, down, _ := tap.Frames(); up == 0 || down == 0 {
			t.Errorf("tap %d counts %d frames up and %d down", i, up, down)
		}
	}
}

// expectAmong reads until a frame comes: the host's own may be between.
func (e *end) expectAmong(want []byte) {
	e.t.Helper()
	for !bytes.Equal(e.next(), want) {
	}
}

// TestTapNeedsRoot: who may not is told what to do instead.
func TestTapNeedsRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("SKIP: root may")
	}
	if _, err := openTap("t0"); !fault.Is(err, fault.Denied) {
		t.Errorf("%v", err)
	}
}
