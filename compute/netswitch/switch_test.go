package netswitch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"steadfast/compute/netswitch/bridge"
	"steadfast/compute/usernet"
	"steadfast/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what should take moments.
const patience = 60 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits until something is so.
func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// socket is a path for a switch's, which has to be short.
func socket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sw")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "switch")
}

// open makes a switch, without a gateway unless it is described.
func open(t testing.TB, o Options) *Switch {
	t.Helper()
	if o.Socket == "" {
		o.Socket = socket(t)
	}
	o.NoGateway = !o.Gateway.Isolated && o.Gateway.Dial == nil
	s, err := Open(o)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// end is a test's end of a port.
type end struct {
	t testing.TB
	l link
	c net.Conn
}

// plug attaches over "unixpacket" or "tcp".
func plug(t testing.TB, s *Switch, network string, h Hello) *end {
	t.Helper()
	at := s.o.Socket
	if network == "tcp" {
		at = s.Addr().String()
	}
	l, c, mtu, err := attach(t.Context(), network, at, h)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	must(t, c.SetDeadline(time.Now().Add(patience)))
	if mtu != s.o.MTU {
		t.Errorf("the switch's MTU is %d, want %d", mtu, s.o.MTU)
	}
	return &end{t, l, c}
}

func (e *end) send(frame []byte) {
	e.t.Helper()
	must(e.t, e.l.write(frame))
}

func (e *end) expect(want []byte) {
	e.t.Helper()
	if got := e.next(); !bytes.Equal(got, want) {
		e.t.Fatalf("came %.40x (%d), want %.40x (%d)", got, len(got), want, len(want))
	}
}

func (e *end) next() []byte {
	e.t.Helper()
	b := make([]byte, messageMax+1)
	n, err := e.l.read(b)
	must(e.t, err)
	return b[:n]
}

func mac(n int) usernet.MAC { return usernet.MAC{0x02, 0, 0, 0, byte(n >> 8), byte(n)} }

var everybody = usernet.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// frame is one with a number in it, of so many bytes.
func frame(from, to usernet.MAC, n uint32, size int) []byte {
	f := make([]byte, size)
	copy(f, to[:])
	copy(f[6:], from[:])
	f[12], f[13] = 0x88, 0xb5
	binary.BigEndian.PutUint32(f[14:], n)
	return f
}

// TestPorts: frames cross between ports of both kinds, to whom they are for, and a station
// that moves is found at its new port by its first frame from there.
func TestPorts(t *testing.T) {
	s := open(t, Options{Listen: "127.0.0.1:0"})
	a := plug(t, s, "unixpacket", Hello{Port: "a"})
	b := plug(t, s, "tcp", Hello{Port: "b"})
	c := plug(t, s, "unixpacket", Hello{Port: "c", Machine: "vm1"})
	a.send(frame(mac(1), everybody, 1, 60))
	b.expect(frame(mac(1), everybody, 1, 60))
	c.expect(frame(mac(1), everybody, 1, 60))
	b.send(frame(mac(2), mac(1), 2, 1518))
	a.expect(frame(mac(2), mac(1), 2, 1518))
	a.send(frame(mac(1), mac(2), 3, 1518))
	b.expect(frame(mac(1), mac(2), 3, 1518))
	// What is no frame is not passed on, and who sends it stays.
	a.send(make([]byte, 13))
	a.send(frame(mac(1), everybody, 4, 1519))
	a.send(frame(everybody, everybody, 4, 60))
	// The machine goes on on another host: its station moves from a to c.
	c.send(bridge.Announcement(bridge.MAC(mac(1))))
	a.expect(bridge.Announcement(bridge.MAC(mac(1))))
	b.expect(bridge.Announcement(bridge.MAC(mac(1))))
	b.send(frame(mac(2), mac(1), 5, 60))
	c.expect(frame(mac(2), mac(1), 5, 60)) // none of the others came here
	st := s.State()
	if len(st.Ports) != 3 || st.Ports[2].Machine != "vm1" || st.Ports[0].In.Runts != 1 || st.Ports[0].In.Oversized != 1 || st.Ports[0].In.BadSource != 1 || st.Ports[2].In.MovedTo != 1 {
		t.Errorf("%+v", st)
	}
	want := []StationState{{mac(1), "c", 0}, {mac(2), "b", 0}}
	for i := range st.Stations {
		st.Stations[i].AgeSeconds = 0
	}
	if diff := cmp.Diff(want, st.Stations); diff != "" {
		t.Error(diff)
	}
	// A port that has gone is free, with its name.
	must(t, c.c.Close())
	until(t, "the port is free", func() bool { return len(s.State().Ports) == 2 })
	plug(t, s, "unixpacket", Hello{Port: "c"})
}

// TestRefused: who may not attach is told why.
func TestRefused(t *testing.T) {
	s := open(t, Options{Listen: "127.0.0.1:0"})
	plug(t, s, "unixpacket", Hello{Port: "a"})
	for _, network := range []string{"unixpacket", "tcp"} {
		at := map[string]string{"unixpacket": s.o.Socket, "tcp": s.Addr().String()}[network]
		if _, _, _, err := attach(t.Context(), network, at, Hello{Port: "a"}); !fault.Is(err, fault.Exists) {
			t.Errorf("%s: a name that is attached: %v", network, err)
		}
		for _, bad := range []string{`{"steadfast_switch":2,"port":"b"}`, `{"port":"b"}`, `hello`, `{"steadfast_switch":1,"port":""}`, `{"steadfast_switch":1,"port":"\u001b[2J"}`, `{"steadfast_switch":1,"port":"b","machine":"` + strings.Repeat("x", 65) + `"}`, strings.Repeat(" ", helloMax+1)} {
			c, err := net.Dial(network, at)
			must(t, err)
			l := link(newStream(c))
			if u, ok := c.(*net.UnixConn); ok {
				l, err = newPackets(u)
				must(t, err)
			}
			must(t, c.SetDeadline(time.Now().Add(patience)))
			must(t, l.write([]byte(bad)))
			b := make([]byte, helloMax)
			n, err := l.read(b)
			if err != nil || !strings.Contains(string(b[:n]), `"kind":"invalid"`) {
				t.Errorf("%s, %.40q: %q, %v", network, bad, b[:n], err)
			}
			if n, err := l.read(b); !errors.Is(err, io.EOF) {
				t.Errorf("%s, %.40q: not let go: %d, %v", network, bad, n, err)
			}
			c.Close()
		}
	}
	if _, err := Attach(t.Context(), s.o.Socket, Hello{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no name: %v", err)
	}
	if _, err := Attach(t.Context(), s.o.Socket+"x", Hello{Port: "x"}); !fault.Is(err, fault.Unreachable) {
		t.Errorf("no switch: %v", err)
	}
	var ends []net.Conn
	for i := 1; i < portsMax; i++ {
		_, c, _, err := attach(t.Context(), "unixpacket", s.o.Socket, Hello{Port: fmt.Sprint("p", i)})
		must(t, err)
		ends = append(ends, c)
	}
	if _, err := Attach(t.Context(), s.o.Socket, Hello{Port: "x"}); !fault.Is(err, fault.Limit) {
		t.Errorf("one port too many: %v", err)
	}
	for _, c := range ends {
		must(t, c.Close())
	}
}

// TestOptions: what cannot be is refused, and a socket that is in use, or nobody's any more,
// is told apart.
func TestOptions(t *testing.T) {
	path := socket(t)
	file := socket(t)
	must(t, os.WriteFile(file, nil, 0o600))
	for _, tc := range []struct {
		o    Options
		want fault.Kind
	}{
		{Options{}, fault.Invalid},
		{Options{Socket: strings.Repeat("x", 108)}, fault.Invalid},
		{Options{Socket: path, Listen: "localhost"}, fault.Invalid},
		{Options{Socket: path, Listen: "0.0.0.0:0"}, fault.Denied},
		{Options{Socket: path, Listen: "192.0.2.1:4789", Exposed: true}, fault.Busy},
		{Options{Socket: file}, fault.Exists},
		{Options{Socket: path, Gateway: usernet.Options{MTU: 100}, MTU: 100}, fault.Invalid},
	} {
		if s, err := Open(tc.o); !fault.Is(err, tc.want) {
			t.Errorf("%+v: %v, want %v", tc.o, err, tc.want)
			if s != nil {
				s.Close()
			}
		}
	}
	s := open(t, Options{Socket: path, Listen: "0.0.0.0:0", Exposed: true})
	if _, err := Open(Options{Socket: path, NoGateway: true}); !fault.Is(err, fault.Exists) {
		t.Errorf("a second one: %v", err)
	}
	for _, p := range []string{path, path + controlSuffix} {
		if info, err := os.Stat(p); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", p, info, err)
		}
	}
	must(t, s.Close())
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket is left: %v", err)
	}
	// One that was killed leaves its socket.
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	must(t, err)
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
	plug(t, open(t, Options{Socket: path}), "unixpacket", Hello{Port: "a"})
}

// TestQueueFull: a port that takes nothing loses its own frames, and what it does take are the
// first ones, in order. Others go on.
func TestQueueFull(t *testing.T) {
	for _, network := range []string{"unixpacket", "tcp"} {
		t.Run(network, func(t *testing.T) {
			s := open(t, Options{Listen: "127.0.0.1:0"})
			slow := plug(t, s, network, Hello{Port: "slow"})
			a := plug(t, s, "unixpacket", Hello{Port: "a"})
			b := plug(t, s, "unixpacket", Hello{Port: "b"})
			slow.send(frame(mac(1), everybody, 0, 60))
			a.next()
			b.next()
			b.send(frame(mac(3), everybody, 0, 60))
			a.next()
			n := uint32(0)
			lost := func() uint64 { return s.State().Ports[0].Lost }
			for end := time.Now().Add(patience); lost() == 0; {
				for range 256 {
					n++
					a.send(frame(mac(2), mac(1), n, 1514))
				}
				if time.Now().After(end) {
					t.Fatal("nothing is lost")
				}
			}
			a.send(frame(mac(2), mac(3), 7, 60))
			b.expect(frame(mac(2), mac(3), 7, 60))
			total := s.State().Ports[0]
			slow.expect(frame(mac(3), everybody, 0, 60))
			last := uint32(0)
			for range uint64(n) - total.Lost {
				// In their order; after the first that was lost there may have been room again.
				f := slow.next()
				number := binary.BigEndian.Uint32(f[14:])
				if number <= last || number > n || !bytes.Equal(f, frame(mac(2), mac(1), number, 1514)) {
					t.Fatalf("%.40x of %d bytes after number %d", f, len(f), last)
				}
				last = number
			}
			until(t, "all is counted", func() bool { p := s.State().Ports[0]; return p.Sent+p.Lost == uint64(n)+1 })
		})
	}
}

// TestLarge: a large segment passes whole to a port that takes it, and in pieces to others.
func TestLarge(t *testing.T) {
	s := open(t, Options{})
	a := plug(t, s, "unixpacket", Hello{Port: "a", Large: true})
	b := plug(t, s, "unixpacket", Hello{Port: "b", Large: true})
	c := plug(t, s, "unixpacket", Hello{Port: "c"})
	f := frame(mac(1), everybody, 0, 14+20+20+65495)
	copy(f[12:], []byte{8, 0, 0x45, 0, 0xff, 0xff, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2})
	f[14+20+12] = 5 << 4
	a.send(f)
	b.expect(f)
	got := 0
	for got < 65495 {
		p := c.next()
		if len(p) > 1514 {
			t.Fatalf("a frame of %d bytes", len(p))
		}
		got += len(p) - 54
	}
	c.send(f) // which it has no card for
	c.send(frame(mac(2), everybody, 9, 60))
	a.expect(frame(mac(2), everybody, 9, 60))
}

// pair is a machine's wire: the machine's end, and the host's.
func pair(t *testing.T) (machine *end, host net.Conn) {
	t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket(t), Net: "unixpacket"})
	must(t, err)
	defer l.Close()
	c, err := net.Dial("unixpacket", l.Addr().String())
	must(t, err)
	t.Cleanup(func() { c.Close() })
	host, err = l.Accept()
	must(t, err)
	must(t, c.SetDeadline(time.Now().Add(patience)))
	p, err := newPackets(c.(*net.UnixConn))
	must(t, err)
	return &end{t, p, c}, host
}

// TestUplink: a machine's wire outlives the switch: what is sent meanwhile is lost, and what
// is sent to the next one is not.
func TestUplink(t *testing.T) {
	path := socket(t)
	u, err := NewUplink(UplinkOptions{Socket: path, Hello: Hello{Port: "vm1", Large: true}})
	must(t, err)
	defer func() { must(t, u.Close()) }()
	machine, wire := pair(t)
	joined := make(chan error, 2)
	go func() { joined <- u.Join(wire) }()
	until(t, "it has tried", func() bool { return fault.Is(u.State().Err, fault.Unreachable) })
	machine.send(frame(mac(1), everybody, 0, 60))
	until(t, "the frame is dropped", func() bool { return u.State().Dropped == 1 })
	for i := range uint64(2) {
		s := open(t, Options{Socket: path})
		until(t, "it is attached", func() bool { return u.State().Attached })
		if st := u.State(); st.Attachments != i+1 || st.MTU != 1500 || st.Err != nil {
			t.Errorf("%+v", st)
		}
		other := plug(t, s, "unixpacket", Hello{Port: "other"})
		machine.send(frame(mac(1), everybody, 1, 60))
		other.expect(frame(mac(1), everybody, 1, 60))
		other.send(frame(mac(2), mac(1), 2, 60))
		machine.expect(frame(mac(2), mac(1), 2, 60))
		u.Send(bridge.Announcement(bridge.MAC(mac(1))))
		other.expect(bridge.Announcement(bridge.MAC(mac(1))))
		must(t, s.Close())
		until(t, "it is detached", func() bool { return !u.State().Attached })
	}
	// The guest restarts: a new wire takes the place of the old one.
	again, wire2 := pair(t)
	go func() { joined <- u.Join(wire2) }()
	if err := <-joined; err != nil {
		t.Error(err)
	}
	s := open(t, Options{Socket: path})
	until(t, "it is attached", func() bool { return u.State().Attached })
	other := plug(t, s, "unixpacket", Hello{Port: "other"})
	other.send(frame(mac(2), everybody, 3, 60))
	again.expect(frame(mac(2), everybody, 3, 60))
	must(t, again.c.Close())
	if err := <-joined; err != nil {
		t.Error(err)
	}
	must(t, u.Close())
	if err := u.Join(wire2); err != nil {
		t.Errorf("after the end: %v", err)
	}
	for _, bad := range []UplinkOptions{{}, {Socket: "x", TCP: "y", Hello: Hello{Port: "a"}}, {Socket: "x"}} {
		if _, err := NewUplink(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// TestAttach: the socket that is handed out is the port.
func TestAttach(t *testing.T) {
	s := open(t, Options{})
	f, err := Attach(t.Context(), s.o.Socket, Hello{Port: "fd"})
	must(t, err)
	defer f.Close()
	a := plug(t, s, "unixpacket", Hello{Port: "a"})
	a.send(frame(mac(1), everybody, 1, 60))
	b := make([]byte, 100)
	if n, err := f.Read(b); err != nil || !bytes.Equal(b[:n], frame(mac(1), everybody, 1, 60)) {
		t.Errorf("%x, %v", b[:n], err)
	}
	_, err = f.Write(frame(mac(2), mac(1), 2, 60))
	must(t, err)
	a.expect(frame(mac(2), mac(1), 2, 60))
	must(t, s.Close())
	if _, err := f.Read(b); !errors.Is(err, io.EOF) {
		t.Errorf("after the switch's end: %v", err)
	}
}

// FuzzHello: no first message does harm, and what is let in is fit to be shown.
func FuzzHello(f *testing.F) {
	f.Add([]byte(`{"steadfast_switch":1,"port":"vm1/net0","machine":"vm1","large":true}`))
	f.Add([]byte(`{"steadfast_switch":2}`))
	f.Add([]byte(`{"steadfast_switch":1,"port":"\u0007"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err == nil && (h.check() != nil || strings.ContainsAny(h.Port+h.Machine, "\x1b\n\r\t ")) {
			t.Errorf("%q is let in as %+v", b, h)
		}
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Error(err)
		}
	})
}

// FuzzStream: whatever comes over TCP, the switch goes on, and lets it go.
func FuzzStream(f *testing.F) {
	message := func(b []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...) }
	hello := message([]byte(`{"steadfast_switch":1,"port":"x","large":true}`))
	f.Add(hello)
	f.Add(append(bytes.Clone(hello), message(frame(mac(1), everybody, 1, 60))...))
	f.Add(append(bytes.Clone(hello), 0xff, 0xff, 0xff, 0xff))
	f.Add(append(bytes.Clone(hello), 0, 0, 0, 0, 0, 0, 0, 5, 1))
	f.Add([]byte("GET / HTTP/1.0\r\n\r\n"))
	dir := f.TempDir()
	s, err := Open(Options{Socket: filepath.Join(dir, "s"), Gateway: usernet.Options{Isolated: true, NoDNS: true}})
	must(f, err)
	f.Cleanup(func() { must(f, s.Close()) })
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.arrive(theirs)
		}()
		go func() {
			_, _ = io.Copy(io.Discard, ours)
		}()
		_, _ = ours.Write(b) // it may be let go before
		_ = ours.Close()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("it is not let go")
		}
		if st := s.State(); len(st.Ports) != 1 {
			t.Errorf("attached are %+v", st.Ports)
		}
	})
}

// BenchmarkPorts is frames from one port to another, as hosts on this box have them.
func BenchmarkPorts(b *testing.B) {
	for _, size := range []int{60, 1514, 65535} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := open(b, Options{})
			from := plug(b, s, "unixpacket", Hello{Port: "a", Large: true})
			to := plug(b, s, "unixpacket", Hello{Port: "b", Large: true})
			to.send(frame(mac(2), everybody, 0, 60))
			from.next()
			f := frame(mac(1), mac(2), 1, size)
			if size > 1514 {
				copy(f[12:], []byte{8, 0, 0x45, 0, byte((size - 14) >> 8), byte(size - 14), 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2})
				f[14+20+12] = 5 << 4
			}
			// A window, as a stream has: what is under way is less than what may wait.
			window := make(chan struct{}, min(64, queueBytesMax/2/size))
			got := make(chan error, 1)
			go func() {
				p := make([]byte, messageMax)
				for range b.N {
					if _, err := to.l.read(p); err != nil {
						got <- err
						return
					}
					<-window
				}
				got <- nil
			}()
			b.SetBytes(int64(size))
			b.ResetTimer()
			for range b.N {
				select {
				case window <- struct{}{}:
				case err := <-got: // what was lost leaves the window full
					b.Fatalf("%v, with %+v", err, s.State().Ports)
				}
				from.send(f)
			}
			if err := <-got; err != nil {
				b.Fatalf("%v, with %+v", err, s.State().Ports)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "frames/s")
			b.ReportMetric(float64(b.N)*float64(size)*8/1e9/b.Elapsed().Seconds(), "Gbit/s")
		})
	}
}

// TestUnacknowledged: a connection over TCP, at both of its ends, does not outlive another
// side that is gone while something is on its way to it.
func TestUnacknowledged(t *testing.T) {
	s := open(t, Options{Listen: "127.0.0.1:0"})
	address := s.listen[2].Addr().String()
	_, c, _, err := attach(t.Context(), "tcp", address, Hello{Port: "p"})
	must(t, err)
	t.Cleanup(func() { c.Close() })
	raw, err := s.listen[2].(*net.TCPListener).SyscallConn()
	must(t, err)
	dialled, err := c.(*net.TCPConn).SyscallConn()
	must(t, err)
	for name, raw := range map[string]syscall.RawConn{"listens": raw, "dialled": dialled} {
		must(t, raw.Control(func(fd uintptr) {
			ms, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			if err != nil || ms != int(unacknowledgedMax.Milliseconds()) {
				t.Errorf("%s: %d ms, %v", name, ms, err)
			}
		}))
	}
}

// TestMTU: a switch that would drop everything is not made.
func TestMTU(t *testing.T) {
	for _, mtu := range []int{-1, 10, 70000} {
		if s, err := Open(Options{Socket: socket(t), MTU: mtu, NoGateway: true}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%d: %v", mtu, err)
			if err == nil {
				_ = s.Close()
			}
		}
	}
}
