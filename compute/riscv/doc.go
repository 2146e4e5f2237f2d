// Package riscv is the processor of a machine: one RV64GC hart with what Debian's
// riscv64 asks for and a little more (Zicsr, Zifencei, Zicntr, Zba, Zbb, Zbs, Zicboz,
// Sstc), S and U modes, Sv39, the Supervisor Binary Interface instead of a firmware,
// and the interrupt controller (PLIC).
//
// Its next state follows from its state, RAM, and what the Bus, the Clock and the
// lines say, each at an instruction count. How it is executed (decoded blocks, tables
// of translations, limits of runs, another engine) cannot be told from inside.
//
// # Policy
//
// What the manuals leave open is fixed here, for every engine:
//
//   - An instruction that traps is not retired; interrupts and traps count nothing. An
//     ecall that SBI serves is retired. Counters read as of before the instruction.
//   - Interrupts are taken between two instructions, before the next one is fetched: the
//     timer's at the first count at which the time is stimecmp, a device's after the
//     access that raised it, all others after the instruction that let them.
//   - A walk sets A, and D for a store, in the page table itself. Walks are as if each
//     access made one: a store to a page table, by whomever, takes effect at once. So
//     does a store to code. sfence.vma and fence.i have nothing left to do.
//   - What is not aligned works in RAM, over the end of a page, too, and is done whole or
//     not at all; the lower page faults first, a fault of the upper one tells its first
//     address. Elsewhere it is an access fault. Atomics that are not aligned
//     trap as misaligned before anything else is looked at, and are access faults
//     outside of RAM, as is code there.
//   - LR reserves 64 bytes by their physical address. SC succeeds if the
//     reservation is held, and address and size are LR's. SC, a trap, and a store that
//     touches the 64 bytes, by the hart, its walks or a device, end it; nothing else does.
//     SC without any reservation fails and accesses nothing.
//   - stval is the address of a fault, the bits of an illegal instruction, else zero.
//   - A table that is not in RAM is an access fault, of the cause of the access.
//   - satp takes Bare and Sv39; another mode leaves the register as it is. It keeps the
//     bits of the ASID, which has no effect.
//   - FS becomes dirty when a register of F or a flag is written. NaNs that arithmetic
//     makes are canonical; tininess is seen after rounding.
//   - wfi waits if nothing is pending that is enabled in sie; it is illegal in U mode.
//   - U mode may read the counters after Reset, cbo.zero works in S mode.
//
// Machine mode is for the programs of test suites only (Options.Bare, package bare); all
// of it is in mmode.go, and a guest finds nothing of it.
//
// # Engine
//
// Code is decoded to blocks of small structures, which one switch executes
// (exec.go). Loads and stores look in a table of the last translations, by page and
// context, and everything that misses it goes the slow way (access.go, mmu.go). The
// flags of memory.RAM have the slow way see every store into a page that holds a page
// table which was walked, or code which was decoded; that is how both are never stale.
//
// # Trust, and locks
//
// Guest code is not trusted: nothing that it does panics, allocates without bound or
// leaves RAM, which is only ever accessed through checked slices. Work per
// instruction is bounded. The Bus, the Clock and Calls are trusted. There are no locks:
// a hart, its RAM and its devices are one goroutine's.
package riscv
