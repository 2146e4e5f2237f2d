package machinetest

import "encoding/binary"

// Floods are scripts for Hostile of guests that ask all that they can of the world, for
// ever or nearly so: by what they flood. They take a disk of at least 512 KiB.
func Floods() map[string][]byte {
	long := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	join := func(n byte, deeds ...[]byte) []byte {
		s := []byte{n - 1}
		for _, d := range deeds {
			s = append(s, d...)
		}
		return s
	}
	describe := func(dev, queue, i, from byte, n uint32, flags, next byte) []byte {
		return append(append([]byte{HostileDesc, dev, queue, i, HostileBuffer, 0, from}, long(n)...), flags, next)
	}
	rewind := func(dev uint32) []byte { // the first queue's available ring
		at := hostileQueues - ramBase + dev<<16 + 0x2002
		return append(append([]byte{HostileStore, 1, HostileRAM}, long(at)...), HostileSmall, 0)
	}
	const forever = 23
	floods := map[string][]byte{
		"frames":  join(3, []byte{HostileBoot, 1, 8, 0}, describe(1, 1, 0, 0, 1526, 0, 0), []byte{HostileLoop, forever, 0, HostileOffer, 1, 1, 0, 255}),
		"serial":  join(1, []byte{HostileLoop, forever, 0, HostileStore, 0, HostileDevice, 1, 0, 0, HostileSmall, '#'}),
		"console": join(1, append([]byte{HostileLoop, forever, 0, HostileSBI, HostileSBIConsole, 0, HostileWord}, append(long(1<<20), HostileBuffer, 0, 0, HostileSmall, 0, HostileSmall, 0)...)),
		"randomness": join(3, []byte{HostileBoot, 2, 3, 0}, describe(2, 0, 0, 0, 4096, descWrite, 0),
			[]byte{HostileLoop, forever, 2, HostileBoot, 2, 3, 0}, rewind(2), []byte{HostileOffer, 2, 0, 0, 8}),
	}
	for name, kind := range map[string]uint32{"reads": 0, "writes": 1, "flushes": 4} {
		flags := byte(descNext)
		if kind == 0 {
			flags |= descWrite
		}
		floods[name] = join(6, append([]byte{HostileFill, 0, 0}, long(kind)...), append([]byte{HostileFill, 8, 0}, long(0)...),
			describe(0, 0, 0, 0, 16, descNext, 1), describe(0, 0, 1, 0x10, 512<<10, flags, 2), describe(0, 0, 2, 1, 1, descWrite, 0),
			[]byte{HostileLoop, forever, 2, HostileBoot, 0, 8, 0}, rewind(0), []byte{HostileOffer, 0, 0, 0, 200})
	}
	return floods
}
