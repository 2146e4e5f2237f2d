package machine

import "steadfast/compute/virtio"

// NetTakes tells whether a network card has room for a frame of so many bytes now, or
// none that is worth waiting for. It changes nothing: who delivers frames asks it to
// deliver them no faster than the guest takes them.
func (m *Machine) NetTakes(card, size int) bool {
	n, ok := m.parts[m.NetPort(card)].Device.(*virtio.Net)
	return !ok || n.Takes(size)
}
