package diskwire

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/block"
	"steadfast/compute/diskwire/diskwiretest"
	"steadfast/fault"
)

// taken is a client that was taken over: it has the descriptors, and does what it likes.
type taken struct {
	*rig
	sock, file *os.File
	mem        []byte
}

func takenOver(t testing.TB, d block.Device, o Options) *taken {
	t.Helper()
	h := &taken{rig: serving(t, d, o)}
	h.sock, h.file = theirs(t, h.server)
	var err error
	h.mem, _, err = mapped(h.file)
	must(t, err)
	t.Cleanup(func() {
		must(t, errors.Join(h.sock.Close(), h.file.Close(), unix.Munmap(h.mem)))
	})
	must(t, h.sock.SetDeadline(time.Now().Add(patience)))
	return h
}

// says reads an answer: the only one that is due, behind or before a size.
func (h *taken) says(t testing.TB) (a answer) {
	t.Helper()
	b := make([]byte, SlotsMax*answerBytes)
	for {
		n, err := h.sock.Read(b)
		must(t, err)
		for p := b[:n]; len(p) > 0; p = p[answerBytes:] {
			must(t, a.get(p, SlotsMax))
			if a.says == saysAnswer {
				return a
			}
		}
	}
}

// dropped waits until the server has closed the socket.
func (h *taken) dropped(t testing.TB) {
	t.Helper()
	b := make([]byte, SlotsMax*answerBytes)
	for {
		switch _, err := h.sock.Read(b); {
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
			return
		default:
			must(t, err)
		}
	}
}

func packet(requests ...request) []byte {
	b := make([]byte, len(requests)*requestBytes)
	for i, r := range requests {
		r.put(b[i*requestBytes:])
	}
	return b
}

// TestHostile: what no client sends ends the service, with an error, and never gets to the
// device.
func TestHostile(t *testing.T) {
	read := request{op: opRead, n: 512}
	with := func(spoil func(r *request)) []byte {
		r := read
		spoil(&r)
		return packet(r)
	}
	reserved := packet(read)
	reserved[5] = 1
	for name, p := range map[string][]byte{
		"no operation":      with(func(r *request) { r.op = 0 }),
		"another operation": with(func(r *request) { r.op = opCompareAndWrite + 1 }),
		"flags":             with(func(r *request) { r.flags = 2 }),
		"reserved bits":     reserved,
		"no such slot":      with(func(r *request) { r.slot = 4 }),
		"the last slot":     with(func(r *request) { r.slot = math.MaxUint16 }),
		"nothing":           with(func(r *request) { r.n = 0 }),
		"a long read":       with(func(r *request) { r.n = SlotBytes + 512 }),
		"a long write":      with(func(r *request) { r.op, r.n = opWrite, SlotBytes+512 }),
		"a long comparison": with(func(r *request) { r.op, r.n = opCompareAndWrite, SlotBytes/2+512 }),
		"before the disk":   with(func(r *request) { r.off = -512 }),
		"a negative length": with(func(r *request) { r.op, r.n = opTrim, -512 }),
		"a range that ends before it begins": with(func(r *request) {
			r.op, r.off, r.n = opZero, math.MaxInt64-511, math.MaxInt64-511
		}),
		"an odd offset":         with(func(r *request) { r.off = 1 }),
		"an odd length":         with(func(r *request) { r.n = 513 }),
		"a flush of something":  with(func(r *request) { r.op = opFlush }),
		"a part of a request":   packet(read)[:23],
		"a request and a part":  packet(read, request{op: opRead, n: 512, slot: 1})[:47],
		"more than there are":   packet(read, read, read, read, read),
		"a slot that is in use": packet(request{op: opRead, slot: 1, n: 512}, request{op: opFlush, slot: 1}),
	} {
		t.Run(name, func(t *testing.T) {
			d := diskwiretest.NewRAM(diskBytes)
			let, first := make(chan struct{}), make(chan struct{}, 1)
			d.Before = func(diskwiretest.Request) error {
				first <- struct{}{}
				<-let
				return nil
			}
			h := takenOver(t, d, Options{Slots: 4})
			_, err := h.sock.Write(p)
			must(t, err)
			if name == "a slot that is in use" {
				within(t, first)
				// The slot stays in use until the server has seen the second request: a device that
				// answers at once could be done before it.
				h.dropped(t)
			}
			close(let)
			if err := h.ended(t); !fault.Is(err, fault.Invalid) {
				t.Error(err)
			}
			if name != "a slot that is in use" && d.Requests() != 0 {
				t.Errorf("the device was asked %d times", d.Requests())
			}
		})
	}
}

// TestOutside: a range outside of the device is answered, and the device is not asked.
func TestOutside(t *testing.T) {
	d := diskwiretest.NewRAM(diskBytes)
	h := takenOver(t, d, Options{Slots: 4})
	for _, r := range []request{
		{op: opRead, off: diskBytes, n: 512},
		{op: opWrite, off: diskBytes - 512, n: 1024},
		{op: opTrim, n: math.MaxInt64 - 511},
		{op: opZero, off: math.MaxInt64 - 1023, n: 512},
		{op: opCompareAndWrite, off: diskBytes, n: 512},
	} {
		_, err := h.sock.Write(packet(r))
		must(t, err)
		if a := h.says(t); a.status != 1+uint8(fault.Invalid) {
			t.Errorf("%+v: %+v", r, a)
		}
	}
	if d.Requests() != 0 {
		t.Errorf("the device was asked %d times", d.Requests())
	}
}

// looker is a device that tells what it was given, after the other side had its turn.
type looker struct {
	*diskwiretest.RAM
	between func(given []byte)
}

func (l *looker) WriteAt(p []byte, off int64, flags block.Flags) error {
	l.between(p)
	return l.RAM.WriteAt(p, off, flags)
}

func (l *looker) ReadAt(p []byte, off int64) error {
	copy(p, "secret")
	l.between(p)
	return l.RAM.ReadAt(p, off)
}

func (l *looker) CompareAndWrite(off int64, old, new []byte, flags block.Flags) (int64, error) {
	l.between(new)
	return l.RAM.CompareAndWrite(off, old, new, flags)
}

// TestChanges: what is changed in the shared memory while the device has a request is not
// seen by the device; and what the device does with its buffer before it answers is not seen there.
func TestChanges(t *testing.T) {
	d := &looker{RAM: diskwiretest.NewRAM(diskBytes)}
	h := takenOver(t, d, Options{Slots: 1})
	d.between = func(given []byte) {
		before := bytes.Clone(given)
		for i := range h.mem {
			h.mem[i] = 0xee
		}
		if !bytes.Equal(before, given) {
			t.Error("the device sees it")
		}
	}
	ask := func(r request) {
		t.Helper()
		_, err := h.sock.Write(packet(r))
		must(t, err)
		if a := h.says(t); a.status != 0 {
			t.Fatalf("%+v", a)
		}
	}
	holds := func(want byte) {
		t.Helper()
		p := make([]byte, 4096)
		must(t, d.RAM.ReadAt(p, 0))
		if !bytes.Equal(p, bytes.Repeat([]byte{want}, 4096)) {
			t.Errorf("the device holds %x", p[0])
		}
	}
	copy(h.mem, bytes.Repeat([]byte{1}, 4096))
	ask(request{op: opWrite, n: 4096})
	holds(1)
	copy(h.mem, bytes.Repeat([]byte{1}, 4096))
	copy(h.mem[4096:], bytes.Repeat([]byte{2}, 4096))
	ask(request{op: opCompareAndWrite, n: 4096})
	holds(2)
	var seen atomic.Bool
	d.between = func([]byte) { seen.Store(bytes.Contains(h.mem, []byte("secret"))) }
	ask(request{op: opRead, n: 4096})
	if seen.Load() || h.mem[0] != 2 {
		t.Errorf("it reads %x, and has seen what it was not to: %v", h.mem[0], seen.Load())
	}
}

// TestUnread: what a failed read has brought is not told.
func TestUnread(t *testing.T) {
	d := &looker{RAM: diskwiretest.NewRAM(diskBytes), between: func([]byte) {}}
	d.Before = func(diskwiretest.Request) error { return fault.New(fault.Corrupt, "it is damaged") }
	h := takenOver(t, d, Options{Slots: 1})
	_, err := h.sock.Write(packet(request{op: opRead, n: 4096}))
	must(t, err)
	if a := h.says(t); a.status != 1+uint8(fault.Corrupt) || bytes.Contains(h.mem, []byte("secret")) {
		t.Errorf("%+v", a)
	}
}

// TestSealed: the memory's size is nobody's to change.
func TestSealed(t *testing.T) {
	h := takenOver(t, diskwiretest.NewRAM(diskBytes), Options{Slots: 1})
	for _, size := range []int64{0, 4096, SlotBytes + 4096} {
		if err := h.file.Truncate(size); !errors.Is(err, unix.EPERM) {
			t.Errorf("%d: %v", size, err)
		}
	}
	if _, err := unix.FcntlInt(h.file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); !errors.Is(err, unix.EPERM) {
		t.Errorf("another seal: %v", err)
	}
	// A hole reads as zeros.
	must(t, unix.Fallocate(int(h.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, SlotBytes))
	_, err := h.sock.Write(packet(request{op: opWrite, n: SlotBytes}))
	must(t, err)
	if a := h.says(t); a.status != 0 {
		t.Errorf("%+v", a)
	}
}

// TestDeaf: a client that asks for ever and takes no answer makes its server wait, not
// grow, and its server ends when it is told to.
func TestDeaf(t *testing.T) {
	const slots = 4
	d := diskwiretest.NewRAM(diskBytes)
	asked := make(chan struct{})
	d.Before = func(diskwiretest.Request) error {
		asked <- struct{}{}
		return nil
	}
	h := takenOver(t, d, Options{Slots: slots})
	// The sender is stuck, and every slot's answer waits behind it.
	stuck := func() bool {
		h.server.out.mu.Lock()
		defer h.server.out.mu.Unlock()
		return len(h.server.out.held) == slots*answerBytes
	}
	sent := 0
	for until := time.Now().Add(patience); !stuck(); {
		sentBefore := sent
		for i := range slots {
			// A slot is free when its answer is about to be sent: who guesses right is not
			// refused.
			if h.server.slots[i].busy.Load() {
				continue
			}
			_, err := h.sock.Write(packet(request{op: opFlush, slot: i}))
			must(t, err)
			within(t, asked)
			sent++
		}
		if sent == sentBefore {
			time.Sleep(time.Millisecond) // for workers that have yet to bring their answers
		}
		if time.Now().After(until) {
			t.Fatalf("after %d requests it waits for nothing", sent)
		}
	}
	if d.Requests() != sent {
		t.Errorf("%d requests done of %d", d.Requests(), sent)
	}
	h.stop()
	must(t, h.ended(t))
}

// TestHangsUp: an empty packet, and the end, are the client's end.
func TestHangsUp(t *testing.T) {
	h := takenOver(t, diskwiretest.NewRAM(diskBytes), Options{})
	must(t, unix.Shutdown(int(h.sock.Fd()), unix.SHUT_WR))
	must(t, h.ended(t))
	_ = unix.SetNonblock(int(h.sock.Fd()), true)
	b := make([]byte, 64)
	for {
		_, err := h.sock.Read(b)
		if errors.Is(err, io.EOF) {
			return
		}
		must(t, err)
	}
}

// FuzzServer: whatever packets a client sends, its server does what is in range or ends, and
// nothing else changes.
func FuzzServer(f *testing.F) {
	f.Add(packet(request{op: opWrite, n: 512}, request{op: opRead, slot: 1, off: 512, n: 1024}), byte(1))
	f.Add(packet(request{op: opCompareAndWrite, n: 512, flags: block.FUA}, request{op: opFlush, slot: 3}), byte(24))
	f.Add(packet(request{op: opTrim, n: 1 << 40}, request{op: opZero, slot: 2, off: 4096, n: 4096}), byte(48))
	f.Add(packet(request{op: opRead, slot: 7, n: 512}), byte(3))
	f.Add([]byte{1}, byte(0))
	f.Fuzz(func(t *testing.T, b []byte, cut byte) {
		d := diskwiretest.NewRAM(64 << 10)
		d.Before = func(r diskwiretest.Request) error {
			if r.N == 0 && r.Op != diskwiretest.Flush || r.N > 64<<10 {
				t.Errorf("the device was asked for %+v", r)
			}
			return nil
		}
		h := takenOver(t, d, Options{Slots: 4})
		for len(b) > 0 {
			n := min(len(b), max(int(cut), 1))
			if _, err := h.sock.Write(b[:n]); errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			b = b[n:]
		}
		must(t, unix.Shutdown(int(h.sock.Fd()), unix.SHUT_WR))
		if err := h.ended(t); err != nil && !fault.Is(err, fault.Invalid) {
			t.Error(err)
		}
	})
}

// FuzzClient: whatever a server says, its client ends, or goes on.
func FuzzClient(f *testing.F) {
	say := func(list ...answer) []byte {
		b := make([]byte, len(list)*answerBytes)
		for i, a := range list {
			a.put(b[i*answerBytes:])
		}
		return b
	}
	f.Add(say(answer{says: saysSize, value: 1 << 20}))
	f.Add(say(answer{says: saysSize, value: 1 << 20}, answer{says: saysAnswer, slot: 0}))
	f.Add(say(answer{says: saysAnswer, slot: 1, status: 3, text: textMax}))
	f.Add(say(answer{says: saysSize, value: -1}))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &Client{mem: make([]byte, 2*SlotBytes), flying: []bool{true, true}, done: []chan answer{make(chan answer, 1), make(chan answer, 1)}}
		err := c.take(b, func() {})
		if err != nil && !fault.Is(err, fault.Internal) {
			t.Error(err)
		}
		for i, flying := range c.flying {
			if !flying {
				if _, err := c.wait(i); err != nil && int(fault.KindOf(err)) >= len(fault.Kinds()) {
					t.Error(err)
				}
			}
		}
		if err == nil && len(b)%answerBytes != 0 || c.Size() < 0 {
			t.Errorf("%x was taken", b)
		}
	})
}
