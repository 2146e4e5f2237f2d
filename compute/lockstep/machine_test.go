package lockstep

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"steadfast/compute/device"
	"steadfast/compute/devices"
	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/virtio"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// twin is two real machines in lockstep, each with its core, and one stream with its codec
// between them; a disk, and what was seen outside.
type twin struct {
	t    *testing.T
	rng  *rand.Rand
	now  Instant
	m    [2]*machine.Machine
	p    *Primary
	s    *Secondary
	w    *Writer
	wire bytes.Buffer // to the secondary
	r    *Reader
	back []Message // to the primary
	todo []Execute

	number uint64 // of the primary's next output
	said   map[uint64]string
	emits  map[uint64]string // what the secondary's machine emitted
	snum   uint64
	due    []device.Input // answers of the disk
	sector []byte
	wrote  []byte
	live   bool // the secondary's machine
}

func outs(m *machine.Machine, list []device.Output) (out []Out) {
	for _, o := range list {
		c := Stream
		switch {
		case o.Port == m.EntropyPort(), o.Port == m.DiskPort(0) && o.Kind == virtio.BlockRead:
			c = Ask
		case o.Port == m.DiskPort(0):
			c = Change
		}
		out = append(out, Out{Class: c, Output: o})
	}
	return out
}

func text(o device.Output) string {
	return fmt.Sprintf("%d port %d kind %d id %d at %d: %q", o.At, o.Port, o.Kind, o.ID, o.Offset, o.Data)
}

// leave has an output take effect; the disk answers later. Of reads nobody sees anything: one
// that was asked for beyond the last horizon is none of the secondary's.
func (w *twin) leave(o Out) {
	if o.Class == Ask {
		w.issue(o)
		return
	}
	if was, ok := w.said[o.Number]; ok && was != text(o.Output) {
		w.t.Fatalf("output %d was %s, and is %s", o.Number, was, text(o.Output))
	}
	w.said[o.Number] = text(o.Output)
	w.issue(o)
}

func (w *twin) issue(o Out) {
	if o.Class == Stream {
		return
	}
	in := device.Input{Port: o.Port, Kind: virtio.BlockDone, ID: o.ID}
	switch {
	case o.Class == Ask:
		in.Data = w.sector
	case o.Kind&^virtio.BlockStable == virtio.BlockWrite:
		w.wrote = o.Data
	}
	w.due = append(w.due, in)
}

// primary gives the primary's core an input.
func (w *twin) primary(in Input) {
	for _, e := range w.p.Step(w.now, in) {
		switch e := e.(type) {
		case Release:
			for _, o := range e.Outputs {
				w.leave(o)
			}
		case Send:
			if e.Link == Logging && w.s != nil {
				b, err := w.w.Append(nil, e.Message)
				if err != nil {
					w.t.Fatal(err)
				}
				w.wire.Write(b)
			}
		case ChangeLock:
			if e.Partner != ownerS {
				w.t.Fatalf("the lock is asked for %v", e.Partner)
			}
			w.primary(LockChanged{lockBlock(1, ownerP, ownerS)})
		}
	}
}

// secondary gives the other one's an input.
func (w *twin) secondary(in Input) {
	if w.s.State() == IsLive {
		return
	}
	for _, e := range w.s.Step(w.now, in) {
		switch e := e.(type) {
		case Send:
			if e.Link == Logging {
				w.back = append(w.back, e.Message)
			}
		case Execute:
			w.todo = append(w.todo, e)
		case TakeLock:
			w.secondary(LockChanged{lockBlock(2, ownerS, vmlock.Owner{})})
		case Halt:
			w.t.Fatalf("the secondary halts: %v %v", e.Why, e.Err)
		case GoLive:
			w.goLive(e)
		}
	}
}

func (w *twin) goLive(e GoLive) {
	w.live, w.due, w.number = true, nil, e.Next
	for _, o := range outs(w.m[1], w.m[1].Pending()) {
		w.issue(o)
	}
	for _, o := range e.Streams {
		w.leave(o)
	}
	w.p = NewPrimary(PrimaryConfig{Limits: DefaultLimits(), Count: w.m[1].Count(), Next: e.Next}, w.now)
	w.m[0], w.s = w.m[1], nil
}

// execute does some records at the secondary.
func (w *twin) execute(n int) {
	for ; n > 0 && len(w.todo) > 0 && w.s != nil; n-- {
		e := w.todo[0]
		w.todo = w.todo[1:]
		m := w.m[1]
		run := func(to uint64) {
			for m.Count() < to && m.Run(to) == machine.StopSpent {
				continue
			}
		}
		var differs error
		switch r := e.Record.(type) {
		case Entry:
			run(r.In.At)
			differs = m.Deliver(r.In)
		case Horizon:
			run(r.Count)
		case Digest:
			run(r.Count)
			if m.Hash() != r.Hash {
				differs = fault.New(fault.Invalid, "another machine at %d", r.Count)
			}
		}
		if differs != nil {
			w.t.Fatal(differs)
		}
		list := outs(m, m.Outputs())
		for _, o := range list {
			w.emits[w.snum] = text(o.Output)
			w.snum++
		}
		w.secondary(Executed{e.Seq, m.Count(), list})
	}
}

// deliver gives the running machine an input.
func (w *twin) deliver(in device.Input) {
	m := w.m[0]
	in.At = m.Count()
	if err := m.Deliver(&in); err != nil {
		w.t.Fatal(err)
	}
	w.primary(Delivered{&in})
}

// turn has the running machine go on for a while, with what comes in.
func (w *twin) turn() {
	m := w.m[0]
	w.now += Instant(time.Millisecond)
	if len(w.due) > 0 && w.rng.IntN(3) == 0 {
		in := w.due[0]
		w.due = w.due[1:]
		w.deliver(in)
	}
	switch w.rng.IntN(6) {
	case 0:
		w.deliver(device.Input{Port: machine.PortSerial, Kind: devices.UARTData, Data: []byte{"xdn"[w.rng.IntN(3)]}})
	case 1:
		w.deliver(device.Input{Port: m.NetPort(0), Kind: virtio.NetFrame, Data: []byte("dstdstsrcsrc\x88\xb5pong")})
	case 2:
		w.deliver(device.Input{Kind: machine.ClockRate, ID: machine.RateMin*50 + w.rng.Uint64N(machine.RateOne*20)})
	}
	m.Run(m.Count() + 1 + w.rng.Uint64N(3000))
	w.primary(Ran{m.Count(), outs(m, m.Outputs())})
	if w.s != nil && w.rng.IntN(8) == 0 {
		w.primary(Hashed{Count: m.Count(), Hash: m.Hash()})
	}
	w.primary(Tick{})
}

// exchange has the secondary read and do some, and the primary hear of it.
func (w *twin) exchange() {
	for w.wire.Len() > 0 && w.rng.IntN(4) > 0 {
		m, err := w.r.Next()
		if err != nil {
			w.t.Fatal(err)
		}
		w.secondary(Received{Logging, []Message{m}})
	}
	w.execute(w.rng.IntN(4))
	if w.rng.IntN(2) == 0 && len(w.back) > 0 {
		list := w.back
		w.back = nil
		w.primary(Received{Logging, list})
	}
	w.secondary(Tick{})
}

// turnOn copies the machine.
func (w *twin) turnOn() {
	var head []byte
	w.w, head = NewWriter(Head{})
	w.wire.Write(head)
	w.primary(TurnOn{ownerS})
	w.primary(Copied{Bytes: 1 << 20, Left: 0})
	m := w.m[0]
	w.primary(Paused{})
	var state bytes.Buffer
	if err := m.Save(&state); err != nil {
		w.t.Fatal(err)
	}
	for part := range slices.Chunk(state.Bytes(), PartMax) {
		b, err := w.w.Append(nil, Part{part})
		if err != nil {
			w.t.Fatal(err)
		}
		w.wire.Write(b)
	}
	b, err := w.w.Append(nil, Start{m.Count(), w.p.next, m.Hash()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.wire.Write(b)
	w.s = NewSecondary(SecondaryConfig{Limits: DefaultLimits(), Me: ownerS}, w.now)
	w.primary(StateSent{})
	if w.r, err = NewReader(&w.wire); err != nil {
		w.t.Fatal(err)
	}
	var got bytes.Buffer
	for w.m[1] == nil {
		m, err := w.r.Next()
		if err != nil {
			w.t.Fatal(err)
		}
		w.secondary(Received{Logging, []Message{m}})
		switch m := m.(type) {
		case Part:
			got.Write(m.Data)
		case Start:
			if w.m[1], err = machine.Restore(&got); err != nil || w.m[1].Hash() != m.Hash {
				w.t.Fatalf("the copy: %v", err)
			}
			w.t.Cleanup(func() { _ = w.m[1].Release() })
			w.snum = m.Output
		}
	}
	w.secondary(Loaded{})
}

// TestMachines: a real machine and its secondary are one, over the stream, and when the first one
// dies at any moment, what is seen outside is as if it had not.
func TestMachines(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		w := &twin{t: t, rng: rand.New(rand.NewPCG(seed, 5)), now: 1, said: map[uint64]string{}, emits: map[uint64]string{}, sector: bytes.Repeat([]byte("SECTOR0 "), 64)}
		m, err := machine.New(machine.Config{
			Memory: machinetest.ObeyMemory, Disks: []machine.Disk{{Size: 1 << 20}}, Nets: []machine.Net{{MAC: [6]byte{2}}}, Seed: bytes.Repeat([]byte{3}, 32),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Release() })
		if err := m.Load(machinetest.Obey(), nil); err != nil {
			t.Fatal(err)
		}
		w.m[0] = m
		w.p = NewPrimary(PrimaryConfig{Limits: DefaultLimits(), Next: 1}, w.now)
		for range 40 {
			w.turn()
		}
		w.turnOn()
		for range 100 + w.rng.IntN(200) {
			w.turn()
			w.exchange()
		}
		if !w.p.Protected() {
			t.Fatalf("seed %d: it is not protected: %v", seed, w.p.State())
		}
		// The host dies. Of what is under way some still arrives, as it is.
		for w.wire.Len() > 0 && w.rng.IntN(3) > 0 {
			m, err := w.r.Next()
			if err != nil {
				t.Fatal(err)
			}
			w.secondary(Received{Logging, []Message{m}})
		}
		w.secondary(Gone{})
		w.execute(1 << 30)
		if !w.live {
			t.Fatalf("seed %d: it does not go on", seed)
		}
		for n, is := range w.emits {
			if was, ok := w.said[n]; ok && was != is {
				t.Fatalf("seed %d: output %d was %s, and the secondary has %s", seed, n, was, is)
			}
		}
		for range 200 {
			w.turn()
		}
		w.judge(seed)
	}
}

// judge holds that everything was said, and that what the guest asked the disk for was answered.
func (w *twin) judge(seed uint64) {
	for w.turns(40); len(w.due) > 0; w.turns(40) {
		continue
	}
	var all strings.Builder
	disk := fmt.Sprintf(" port %d ", w.m[0].DiskPort(0))
	for n := uint64(1); n < w.number; n++ {
		is, ok := w.said[n]
		if is, emitted := w.emits[n]; emitted && !ok && !strings.Contains(is, disk) {
			w.t.Fatalf("seed %d: output %d has never left: %s", seed, n, is)
		}
		if strings.Contains(is, fmt.Sprintf(" port %d ", machine.PortSerial)) {
			all.WriteString(is[strings.Index(is, `"`):])
		}
	}
	said := strings.ReplaceAll(all.String(), `"`, "")
	if strings.Count(said, "SECTOR0") < 5 || strings.Count(said, "pong") < 5 {
		w.t.Fatalf("seed %d: %s", seed, said)
	}
	if !bytes.Equal(w.wrote, w.sector) || len(w.m[0].Pending()) > 0 {
		w.t.Fatalf("seed %d: wrote %q, and %d requests are not answered", seed, w.wrote, len(w.m[0].Pending()))
	}
}

// turns lets the machine run, and gives it what the disk answers, and nothing else.
func (w *twin) turns(n int) {
	for range n {
		w.now += Instant(time.Millisecond)
		if len(w.due) > 0 {
			in := w.due[0]
			w.due = w.due[1:]
			w.deliver(in)
		}
		m := w.m[0]
		m.Run(m.Count() + 3000)
		w.primary(Ran{m.Count(), outs(m, m.Outputs())})
	}
	w.number = w.p.next
}
