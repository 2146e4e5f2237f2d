// Package boot brings a Linux kernel to the state in which a riscv64 machine starts
// it: the image unpacked and in place, the initial RAM disk, and the device tree that
// says what the machine has.
//
//	RAM base                                                            RAM end
//	| 2 MiB |  kernel, with what it clears  |   ...   |  initrd  |  device tree  |
//	         ^ PC                                                ^ a1
//
// Linux, Documentation/arch/riscv/boot.rst: hart in S mode, a0 its ID, a1 the tree's
// physical address, satp 0. What was put into RAM depends on the arguments alone.
//
// It trusts nothing of a file: a kernel may come from a guest's disk.
package boot
