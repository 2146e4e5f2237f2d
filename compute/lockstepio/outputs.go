package lockstepio

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"

	"steadfast/compute/device"
	"steadfast/compute/lockstep"
	"steadfast/compute/machine"
	"steadfast/compute/memory"
	"steadfast/compute/virtio"
)

// ports tells what an output is.
type ports struct{ disks, nets, entropy device.Port }

func portsOf(m *machine.Machine) ports {
	return ports{m.DiskPort(0), m.NetPort(0), m.EntropyPort()}
}

// classify makes outputs ready for a core.
func (p ports) classify(list []device.Output) []lockstep.Out {
	if len(list) == 0 {
		return nil
	}
	out := make([]lockstep.Out, len(list))
	for i, o := range list {
		class := lockstep.Stream
		switch {
		case o.Port == p.entropy, o.Port >= p.disks && o.Port < p.nets && o.Kind == virtio.BlockRead:
			class = lockstep.Ask
		case o.Port >= p.disks && o.Port < p.nets:
			class = lockstep.Change
		}
		out[i] = lockstep.Out{Class: class, Output: o}
	}
	return out
}

func plain(list []lockstep.Out) []device.Output {
	out := make([]device.Output, len(list))
	for i, o := range list {
		out[i] = o.Output
	}
	return out
}

// stripePages is how many pages a stripe has.
const stripePages = 1024

// stripes is how many stripes a machine's memory has.
func stripes(m *machine.Machine) uint32 { return (m.RAM().Pages() + stripePages - 1) / stripePages }

// stripe is a digest of one stripe of the memory, from 1, as it is: a machine's own digest
// goes by what was stored to, and memory can change by itself. It is of a machine whose own was
// just taken. Pages of zeros add nothing, and so those are not looked at that are not there.
func stripe(m *machine.Machine, n uint32) machine.Hash {
	first := (n - 1) * stripePages
	resident := make([]bool, min(stripePages, m.RAM().Pages()-first))
	m.RAM().Resident(first, resident)
	var h xxh3.Hasher
	for i, is := range resident {
		page := first + uint32(i)
		if m.Zeros(page) && (!is || string(m.RAM().Data(page)) == string(zeros[:])) {
			continue
		}
		_, _ = h.Write(binary.LittleEndian.AppendUint32(nil, page)) // never fails
		_, _ = h.Write(m.RAM().Data(page))
	}
	return machine.Hash(h.Sum128().Bytes())
}

var zeros [pageBytes]byte

// pageBytes is the size of a page, in bytes.
const pageBytes = memory.PageSize
