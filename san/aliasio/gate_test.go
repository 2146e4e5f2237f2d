package aliasio

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"steadfast/fault"
	"steadfast/internal/netnstest"
	"steadfast/san/alias"
)

// pings asks the kernel behind an alias every millisecond whether it answers.
type pings struct {
	conn net.PacketConn
	work sync.WaitGroup
	quit chan struct{}
	mu   sync.Mutex
	last time.Time
	news chan struct{}
}

// ping starts to ask, and waits for the first answer.
func ping(t testing.TB, from *netnstest.NS, a Alias) *pings {
	t.Helper()
	p := &pings{quit: make(chan struct{}), news: make(chan struct{}, 1)}
	err := from.Do(func() (err error) { p.conn, err = net.ListenPacket("ip4:icmp", "0.0.0.0"); return err })
	if err != nil {
		t.Fatal(err)
	}
	p.work.Go(func() {
		question := []byte{8, 0, 0, 0, 0x5f, 0xa5, 0, 1}
		binary.BigEndian.PutUint16(question[2:], ^uint16(0x0800+0x5fa5+1))
		for {
			_, _ = p.conn.WriteTo(question, &net.IPAddr{IP: a.Address.Addr().AsSlice()})
			select {
			case <-p.quit:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	p.work.Go(func() {
		buf := make([]byte, 64)
		for {
			n, _, err := p.conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if n > 0 && buf[0] == 0 { // an echo reply
				p.mu.Lock()
				p.last = time.Now()
				p.mu.Unlock()
				select {
				case p.news <- struct{}{}:
				default:
				}
			}
		}
	})
	t.Cleanup(func() {
		close(p.quit)
		_ = p.conn.Close()
		p.work.Wait()
	})
	<-p.news
	return p
}

// silence waits until nothing has come for a while, and tells when the last
// answer came.
func (p *pings) silence() time.Time {
	for {
		select {
		case <-p.news:
		case <-time.After(400 * time.Millisecond): // a busy machine has stalls too
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.last
		}
	}
}

// TestGrantEnds measures when an alias falls silent by itself: without a
// refresh, with an end of the right, and when the owner is stopped.
func TestGrantEnds(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{})
	within := func(name string, lasted, want time.Duration) {
		t.Helper()
		t.Logf("%s: silent %v after the last word, want %v", name, lasted, want)
		if lasted > want+100*time.Millisecond || lasted < want-200*time.Millisecond {
			t.Errorf("%s: silent after %v, want about %v", name, lasted, want)
		}
	}
	hold(t, h, alias4)
	p := ping(t, w.client, alias4)
	for range 3 {
		<-time.After(h.options.Grant / 2)
		if err := h.Refresh(alias4.Address.Addr(), 0); err != nil {
			t.Fatal(err)
		}
	}
	last := time.Now()
	within("no refresh", p.silence().Sub(last), h.options.Grant)
	if err := h.Refresh(alias4.Address.Addr(), 0); !fault.Is(err, fault.Fenced) {
		t.Errorf("a refresh revives an ended grant: %v", err)
	}

	last = time.Now()
	if err := h.Hold(t.Context(), alias4, Now().Add(250*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	within("right ends", p.silence().Sub(last), 250*time.Millisecond)
	if err := h.Hold(t.Context(), alias4, Now()); !fault.Is(err, fault.Fenced) {
		t.Errorf("held without a right: %v", err)
	}

	hold(t, h, alias4)
	<-p.news
	last = time.Now()
	if err := h.Release(alias4.Address.Addr()); err != nil {
		t.Fatal(err)
	}
	within("release", p.silence().Sub(last), 0)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}

	first := startOwner(t, w.a, alias4)
	<-p.news
	last = time.Now()
	first.stop()
	within("SIGSTOP", p.silence().Sub(last), h.options.Grant)
	first.kill()
	first = startOwner(t, w.a, alias4)
	<-p.news
	last = time.Now()
	first.kill()
	within("kill -9", p.silence().Sub(last), 0)
}

// TestLateAnnouncement has a node announce an alias after its grant has ended,
// as one does that was stopped just before it sent: nothing leaves it.
func TestLateAnnouncement(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{Announce: []time.Duration{}})
	if len(h.gate.sides) < 3 {
		t.Skip("SKIP: this kernel has no egress hook")
	}
	for _, a := range []Alias{alias4, alias6} {
		hold(t, h, a)
		it := &held{Alias: a, link: h.held[a.Address.Addr()].link}
		wire, err := h.openWire(it)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = wire.conn.Close() })
		if err := wire.tell(); err != nil {
			t.Errorf("with a grant: %v", err)
		}
		h.mu.Lock()
		err = h.gate.revoke(a.Address.Addr())
		h.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		if err := wire.tell(); !errors.Is(err, unix.ENOBUFS) {
			t.Errorf("announced %v without a grant: %v", a.Address, err)
		}
	}
}

// TestWithoutEgress takes the egress tables away, as on an older kernel: all
// works, and the announcer looks at the clock.
func TestWithoutEgress(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{})
	serve(t, w.a)
	if len(h.gate.sides) == 3 {
		h.gate.conn.DelTable(h.gate.sides[2].gate)
		h.gate.sides = h.gate.sides[:2]
	}
	for _, a := range []Alias{alias4, alias6} {
		hold(t, h, a)
		if err := h.Refresh(a.Address.Addr(), 0); err != nil {
			t.Error(err)
		}
		exchange(t, dial(t, w.client, a))
		it := h.held[a.Address.Addr()]
		if !h.tellAgain(it.wire) {
			t.Errorf("%v is not announced", a.Address)
		}
		h.mu.Lock()
		it.ends = Now()
		h.mu.Unlock()
		if h.tellAgain(it.wire) {
			t.Errorf("%v is announced without a grant", a.Address)
		}
	}
}

// TestAnnouncements listens at the client: each comes, in both forms.
func TestAnnouncements(t *testing.T) {
	w := newWorld(t)
	var conn *packet.Conn
	err := w.client.Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		conn, err = packet.Listen(eth0, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ms := time.Millisecond
	h := openAt(t, w.a, Options{Announce: []time.Duration{0, 10 * ms, 30 * ms}})
	hold(t, h, alias4)
	hold(t, h, alias6)
	seen := map[string]int{}
	want := map[string]int{"request": 3, "reply": 3, "advertisement": 3}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for seen["request"] < 3 || seen["reply"] < 3 || seen["advertisement"] < 3 {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatalf("%v; seen %v, want %v", err, seen, want)
		}
		if a, ok := alias.ParseARP(buf[:n]); ok && a.SenderIP == alias4.Address.Addr().As4() && a.TargetIP == a.SenderIP {
			seen[map[alias.ARPOp]string{alias.ARPRequest: "request", alias.ARPReply: "reply"}[a.Op]]++
		}
		if a, ok := alias.ParseND(buf[:n]); ok && a.Kind == alias.Advertisement && a.Target == alias6.Address.Addr().As16() {
			seen["advertisement"]++
		}
	}
}

// TestEnds closes connections of a living owner: the client hears of a clean end
// only, and of a reset only when it asks for a connection that nobody knows.
func TestEnds(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{})
	e := serve(t, w.a)
	hold(t, h, alias4)
	served := func() *net.TCPConn {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.conns[len(e.conns)-1].(*net.TCPConn)
	}
	silent := dial(t, w.client, alias4)
	exchange(t, silent)
	ended := wait(silent)
	if err := served().Close(); err != nil {
		t.Fatal(err)
	}
	clean := dial(t, w.client, alias4)
	exchange(t, clean)
	if err := errors.Join(h.Clean(served()), served().Close()); err != nil {
		t.Fatal(err)
	}
	if e := <-wait(clean); !errors.Is(e.err, io.EOF) {
		t.Errorf("a clean close ends the client's read with %v", e.err)
	}
	still(t, ended)
	// What the client still sends is answered by a RST: the process closed.
	if _, err := silent.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	reset(t, ended)
}

// TestFlushedRuleset has somebody flush all of nftables, as `nft -f` with the
// distribution's file does: the owner notices, and holds again.
func TestFlushedRuleset(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{})
	hold(t, h, alias4)
	hold(t, h, alias6)
	conn, err := nftables.New(nftables.WithNetNSFd(w.a.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	conn.FlushRuleset()
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, a := range []Alias{alias4, alias6} {
		if err := h.Refresh(a.Address.Addr(), 0); !fault.Is(err, fault.Fenced) {
			t.Errorf("refresh of %v without a gate: %v", a.Address, err)
		}
	}
	for _, a := range []Alias{alias4, alias6} {
		hold(t, h, a)
	}
	for _, a := range []Alias{alias4, alias6} {
		if err := h.Refresh(a.Address.Addr(), 0); err != nil {
			// The other alias's tables were made anew meanwhile: it is held again.
			if err := h.Hold(context.Background(), a, 0); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestGivenUp gives calls up before their answer is there, as happens on a machine
// that stands still for a moment: the next one gets its own answer.
func TestGivenUp(t *testing.T) {
	w := newWorld(t)
	h := openAt(t, w.a, Options{Announce: []time.Duration{}})
	hold(t, h, alias4)
	a := alias4.Address.Addr()
	h.mu.Lock()
	defer h.mu.Unlock()
	late := 0
	for patience := time.Microsecond; late < 5; patience = patience*9/8 + 1 {
		if patience > 50*time.Millisecond {
			patience = time.Microsecond
		}
		h.gate.patience = patience
		if err := h.gate.grant(a, time.Minute, false); err != nil && strings.Contains(err.Error(), "netlink receive: i/o timeout") {
			late++
		}
		h.gate.patience = netlinkMax
		if err := h.gate.grant(a, time.Minute, false); err != nil {
			t.Fatalf("after a call that was given up after %v: %v", patience, err)
		}
		if _, err := h.gate.tables(); err != nil {
			t.Fatal(err)
		}
	}
}
