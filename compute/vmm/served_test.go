package vmm

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"steadfast/block"
	"steadfast/compute/diskwire/diskwiretest"
	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
	"steadfast/fault"
)

// servedDisk is a RAM disk with a first sector.
func servedDisk(t *testing.T, size int64) *diskwiretest.RAM {
	t.Helper()
	d := diskwiretest.NewRAM(size)
	sector := make([]byte, block.SectorSize)
	copy(sector, "SECTOR0 and more")
	must(t, d.WriteAt(sector, 0, 0))
	return d
}

// serving are Options for machinetest.Obey on a device.
func serving(t *testing.T, d block.Device, space func(error)) Options {
	t.Helper()
	o := obey(t)
	o.Disks = []Disk{{Device: d, Space: space}}
	return o
}

// second is what the second sector begins with: the guest's work.
func second(t *testing.T, d *diskwiretest.RAM) string {
	t.Helper()
	p := make([]byte, block.SectorSize)
	must(t, d.ReadAt(p, block.SectorSize))
	return string(bytes.TrimRight(p, "\x00"))
}

// closed waits for a channel's end.
func closed(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatal(what)
	}
}

// open tells that a channel has not ended.
func open(c <-chan struct{}) bool {
	select {
	case <-c:
		return false
	default:
		return true
	}
}

// TestServed: a guest reads and writes a disk that its process does not have; what it did is
// recorded and replays without it, and a state saved on the way goes on elsewhere with it.
func TestServed(t *testing.T) {
	d := servedDisk(t, diskBytes)
	d.Before = func(diskwiretest.Request) error {
		time.Sleep(rand.N(3 * time.Millisecond)) // as a network would
		return nil
	}
	o := serving(t, d, nil)
	o.Log, o.Save, o.HashEvery = testFile(t, "log", nil), testFile(t, "state", nil), 10_000
	p := begin(t, o)
	for range 20 {
		typed(t, p, "d")
		expect(t, p, "SECTOR0 ok\n")
	}
	if s := second(t, d); s != "SECTOR0 and more" {
		t.Errorf("the second sector is %q", s)
	}
	saved := testFile(t, "saved", nil)
	must(t, p.Save(t.Context(), saved))
	must(t, p.PressPower(t.Context()))
	expect(t, p, machinetest.ObeyBye)
	end := ends(t, p, machine.PoweredOff)
	closed(t, p.Drained(), "the disk is in use")

	rewind := func(f *os.File) *os.File {
		_, err := f.Seek(0, io.SeekStart)
		must(t, err)
		return f
	}
	m, err := machine.Restore(rewind(o.Save))
	must(t, err)
	defer func() { must(t, m.Release()) }()
	log, err := machine.ReadLog(rewind(o.Log))
	must(t, err)
	r, err := machine.NewReplay(m, log)
	must(t, err)
	must(t, r.Run(1<<64-1))
	if m.Count() != end.Count || m.End() != machine.PoweredOff || r.Compared == 0 {
		t.Errorf("ended at %d (%v) of %+v, %d digests", m.Count(), m.End(), end, r.Compared)
	}

	// Grown meanwhile: the guest is told.
	e := servedDisk(t, 2*diskBytes)
	q := begin(t, Options{State: rewind(saved), Disks: []Disk{{Device: e}}, Nets: 1})
	typed(t, q, "d")
	expect(t, q, "SECTOR0 ok\n")
	if s := second(t, e); s != "SECTOR0 and more" {
		t.Errorf("after the restore the second sector is %q", s)
	}
	must(t, q.Stop(t.Context()))
	ends(t, q, machine.Running)
	closed(t, q.Drained(), "the disk is in use")
}

// TestServedGrows: another size of a disk is an input of the machine's.
func TestServedGrows(t *testing.T) {
	d := servedDisk(t, diskBytes)
	p := begin(t, serving(t, d, nil))
	before, err := p.Status(t.Context())
	must(t, err)
	d.Grow(2 * diskBytes)
	must(t, p.Resized(0))
	for over := time.Now().Add(patience); ; {
		s, err := p.Status(t.Context())
		must(t, err)
		if s.Counters.Inputs > before.Counters.Inputs {
			break
		}
		if time.Now().After(over) {
			t.Fatal("the guest was told nothing")
		}
	}
	if err := p.Resized(1); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	must(t, p.Stop(t.Context()))
	ends(t, p, machine.Running)
}

// TestServedSmaller: a disk that is smaller than the machine's is refused, and a read-only
// one is not written to.
func TestServedSmaller(t *testing.T) {
	d := servedDisk(t, diskBytes/2)
	_, err := Start(t.Context(), serving(t, d, nil))
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "disk 0") {
		t.Error(err)
	}
	d = servedDisk(t, diskBytes)
	o := serving(t, d, nil)
	o.Disks[0].ReadOnly = true
	p := begin(t, o)
	typed(t, p, "d")
	expect(t, p, "SECTOR0 ok\n") // it does not look at the status
	if s := second(t, d); s != "" {
		t.Errorf("it has written %q", s)
	}
}

// spaceTold collects what a disk says of its space.
type spaceTold struct{ full, room chan struct{} }

func newSpaceTold() *spaceTold { return &spaceTold{make(chan struct{}), make(chan struct{})} }

func (s *spaceTold) told(err error) {
	if fault.Is(err, fault.Full) {
		close(s.full)
	} else if err == nil {
		close(s.room)
	}
}

// TestServedFull: a write that storage has no space for makes the guest wait and tells; there
// is status meanwhile, and when there is space the guest goes on.
func TestServedFull(t *testing.T) {
	d := servedDisk(t, diskBytes)
	var mu sync.Mutex
	full := true
	d.Before = func(r diskwiretest.Request) error {
		mu.Lock()
		defer mu.Unlock()
		if r.Op == diskwiretest.Write && full {
			return fault.New(fault.Full, "the pool is full")
		}
		return nil
	}
	space := newSpaceTold()
	p := begin(t, serving(t, d, space.told))
	typed(t, p, "d")
	expect(t, p, "SECTOR0 ")
	closed(t, space.full, "nobody is told that it is full")
	_, err := p.Status(t.Context())
	must(t, err)
	if !open(space.room) || second(t, d) != "" {
		t.Error("there is space")
	}
	mu.Lock()
	full = false
	mu.Unlock()
	expect(t, p, "ok\n")
	closed(t, space.room, "nobody is told that there is space")
	if s := second(t, d); s != "SECTOR0 and more" {
		t.Errorf("the second sector is %q", s)
	}
	must(t, p.Stop(t.Context()))
	ends(t, p, machine.Running)
}

// TestServedFullStops: a machine whose write is held for want of space can be stopped, and
// then nothing is held.
func TestServedFullStops(t *testing.T) {
	d := servedDisk(t, diskBytes)
	d.Before = func(r diskwiretest.Request) error {
		if r.Op == diskwiretest.Write {
			return fault.New(fault.Full, "the pool is full")
		}
		return nil
	}
	space := newSpaceTold()
	p := begin(t, serving(t, d, space.told))
	typed(t, p, "d")
	closed(t, space.full, "nobody is told that it is full")
	must(t, p.Stop(t.Context()))
	_ = p.Console.Close()
	ends(t, p, machine.Running)
	closed(t, p.Drained(), "a request is held")
	closed(t, space.room, "nobody is told that nothing is held")
}

// TestServedPauses: while its disk answers nothing a machine tells how it does, is saved, and is
// stopped; its disk is in use until what was asked has ended.
func TestServedPauses(t *testing.T) {
	d := servedDisk(t, diskBytes)
	let, held := make(chan struct{}), make(chan struct{})
	d.Before = func(r diskwiretest.Request) error {
		if r.Op == diskwiretest.Write {
			close(held)
			<-let
		}
		return nil
	}
	p := begin(t, serving(t, d, nil))
	typed(t, p, "d")
	expect(t, p, "SECTOR0 ")
	closed(t, held, "the disk is not asked")
	_, err := p.Status(t.Context())
	must(t, err)
	saved := testFile(t, "saved", nil)
	must(t, p.Save(t.Context(), saved))
	must(t, p.Stop(t.Context()))
	ends(t, p, machine.Running)
	if !open(p.Drained()) {
		t.Error("the disk is said to be free")
	}
	close(let)
	closed(t, p.Drained(), "the disk is in use")

	// What was under way is asked again, of whatever disk there is then.
	e := servedDisk(t, diskBytes)
	_, err = saved.Seek(0, io.SeekStart)
	must(t, err)
	q := begin(t, Options{State: saved, Disks: []Disk{{Device: e}}, Nets: 1})
	expect(t, q, "ok\n")
	if s := second(t, e); s != "SECTOR0 and more" {
		t.Errorf("the second sector is %q", s)
	}
	must(t, q.Stop(t.Context()))
	ends(t, q, machine.Running)
}

// TestServedFails: a disk that fails is the guest's to bear.
func TestServedFails(t *testing.T) {
	d := servedDisk(t, diskBytes)
	d.Before = func(r diskwiretest.Request) error { return fault.New(fault.Failed, "no drive") }
	p := begin(t, serving(t, d, nil))
	typed(t, p, "d")
	expect(t, p, "\x00\x00\x00\x00\x00\x00\x00\x00ok\n")
	typed(t, p, "x")
	expect(t, p, "x")
	must(t, p.Stop(t.Context()))
	ends(t, p, machine.Running)
}

// TestServedTakenOver: a process that asks its disk for what none does is killed for it.
func TestServedTakenOver(t *testing.T) {
	p := newProcess()
	must(t, p.begin("disk"))
	d := diskwiretest.NewRAM(diskBytes)
	err := p.start(t.Context(), Options{Config: obeyConfig(), Disks: []Disk{{Device: d}}})
	go p.drain()
	t.Cleanup(func() { must(t, p.Close()) })
	if !fault.Is(err, fault.Internal) {
		t.Errorf("its start: %v", err)
	}
	exits(t, p)
	closed(t, p.Drained(), "the disk is in use")
	if _, err := p.Wait(); !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "killed, for it has sent") {
		t.Error(err)
	}
	if d.Requests() != 0 {
		t.Errorf("the disk was asked %d times", d.Requests())
	}
}

// hostileDisk is a process that asks its disk for what there is not.
func hostileDisk(c control) {
	_, files, err := c.receive()
	if err != nil || len(files) < 2 {
		return
	}
	_, _ = files[0].Write(bytes.Repeat([]byte{0xff}, 24)) // the parent's to notice
	forever()
}

// TestServedBad: a request to start with a disk that is half there is refused.
func TestServedBad(t *testing.T) {
	for _, roles := range [][]string{{roleServed}, {roleServed, roleDisk}, {roleDisk, roleServed}} {
		if _, err := newKit(roles, make([]*os.File, len(roles))); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", roles, err)
		}
	}
	k, err := newKit([]string{roleServed, roleServed, roleDisk, roleServed, roleServed}, make([]*os.File, 5))
	if err != nil || len(k.disks) != 3 || len(k.disks[1]) != 1 || len(k.disks[2]) != 2 {
		t.Errorf("%+v, %v", k, err)
	}
}
