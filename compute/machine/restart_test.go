package machine

import (
	"bytes"
	"strings"
	"testing"

	"steadfast/compute/device"
	"steadfast/compute/devices"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/virtio"
	"steadfast/fault"
)

func reloadObey() (kernel, initrd []byte, err error) { return machinetest.Obey(), nil, nil }

func obeyMachine(t *testing.T) *Machine {
	t.Helper()
	m, err := New(guestConfig())
	must(t, err)
	t.Cleanup(func() { must(t, m.Release()) })
	m.Reload = reloadObey
	must(t, m.Load(machinetest.Obey(), nil))
	return m
}

// recordRestarts records a guest that restarts twice, and uses its disk in between; state
// is of the life between the two.
func recordRestarts(t *testing.T) (m *Machine, log []byte, said string, state []byte) {
	m = obeyMachine(t)
	var b, middle bytes.Buffer
	var out strings.Builder
	w, err := NewLog(&b)
	must(t, err)
	deliver := func(in device.Input) {
		t.Helper()
		in.At = m.Count()
		must(t, w.Input(&in))
		must(t, m.Deliver(&in))
	}
	run := func() {
		t.Helper()
		for range 10 {
			m.Run(m.Count() + 20_000)
			for _, o := range m.Outputs() {
				switch o.Port {
				case PortSerial:
					out.Write(o.Data)
				case m.DiskPort(0):
					deliver(device.Input{Port: o.Port, Kind: virtio.BlockDone, ID: o.ID, Data: bytes.Repeat([]byte("01234567"), int(o.Length)/8)})
				}
			}
		}
		must(t, w.Hash(m.Count(), m.Hash()))
		if m.Hash() != m.HashAnew() {
			t.Fatal("the digest that was kept is not that of the memory")
		}
	}
	typed := func(s string) {
		t.Helper()
		deliver(device.Input{Port: PortSerial, Kind: devices.UARTData, Data: []byte(s)})
		run()
	}
	restart := func(seed byte) {
		t.Helper()
		if m.End() != Restarts {
			t.Fatalf("it does not restart: %v, %q", m.End(), out.String())
		}
		now := m.Now()
		deliver(device.Input{Kind: Restart, Data: bytes.Repeat([]byte{seed}, 32)})
		if m.End() != Running || m.Now() != now {
			t.Fatalf("after a restart: %v, the time is %d and was %d", m.End(), m.Now(), now)
		}
		if seeded := bytes.Contains(m.RAM().Bytes(), bytes.Repeat([]byte{seed}, 32)); !seeded {
			t.Error("the guest's seed is not the new one")
		}
		if bytes.Contains(m.RAM().Bytes(), bytes.Repeat([]byte{seed - 1}, 32)) {
			t.Error("the guest's old seed is still in its memory")
		}
		run()
	}
	run()
	typed("xr")
	restart(4)
	must(t, m.Save(&middle))
	typed("d")
	typed("yr")
	restart(5)
	typed("dzq")
	must(t, w.End(m.Count()))
	return m, b.Bytes(), out.String(), middle.Bytes()
}

// TestRestart: a guest that restarts goes on in the same log, with a count and a time
// that go on, too, as a guest that has just begun; it does so again from the log, from the
// beginning and from a state between two restarts.
func TestRestart(t *testing.T) {
	m, log, said, state := recordRestarts(t)
	if want := "up\nxup\n01234567ok\nyup\n01234567ok\nz"; said != want || m.End() != PoweredOff {
		t.Fatalf("it says %q, and is %v", said, m.End())
	}
	middle, err := Restore(bytes.NewReader(state))
	must(t, err)
	t.Cleanup(func() { must(t, middle.Release()) })
	middle.Reload = reloadObey
	for name, again := range map[string]*Machine{"the beginning": obeyMachine(t), "the middle": middle} {
		l, err := ReadLog(bytes.NewReader(log))
		must(t, err)
		r, err := NewReplay(again, l)
		must(t, err)
		for !r.Done() {
			must(t, r.Run(again.Count()+7777))
		}
		if r.Compared < 3 || again.Count() != m.Count() || again.End() != PoweredOff {
			t.Errorf("from %s: %d digests, at %d of %d, %v", name, r.Compared, again.Count(), m.Count(), again.End())
		}
	}
	again := obeyMachine(t)
	again.Reload = nil
	l, err := ReadLog(bytes.NewReader(log))
	must(t, err)
	r, err := NewReplay(again, l)
	must(t, err)
	if err := r.Run(never); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "restarts") {
		t.Errorf("without a kernel: %v", err)
	}
}
