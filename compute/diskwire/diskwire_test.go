package diskwire

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"steadfast/block"
	"steadfast/compute/diskwire/diskwiretest"
	"steadfast/fault"
)

// TestMain is also the process that BenchmarkProcesses starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "load" {
		load(os.Args[2:])
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// patience bounds what a test waits for that should take moments.
const patience = 60 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// within receives what should come in moments.
func within[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatal("it takes too long")
	}
	return v
}

// rig is a device that is served.
type rig struct {
	server *Server
	client *Client
	stop   context.CancelFunc
	served chan error
}

// serving serves a device. The test's end is the server's.
func serving(t testing.TB, d block.Device, o Options) *rig {
	t.Helper()
	s, err := NewServer(d, o)
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	r := &rig{server: s, stop: stop, served: make(chan error, 1)}
	go func() { r.served <- s.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		within(t, r.served)
	})
	return r
}

// serve serves a device to a client.
func serve(t testing.TB, d block.Device, o Options) *rig {
	t.Helper()
	r := serving(t, d, o)
	c, err := Open(theirs(t, r.server))
	must(t, err)
	r.client = c
	t.Cleanup(func() { must(t, c.Close()) })
	return r
}

// theirs are the client's descriptors, as another process would have them.
func theirs(t testing.TB, s *Server) (socket, memory *os.File) {
	t.Helper()
	again := func(f *os.File) *os.File {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		must(t, err)
		_ = unix.SetNonblock(fd, true) // Fd has undone it
		return os.NewFile(uintptr(fd), "theirs")
	}
	socket, memory = s.Theirs()
	socket, memory = again(socket), again(memory)
	must(t, s.Given())
	return socket, memory
}

// ended waits until the server has ended of itself.
func (r *rig) ended(t testing.TB) error {
	t.Helper()
	err := within(t, r.served)
	r.served <- nil
	return err
}

const diskBytes = 2 << 20

// TestDevice: what is served does what the device does, whatever is asked, in whatever size.
func TestDevice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		twin, d := diskwiretest.NewRAM(diskBytes), diskwiretest.NewRAM(diskBytes)
		c := serve(t, d, Options{Slots: rapid.IntRange(1, 20).Draw(rt, "slots")}).client
		sectors := rapid.Int64Range(0, diskBytes/block.SectorSize)
		for range rapid.IntRange(1, 30).Draw(rt, "requests") {
			off := sectors.Draw(rt, "sector") * block.SectorSize
			n := min(sectors.Draw(rt, "sectors"), 1+int64(rapid.IntRange(0, 4096).Draw(rt, "most"))) * block.SectorSize
			p := make([]byte, n)
			rand.NewChaCha8([32]byte{rapid.Byte().Draw(rt, "data")}).Read(p) // never fails
			both := func(do func(d block.Device) (string, error)) {
				want, wantErr := do(twin)
				got, err := do(c)
				if got != want || (err == nil) != (wantErr == nil) || err != nil && fault.KindOf(err) != fault.KindOf(wantErr) {
					rt.Fatalf("%s, %v; the device: %s, %v", got, err, want, wantErr)
				}
			}
			switch rapid.IntRange(0, 6).Draw(rt, "op") {
			case 0, 1:
				both(func(d block.Device) (string, error) {
					q := make([]byte, n)
					if err := d.ReadAt(q, off); err != nil {
						return "", err
					}
					return string(q), nil
				})
			case 2:
				both(func(d block.Device) (string, error) { return "", d.WriteAt(p, off, block.FUA) })
			case 3:
				both(func(d block.Device) (string, error) { return "", d.Trim(off, n) })
			case 4:
				both(func(d block.Device) (string, error) { return "", d.Zero(off, n, 0) })
			case 5:
				both(func(d block.Device) (string, error) { return fmt.Sprint(d.Size()), d.Flush() })
			case 6:
				p = p[:min(n, SlotBytes/2)]
				old := make([]byte, len(p))
				if rapid.Bool().Draw(rt, "same") && off+int64(len(old)) <= diskBytes {
					must(t, twin.ReadAt(old, off))
				}
				both(func(d block.Device) (string, error) {
					m, err := d.CompareAndWrite(off, old, p, 0)
					return fmt.Sprint(m), err
				})
			}
		}
		a, b := make([]byte, diskBytes), make([]byte, diskBytes)
		must(t, twin.ReadAt(a, 0))
		must(t, d.ReadAt(b, 0))
		if !bytes.Equal(a, b) {
			rt.Fatal("the device holds something else")
		}
	})
}

// TestBlocksWhole: a request is cut at the ends of blocks only, and its flags go with each
// piece.
func TestBlocksWhole(t *testing.T) {
	d := diskwiretest.NewRAM(4 << 20)
	var bad atomic.Int32
	const off, n = 3 * block.SectorSize, 3<<20 + 5*block.SectorSize
	d.Before = func(r diskwiretest.Request) error {
		end := r.Off + r.N
		if r.Off != off && r.Off%block.BlockSize != 0 || end != off+n && end%block.BlockSize != 0 || r.Flags != block.FUA {
			bad.Add(1)
		}
		return nil
	}
	c := serve(t, d, Options{Slots: 3}).client
	must(t, c.WriteAt(make([]byte, n), off, block.FUA))
	if bad.Load() != 0 || d.Requests() != n/SlotBytes+1 {
		t.Errorf("%d of %d pieces are wrong", bad.Load(), d.Requests())
	}
}

// TestFaults: a fault comes over with its kind and its text, cut if need be, and the next
// request is done.
func TestFaults(t *testing.T) {
	d := diskwiretest.NewRAM(diskBytes)
	var next error
	d.Before = func(diskwiretest.Request) error { return next }
	c := serve(t, d, Options{}).client
	p := make([]byte, block.SectorSize)
	for _, k := range fault.Kinds() {
		next = fault.New(k, "the text of %s", k)
		_, cerr := c.CompareAndWrite(0, p, p, 0)
		for what, err := range map[string]error{
			"read": c.ReadAt(p, 0), "write": c.WriteAt(p, 0, 0), "flush": c.Flush(), "trim": c.Trim(0, 4096), "zero": c.Zero(0, 4096, 0), "compare": cerr,
		} {
			if !fault.Is(err, k) || err.Error() != next.Error() {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	next = fault.New(fault.Full, "%s", strings.Repeat("x", 1<<20))
	if err := c.WriteAt(p, 0, 0); !fault.Is(err, fault.Full) || len(err.Error()) != textMax {
		t.Errorf("a long text: %d bytes", len(err.Error()))
	}
	next = nil
	must(t, c.WriteAt(p, 0, 0))
}

// TestPause: requests that the device holds hold up nothing else, whatever their number
// short of all slots; one more waits for a slot.
func TestPause(t *testing.T) {
	const slots = 8
	d := diskwiretest.NewRAM(diskBytes)
	let, held := make(chan struct{}), make(chan struct{}, slots)
	d.Before = func(r diskwiretest.Request) error {
		if r.Op == diskwiretest.Write {
			held <- struct{}{}
			<-let
		}
		return nil
	}
	c := serve(t, d, Options{Slots: slots}).client
	var writes sync.WaitGroup
	for i := range int64(slots - 1) {
		writes.Go(func() {
			if err := c.WriteAt(make([]byte, 4096), i*4096, 0); err != nil {
				t.Error(err)
			}
		})
	}
	for range slots - 1 {
		within(t, held)
	}
	for range 1000 {
		must(t, c.ReadAt(make([]byte, 512<<10), 0)) // by one slot
		must(t, c.Flush())
	}
	writes.Go(func() {
		if err := c.WriteAt(make([]byte, 4096), 1<<20, 0); err != nil {
			t.Error(err)
		}
	})
	within(t, held)
	late := make(chan error, 1)
	go func() { late <- c.Flush() }()
	select {
	case err := <-late:
		t.Errorf("a request without a slot: %v", err)
	default:
	}
	close(let)
	writes.Wait()
	must(t, within(t, late))
}

// TestBounded: many who ask for much at once get it, and the device is never asked for more
// at once than there are slots.
func TestBounded(t *testing.T) {
	const slots = 3
	d := diskwiretest.NewRAM(8 << 20)
	var now, most atomic.Int32
	d.Before = func(diskwiretest.Request) error {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		now.Add(-1)
		return nil
	}
	c := serve(t, d, Options{Slots: slots}).client
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			p, q := bytes.Repeat([]byte{byte(1 + i)}, 500<<10), make([]byte, 500<<10)
			for range 5 {
				if err := c.WriteAt(p, int64(i)*(512<<10), 0); err != nil {
					t.Error(err)
				}
				if err := c.ReadAt(q, int64(i)*(512<<10)); err != nil || !bytes.Equal(p, q) {
					t.Errorf("it reads something else, %v", err)
				}
			}
		})
	}
	all.Wait()
	if most.Load() > slots {
		t.Errorf("%d at once", most.Load())
	}
}

// TestGrows: another size is told when the server is told, and with the next answer, and may be
// used then.
func TestGrows(t *testing.T) {
	d := diskwiretest.NewRAM(1 << 20)
	r := serve(t, d, Options{})
	grown := make(chan int64, 10)
	r.client.OnResize(1<<20, func(size int64) { grown <- size })
	d.Grow(2 << 20)
	r.server.Resized()
	r.server.Resized()
	if n := within(t, grown); n != 2<<20 || r.client.Size() != n {
		t.Errorf("%d bytes", n)
	}
	must(t, r.client.WriteAt(make([]byte, 4096), 2<<20-4096, 0))
	d.Grow(3 << 20)
	must(t, r.client.Flush())
	if n := within(t, grown); n != 3<<20 {
		t.Errorf("%d bytes", n)
	}
	r.client.OnResize(1<<20, func(size int64) { grown <- size }) // who comes late
	if n := within(t, grown); n != 3<<20 {
		t.Errorf("%d bytes", n)
	}
}

// TestReadOnly: a device that is served to be read is not changed.
func TestReadOnly(t *testing.T) {
	d := diskwiretest.NewRAM(diskBytes)
	c := serve(t, d, Options{ReadOnly: true}).client
	p := make([]byte, 4096)
	must(t, c.ReadAt(p, 0))
	must(t, c.Flush())
	_, err := c.CompareAndWrite(0, p, p, 0)
	for what, err := range map[string]error{"write": c.WriteAt(p, 0, 0), "trim": c.Trim(0, 4096), "zero": c.Zero(0, 4096, 0), "compare": err} {
		if !fault.Is(err, fault.ReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if d.Requests() != 2 {
		t.Errorf("the device was asked %d times", d.Requests())
	}
}

// TestClientGoes: a client that closes is let go at once, and its server ends when the request
// that was under way has ended, with its change made.
func TestClientGoes(t *testing.T) {
	d := diskwiretest.NewRAM(diskBytes)
	let, held := make(chan struct{}), make(chan struct{})
	d.Before = func(r diskwiretest.Request) error {
		if r.Op == diskwiretest.Write {
			close(held)
			<-let
		}
		return nil
	}
	r := serve(t, d, Options{Slots: 2})
	wrote := make(chan error, 1)
	go func() { wrote <- r.client.WriteAt(bytes.Repeat([]byte{7}, 4096), 0, 0) }()
	within(t, held)
	must(t, r.client.Close())
	if err := within(t, wrote); !fault.Is(err, fault.Canceled) {
		t.Error(err)
	}
	if err := r.client.Flush(); !fault.Is(err, fault.Canceled) {
		t.Error(err)
	}
	// The server has noticed when its socket is closed. It would return at once if it did not wait;
	// a longer look would see no more.
	for until := time.Now().Add(patience); r.server.sock.SetDeadline(time.Time{}) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the server has not noticed")
		}
	}
	select {
	case err := <-r.served:
		t.Fatalf("the device is in use, and the server has ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(let)
	must(t, r.ended(t))
	p := make([]byte, block.SectorSize)
	must(t, d.ReadAt(p, 0))
	if p[0] != 7 {
		t.Errorf("the device holds %x", p[0])
	}
}

// TestServerGoes: what is under way, and what comes later, fails when the server ends.
func TestServerGoes(t *testing.T) {
	d := diskwiretest.NewRAM(diskBytes)
	let, held := make(chan struct{}), make(chan struct{}, 1)
	d.Before = func(diskwiretest.Request) error {
		held <- struct{}{}
		<-let
		return nil
	}
	r := serve(t, d, Options{Slots: 1})
	asked := make(chan error, 2)
	for range 2 { // one waits for the other's slot
		go func() { asked <- r.client.Flush() }()
	}
	within(t, held)
	r.stop()
	for range 2 {
		if err := within(t, asked); !fault.Is(err, fault.Unreachable) {
			t.Error(err)
		}
	}
	close(let)
	must(t, r.ended(t))
	if err := r.client.Flush(); !fault.Is(err, fault.Unreachable) {
		t.Error(err)
	}
}

// TestOpenFails: what is no server's is refused, and a server that was never asked to serve closes.
func TestOpenFails(t *testing.T) {
	if _, err := NewServer(diskwiretest.NewRAM(512), Options{Slots: SlotsMax + 1}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	s, err := NewServer(diskwiretest.NewRAM(512), Options{})
	must(t, err)
	socket, memory := theirs(t, s)
	must(t, s.Close())
	if _, err := Open(socket, memory); !fault.Is(err, fault.Unreachable) {
		t.Errorf("without a server: %v", err)
	}
	s, err = NewServer(diskwiretest.NewRAM(512), Options{})
	must(t, err)
	socket, memory = theirs(t, s)
	must(t, memory.Close())
	if memory, err = os.Create(t.TempDir() + "/empty"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(socket, memory); !fault.Is(err, fault.Invalid) {
		t.Errorf("with an empty file: %v", err)
	}
	must(t, s.Close())
}
