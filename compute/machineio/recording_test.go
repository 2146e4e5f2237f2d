package machineio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"steadfast/block"
	"steadfast/compute/device"
	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/memory"
	"steadfast/fault"
)

// recorded is a recording of a life in which x, y and z were typed.
func recorded(t *testing.T) (state, log string, end uint64) {
	t.Helper()
	dir := t.TempDir()
	state, log = filepath.Join(dir, "state"), filepath.Join(dir, "log")
	m := newObey(t)
	f, err := os.Create(state)
	must(t, err)
	must(t, m.Save(f))
	must(t, f.Close())
	f, err = os.Create(log)
	must(t, err)
	w, err := machine.NewLog(f)
	must(t, err)
	said := &heardOf{want: make(chan string, 16)}
	l, err := New(m, Options{Disks: []block.Device{noDisk{}}, Wires: []Wire{nil}, Serial: said, Log: w, HashEvery: 5000})
	must(t, err)
	_, ended := lives(t, l)
	for _, key := range []string{"x", "y", "z"} {
		l.Type([]byte(key))
		for got := ""; !strings.Contains(got, key); {
			got += within(t, said.want)
		}
	}
	l.Type([]byte{machinetest.ObeyPowerOff})
	within(t, ended)
	must(t, f.Close())
	return state, log, m.Count()
}

// heardOf tells what is written.
type heardOf struct{ want chan string }

func (h *heardOf) Write(p []byte) (int, error) {
	h.want <- string(p)
	return len(p), nil
}

func opened(t *testing.T, state, log string) *Recording {
	t.Helper()
	r, err := OpenRecording(state, log)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

// TestRecording: a recording is replayed to its end, says the same, and can be stopped,
// saved and gone on with in between.
func TestRecording(t *testing.T) {
	state, log, end := recorded(t)
	r := opened(t, state, log)
	if c := r.Contents; !c.Whole || c.Damage != nil || c.Last != end || c.Inputs < 4 || len(c.Digests) < 2 {
		t.Fatalf("%+v of a life to %d", c, end)
	}
	var said strings.Builder
	out := func(o device.Output) {
		if o.Port == machine.PortSerial {
			said.Write(o.Data)
		}
	}
	half := r.Contents.Digests[len(r.Contents.Digests)/2]
	must(t, r.Run(t.Context(), half, out, nil))
	if r.Machine.Count() != half {
		t.Fatalf("stopped at %d instead of %d", r.Machine.Count(), half)
	}
	saved := filepath.Join(t.TempDir(), "saved")
	f, err := os.Create(saved)
	must(t, err)
	must(t, r.Machine.Save(f))
	must(t, f.Close())
	must(t, r.Run(t.Context(), 1<<64-1, out, nil))
	if r.Machine.Count() != end || r.Machine.End() != machine.PoweredOff || said.String() != "up\nxyz" || r.Compared() != uint64(len(r.Contents.Digests)) {
		t.Errorf("at %d of %d, %v, said %q, %d digests", r.Machine.Count(), end, r.Machine.End(), said.String(), r.Compared())
	}
	late := opened(t, saved, log)
	must(t, late.Run(t.Context(), 1<<64-1, nil, nil))
	if late.Machine.Count() != end || late.Compared() == 0 {
		t.Errorf("from %d: at %d, %d digests", half, late.Machine.Count(), late.Compared())
	}
}

// rewrite copies a log, entry by entry as change has it; the end is left out if it says so.
func rewrite(t *testing.T, log string, change func(e *machine.Entry) bool) string {
	t.Helper()
	b, err := os.ReadFile(log)
	must(t, err)
	r, err := machine.ReadLog(bytes.NewReader(b))
	must(t, err)
	var out bytes.Buffer
	w, err := machine.NewLog(&out)
	must(t, err)
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		switch {
		case !change(&e):
		case e.Input != nil:
			must(t, w.Input(e.Input))
		case e.Hash != nil:
			must(t, w.Hash(e.At, *e.Hash))
		default:
			must(t, w.End(e.At))
		}
	}
	must(t, w.Flush())
	name := filepath.Join(t.TempDir(), "log")
	must(t, os.WriteFile(name, out.Bytes(), 0o600))
	return name
}

// TestDiverged: where a replay is not what was recorded is told to within two digests.
func TestDiverged(t *testing.T) {
	state, log, _ := recorded(t)
	var changed uint64
	bad := rewrite(t, log, func(e *machine.Entry) bool {
		if e.Input != nil && string(e.Input.Data) == "y" {
			// Sent is sent: another echo might be forgotten by the next digest.
			e.Input.Data, changed = []byte{machinetest.ObeySend}, e.At
		}
		return true
	})
	r := opened(t, state, bad)
	err := r.Run(t.Context(), 1<<64-1, nil, nil)
	var d *Diverged
	if !errors.As(err, &d) || d.After > changed || d.Before < changed {
		t.Fatalf("changed at %d: %v", changed, err)
	}
	for _, at := range r.Contents.Digests {
		if at > d.After && at < d.Before {
			t.Errorf("a digest at %d is between %d and %d", at, d.After, d.Before)
		}
	}
}

// TestTornRecording: a log without an end is replayed as far as it goes, and a damaged one
// to the damage, which is told.
func TestTornRecording(t *testing.T) {
	state, log, end := recorded(t)
	whole, err := os.ReadFile(log)
	must(t, err)
	torn := filepath.Join(t.TempDir(), "torn")
	must(t, os.WriteFile(torn, whole[:len(whole)-12], 0o600))
	r := opened(t, state, torn)
	must(t, r.Run(t.Context(), 1<<64-1, nil, nil))
	if c := r.Contents; c.Whole || c.Damage != nil || r.Machine.Count() != c.Last || c.Last > end {
		t.Errorf("at %d of %+v", r.Machine.Count(), c)
	}
	whole[len(whole)*2/3] ^= 1
	must(t, os.WriteFile(torn, whole, 0o600))
	r = opened(t, state, torn)
	if err := r.Run(t.Context(), 1<<64-1, nil, nil); !fault.Is(err, fault.Corrupt) || !fault.Is(r.Contents.Damage, fault.Corrupt) {
		t.Errorf("a damaged log: %v, %+v", err, r.Contents)
	}
	for name, c := range map[string]struct {
		state, log string
		kind       fault.Kind
	}{
		"no log":   {state, log + "x", fault.NotFound},
		"no state": {state + "x", log, fault.NotFound},
		"a state":  {log, log, fault.Corrupt},
		"a log":    {state, state, fault.Corrupt},
	} {
		if r, err := OpenRecording(c.state, c.log); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
}

// TestPrint: registers and code are those of the machine.
func TestPrint(t *testing.T) {
	m := newObey(t)
	var b strings.Builder
	must(t, PrintState(&b, m))
	for _, want := range []string{"count     0\n", "mode      S\n", "pc        0000000080200000", "a0        0000000000000000", fmt.Sprintf("digest    %x\n", m.Hash())} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	b.Reset()
	must(t, PrintDisassembly(&b, m))
	if !strings.Contains(b.String(), "=> 0000000080200000  0400006f  ") {
		t.Errorf("at the beginning:\n%s", b.String())
	}
	m.Run(3) // the jump, and the first half of a constant
	before := m.Hash()
	b.Reset()
	must(t, PrintDisassembly(&b, m))
	for _, want := range []string{"   0000000080200040  10000a37  lui s4,0x10000\n", "=> 0000000080200048"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if m.Hash() != before {
		t.Error("to look at it has changed the machine")
	}
}

// TestTranslator: addresses are translated as Sv39 has it, with pages of three sizes.
func TestTranslator(t *testing.T) {
	const base = 0x8000_0000
	ram, err := memory.New(base, 1<<20)
	must(t, err)
	defer func() { must(t, ram.Release()) }()
	entry := func(table, i, target, flags uint64) {
		ram.Write(binary.LittleEndian.AppendUint64(nil, target>>12<<10|flags|1), table+8*i)
	}
	const rwx = 2 | 4 | 8
	entry(base, 511, base+0x1000, 0)
	entry(base+0x1000, 5, base+0x2000, 0)
	entry(base+0x2000, 7, base+0x5000, rwx)
	entry(base+0x1000, 6, base, rwx)
	entry(base, 2, base, rwx)
	tr := translator{ram: ram, satp: 8<<60 | base>>12, mode: 1}
	const top = 0xffff_ffc0_0000_0000 | 511<<30
	for virtual, want := range map[uint64]uint64{
		top | 5<<21 | 7<<12 | 0x123: base + 0x5123,
		top | 6<<21 | 0x12345:       base + 0x12345,
		0x8000_4321:                 base + 0x4321,
	} {
		if got, ok := tr.physical(virtual); !ok || got != want {
			t.Errorf("%x: %x, %v; want %x", virtual, got, ok, want)
		}
	}
	for _, virtual := range []uint64{0, top, top | 5<<21, 1 << 39, 1 << 63} {
		if got, ok := tr.physical(virtual); ok {
			t.Errorf("%x: %x", virtual, got)
		}
	}
	tr.satp = 0
	if got, ok := tr.physical(base + 5); !ok || got != base+5 {
		t.Error("without a table:", got, ok)
	}
}
