package boot

import (
	"steadfast/compute/memory"
	"steadfast/fault"
)

// Placing what is loaded.
const (
	// kernelAlign is what a kernel's text offset counts from: one megapage, since the
	// kernel maps itself with those.
	kernelAlign = 2 << 20
	pageAlign   = memory.PageSize
)

// Start is how the hart begins: at PC, in S mode, with these arguments.
type Start struct {
	PC   uint64
	Hart uint64 // a0
	Tree uint64 // a1
}

// Load puts a kernel, an initial RAM disk (or none) and the machine's device tree into
// RAM that is all zeros, and says how to start it. Chosen.Initrd is set by it. It errs with
// fault.Invalid, before anything was written, when they do not fit.
func Load(ram *memory.RAM, m Machine, k *Kernel, initrd []byte, c Chosen) (Start, error) {
	m.RAM = Region{ram.Base(), ram.Size()}
	c.Initrd = Region{0, uint64(len(initrd))}
	tree, err := Tree(m, c) // for its size
	if err != nil {
		return Start{}, err
	}
	pc := (ram.Base()+kernelAlign-1)&^(kernelAlign-1) + k.offset
	from, end := pc+k.size, ram.Base()+ram.Size()
	needs := alignUp(uint64(len(tree))) + alignUp(c.Initrd.Size)
	if needs > ram.Size() || from > end-needs {
		return Start{}, fault.New(fault.Invalid, "%d MiB of memory: the kernel (%d MiB with what it clears, from %d MiB on) and the initial RAM disk (%d MiB) do not fit; give the machine more",
			ram.Size()>>20, mib(k.size), mib(pc-ram.Base()), mib(c.Initrd.Size))
	}
	at := end - alignUp(uint64(len(tree)))
	c.Initrd.Base = at - alignUp(c.Initrd.Size)
	if tree, err = Tree(m, c); err != nil {
		return Start{}, err
	}
	if !ram.Write(k.image, pc) || !ram.Write(initrd, c.Initrd.Base) || !ram.Write(tree, at) {
		return Start{}, fault.New(fault.Internal, "what is loaded lies outside of memory")
	}
	return Start{PC: pc, Tree: at}, nil
}

func alignUp(n uint64) uint64 { return (n + pageAlign - 1) &^ (pageAlign - 1) }

func mib(n uint64) uint64 { return (n + 1<<20 - 1) >> 20 }
