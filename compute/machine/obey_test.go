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
