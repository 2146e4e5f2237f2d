package machine

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"

	mt "steadfast/compute/machine/machinetest"
)

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func u16(v uint16) []byte { return binary.LittleEndian.AppendUint16(nil, v) }
func u32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

func register(dev byte, at uint16) []byte { return join([]byte{mt.HostileDevice, dev}, u16(at)) }
func small(v byte) []byte                 { return []byte{mt.HostileSmall, v} }
func wide(v uint64) []byte                { return join([]byte{mt.HostileWide}, u32(uint32(v)), u32(uint32(v>>32))) }
func buffer(at uint16) []byte             { return join([]byte{mt.HostileBuffer}, u16(at)) }

func sbi(extension, function byte, arguments ...[]byte) []byte {
	return join([]byte{mt.HostileSBI, extension, function}, join(arguments...))
}

func load(size byte, at []byte) []byte { return join([]byte{mt.HostileLoad, size}, at) }

func store(size byte, at, v []byte) []byte { return join([]byte{mt.HostileStore, size}, at, v) }

func csr(number uint16, how byte, v []byte) []byte {
	return join([]byte{mt.HostileCSR}, u16(number), []byte{how}, v)
}

func descriptor(dev, queue, i byte, at []byte, n uint32, flags, next byte) []byte {
	return join([]byte{mt.HostileDesc, dev, queue, i}, at, u32(n), []byte{flags, next})
}

func offer(dev, queue, head, n byte) []byte { return []byte{mt.HostileOffer, dev, queue, head, n} }

func driver(dev byte) []byte { return []byte{mt.HostileBoot, dev, 8, 0} }

func fill(at uint16, v uint32) []byte { return join([]byte{mt.HostileFill}, u16(at), u32(v)) }

func raw(v uint32) []byte { return join([]byte{mt.HostileRaw}, u32(v)) }

// loop has deeds done many times: 2 to the power of n.
func loop(n byte, deeds ...[]byte) [][]byte {
	return append([][]byte{{mt.HostileLoop, n, byte(len(deeds) - 1)}}, deeds...)
}

// script is one of deeds, of which those after a loop are the loop's, and of a world that
// answers little.
func script(deeds ...[]byte) []byte {
	n := 0
	for i := 0; i < len(deeds); i++ {
		n++
		if deeds[i][0] == mt.HostileLoop && len(deeds[i]) == 3 {
			i += int(deeds[i][2]) + 1
		}
	}
	idle := bytes.Repeat([]byte{0, 0xff, 0x3f, 1, 15, 0, 0, 0, 0, 0}, hostileSlices)
	return join([]byte{byte(n - 1)}, join(deeds...), idle)
}

// request is a disk's: 4 MiB at once, and what is not a read is a write.
func request(kind uint32) []byte {
	flags := byte(1)
	if kind == 0 {
		flags |= 2
	}
	return join(driver(0), fill(0, kind), fill(8, 0), descriptor(0, 0, 0, buffer(0), 16, 1, 1),
		descriptor(0, 0, 1, buffer(0x1000), 4<<20, flags, 2), descriptor(0, 0, 2, buffer(0x100), 1, 2, 0))
}

// requestDeeds is how many deeds a request is.
const requestDeeds = 6

// hostileSeeds are scripts that reach what a guest can do.
func hostileSeeds() [][]byte {
	all := [][]byte{
		script(sbi(mt.HostileSBIReset, 0, small(0), small(0), small(0), small(0))),
		script(sbi(mt.HostileSBIReset, 0, small(1), small(0), small(0), small(0))),
		script(csr(0x105, 0, small(0)), raw(0)),
		script(append([][]byte{driver(1), descriptor(1, 1, 0, buffer(0), 1526, 0, 0)}, loop(16, offer(1, 1, 0, 255))...)...),
		script(append([][]byte{driver(2), descriptor(2, 0, 0, buffer(0), 64, 2, 0)}, loop(10, driver(2), offer(2, 0, 0, 4))...)...),
		script(loop(16, store(0, register(1, 0), small('#')))...),
		script(loop(16, sbi(mt.HostileSBIConsole, 0, wide(1<<20), buffer(0), small(0), small(0)))...),
		script(loop(16, sbi(mt.HostileSBIPutchar, 0, small('#'), small(0), small(0), small(0)))...),
	}
	all = append(all, diskSeeds()...)
	all = append(all, busSeeds()...)
	all = append(all, pagingSeeds()...)
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 11))
		s := make([]byte, 300+r.IntN(500))
		for i := range s {
			s[i] = byte(r.Uint32())
		}
		all = append(all, s)
	}
	return all
}

// diskSeeds ask for much, and reset in flight.
func diskSeeds() (all [][]byte) {
	for _, kind := range []uint32{0, 1, 4, 8, 11, 13} {
		s := script(append([][]byte{request(kind)}, loop(9, driver(0), offer(0, 0, 0, 4))...)...)
		s[0] += requestDeeds - 1 // a request is one part, and as many deeds
		all = append(all, s)
	}
	// One that restarts with a request in flight.
	for _, kind := range []uint32{0, 1} {
		s := script(request(kind), offer(0, 0, 0, 4), sbi(mt.HostileSBIReset, 0, small(1), small(0), small(0), small(0)))
		s[0] += requestDeeds - 1
		all = append(all, s)
	}
	// A chain that leads to itself, an indirect table that does, and one outside.
	return append(all,
		script(driver(0), descriptor(0, 0, 0, buffer(0), 16, 1, 0), offer(0, 0, 0, 9)),
		script(driver(0), descriptor(0, 0, 0, []byte{mt.HostileQueues, 0, 0}, 64, 4, 0), offer(0, 0, 0, 1)),
		script(driver(1), descriptor(1, 0, 0, wide(0x4000_0000), 1<<31, 2, 0), offer(1, 0, 0, 200)),
		script(driver(3), descriptor(3, 0, 0, []byte{mt.HostileEnd, 4}, 8, 2, 0), offer(3, 0, 0, 200)))
}

// busSeeds reach for registers, and for where nothing is.
func busSeeds() (all [][]byte) {
	for dev := range byte(8) {
		var deeds [][]byte
		for _, at := range []uint16{0, 4, 8, 0x10, 0x18, 0x100, 0xffc} {
			for size := range byte(4) {
				deeds = append(deeds, load(size, register(dev, at)), store(size, register(dev, at+1), small(0xff)))
			}
		}
		edge := []byte{mt.HostileEdge, dev, 3}
		deeds = append(deeds[:40], load(3, edge), store(2, edge, wide(1<<63)), join([]byte{mt.HostileAtomic, 0x41}, register(dev, 0), small(1)))
		all = append(all, script(deeds...))
	}
	return append(all,
		script(load(3, []byte{mt.HostileEnd, 3}), store(3, []byte{mt.HostileEnd, 1}, wide(1)), load(3, []byte{mt.HostileOnes}),
			join([]byte{mt.HostileJump}, register(1, 0)), join([]byte{mt.HostileJump, mt.HostileEnd, 2}), join([]byte{mt.HostileJump}, wide(0)),
			join([]byte{mt.HostileAtomic, 0x21}, buffer(3), small(1)), join([]byte{mt.HostileAtomic, 0x0d}, buffer(8), small(1))),
		script([]byte{mt.HostileWait, 100}, []byte{mt.HostileWait, 200}, csr(0x14d, 0, wide(1<<62)), csr(0x144, 0, small(2)), []byte{mt.HostileWait, 255}))
}

// pagingSeeds are page tables that lead astray, and code that changes.
func pagingSeeds() [][]byte {
	const tables = 0x80000000 + 34<<20
	entry := func(i uint16, v uint64) []byte { return join([]byte{mt.HostileEntry}, u16(i), wide(v)) }
	paged := func(at uint64) []byte { return join([]byte{mt.HostilePaged, 0}, wide(at), []byte{3}) }
	const self = tables>>12<<10 | 1
	return [][]byte{
		script(entry(5, self), paged(5<<30), paged(5<<30|5<<21|5<<12), paged(5<<30|5<<21|2<<12),
			entry(6, 0x10000000>>12<<10|1), paged(6<<30), entry(7, 1<<53|1), paged(7<<30), entry(8, 0x80001000>>12<<10|0xcf), paged(8<<30),
			entry(9, 1<<60|0xcf), paged(9<<30), entry(10, 0x40000000>>12<<10|0x0f), paged(10<<30), paged(1<<40)),
		script(append(loop(12, entry(5, self), paged(5<<30|5<<21|5<<12|40)), []byte{mt.HostilePaged, 4, mt.HostileOnes, 0})...),
		script(join([]byte{mt.HostilePatch}, u32(0x13), []byte{0}), join([]byte{mt.HostilePatch}, u32(0x00100013), []byte{1}),
			join([]byte{mt.HostileUser}, u32(0x13), []byte{0}), join([]byte{mt.HostileUser}, u32(0x10200073), []byte{1}), raw(0xffffffff)),
	}
}
