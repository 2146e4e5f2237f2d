package machine

import (
	"bytes"
	"strings"
	"testing"

	"steadfast/compute/device"
	"steadfast/compute/devices"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/virtio"
)

// TestObey: the guest that other packages' tests stand on does what it says.
func TestObey(t *testing.T) {
	m, err := New(guestConfig())
	must(t, err)
	t.Cleanup(func() { must(t, m.Release()) })
	must(t, m.Load(machinetest.Obey(), nil))
	var said strings.Builder
	var frames [][]byte
	sector := bytes.Repeat([]byte("SECTOR0 "), 64)
	var written []byte
	run := func() {
		for range 20 {
			m.Run(m.Count() + 20_000)
			for _, o := range m.Outputs() {
				done := device.Input{At: m.Count(), Port: o.Port, Kind: virtio.BlockDone, ID: o.ID}
				switch o.Port {
				case PortSerial:
					said.Write(o.Data)
				case m.NetPort(0):
					frames = append(frames, o.Data)
				case m.DiskPort(0):
					if o.Kind&^virtio.BlockStable == virtio.BlockRead {
						done.Data = sector
					} else {
						written = o.Data
					}
					must(t, m.Deliver(&done))
				}
			}
		}
	}
	typed := func(s string) {
		must(t, m.Deliver(&device.Input{At: m.Count(), Port: PortSerial, Kind: devices.UARTData, Data: []byte(s)}))
		run()
	}
	run()
	typed("xdn")
	must(t, m.Deliver(&device.Input{At: m.Count(), Port: m.NetPort(0), Kind: virtio.NetFrame, Data: []byte("dstdstsrcsrc\x88\xb5pong")}))
	run()
	if want := "up\nxSECTOR0 ok\npong"; said.String() != want || !bytes.Equal(written, sector) {
		t.Fatalf("%q, wrote %q", said.String(), written)
	}
	if len(frames) != 1 || !bytes.Equal(frames[0], machinetest.ObeyFrame()) {
		t.Fatalf("%q", frames)
	}
	must(t, m.Deliver(&device.Input{At: m.Count(), Port: m.ButtonPort(), Kind: virtio.ButtonPress}))
	run()
	if !strings.HasSuffix(said.String(), "bye\n") || m.End() != PoweredOff {
		t.Fatalf("%q, %v", said.String(), m.End())
	}
}

// TestObeyLong: it goes on when the disk's ring has counted to 65535.
func TestObeyLong(t *testing.T) {
	m, err := New(guestConfig())
	must(t, err)
	t.Cleanup(func() { must(t, m.Release()) })
	must(t, m.Load(machinetest.Obey(), nil))
	sector := make([]byte, 512)
	const requests = 1<<16 + 2 // a read and a write each time
	for written := 0; written < requests/2; written++ {
		must(t, m.Deliver(&device.Input{At: m.Count(), Port: PortSerial, Kind: devices.UARTData, Data: []byte{machinetest.ObeyDisk}}))
		for done, turns := false, 0; !done; turns++ {
			if turns == 1000 {
				t.Fatalf("it stands still after %d writes", written)
			}
			m.RunBusy(m.Count() + 500)
			for _, o := range m.Outputs() {
				if o.Port != m.DiskPort(0) {
					continue
				}
				in := device.Input{At: m.Count(), Port: o.Port, Kind: virtio.BlockDone, ID: o.ID}
				if done = o.Kind&^virtio.BlockStable != virtio.BlockRead; !done {
					in.Data = sector
				}
				must(t, m.Deliver(&in))
			}
		}
	}
}
