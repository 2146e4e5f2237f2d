// Package bare runs the programs of the public RISC-V test suites: ELF files that own the
// whole processor, M mode included, and tell their result by a word of memory. It is how
// the processor is held to suites that others wrote; no guest is run by it.
//
// The program begins at its entry in M mode on a hart that is made for this
// (riscv.Options.Bare), with memory from 0x80000000 on and nothing else: no device, no
// firmware, no interrupt from outside. The time is a tenth of the count of
// instructions, so a run is always the same.
//
// It speaks to its host by the words that the symbols tohost and fromhost name, as with
// the host-target interface (HTIF) of Berkeley's simulators: an odd value ends it, 1 being
// success and 2n+1 the failure of test n; device 1 writes a character; an even address
// asks for the write or exit of a system call.
//
// Programs are not trusted: they end at the limit of instructions at the latest, and
// what their ELF file says is checked against the memory. There are no locks: a
// Machine is one goroutine's.
package bare

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"math"

	"steadfast/compute/memory"
	"steadfast/compute/riscv"
	"steadfast/fault"
)

// Base is where memory begins, as all suites have it.
const Base = 0x80000000

// slice is how many instructions run between two looks at tohost.
const slice = 1024

// Options say what a program is run with.
type Options struct {
	// Memory is in bytes, a multiple of memory.PageSize.
	Memory uint64
	// Limit is the count of instructions at which a program that has not ended is given up.
	Limit uint64
	// Console gets what the program writes; nil throws it away.
	Console io.Writer
}

// Machine is a program that is ready to run, or has run. Release gives its memory back.
type Machine struct {
	ram     *memory.RAM
	hart    *riscv.Hart
	console io.Writer
	limit   uint64

	symbols
}

// symbols are the places that a program's symbols name; 0 where there is none.
type symbols struct {
	toHost, fromHost uint64
	begin, end       uint64 // of the signature
}

// Result is how a program has ended.
type Result struct {
	// Code is the number of the test that failed, 0 if none did.
	Code uint64
	// Count is how many instructions it took, up to the next look at its result.
	Count uint64
	// Unexpected tells that Code is none, since the program took an exception that it has no
	// handler for: Cause, PC and Value are that one's.
	Unexpected       bool
	Cause, PC, Value uint64
}

// Load reads an ELF file and makes a machine for it. Fails with fault.Invalid on what is
// no program of a suite, saying what it is and what is needed; with fault.Full.
func Load(file io.ReaderAt, o Options) (*Machine, error) {
	f, err := elf.NewFile(file)
	if err != nil {
		return nil, fault.New(fault.Invalid, "it is no ELF file (%w); a test is run as it was linked, as rv64ui-p-add is", err)
	}
	defer f.Close()
	if err := judge(f); err != nil {
		return nil, err
	}
	names, err := readSymbols(f)
	if err != nil {
		return nil, err
	}
	ram, err := memory.New(Base, o.Memory)
	if err != nil {
		return nil, err
	}
	m := &Machine{ram: ram, console: o.Console, limit: o.Limit, symbols: names}
	if m.console == nil {
		m.console = io.Discard
	}
	if err = m.place(f); err == nil {
		err = m.check()
	}
	if err != nil {
		return nil, errors.Join(err, ram.Release())
	}
	m.hart = riscv.New(ram, nothing{}, clock{}, nil, riscv.Options{Bare: true})
	m.hart.Reset(f.Entry, 0, 0)
	return m, nil
}

// Release gives the memory back. Nothing may be asked of the machine any more.
func (m *Machine) Release() error { return m.ram.Release() }

// judge refuses a file that is not for this processor, or not linked.
func judge(f *elf.File) error {
	switch {
	case f.Machine != elf.EM_RISCV:
		return fault.New(fault.Invalid, "it is an ELF file for %v, not for RISC-V; build it with a compiler for riscv64", f.Machine)
	case f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB:
		return fault.New(fault.Invalid, "it is for RV32; only RV64 is run: build it with -march=rv64gc -mabi=lp64d")
	case f.Type != elf.ET_EXEC:
		return fault.New(fault.Invalid, "it is not linked to fixed addresses (%v); link it with -static -nostdlib -nostartfiles and the suite's link.ld", f.Type)
	}
	return nil
}

// readSymbols finds the symbols that matter.
func readSymbols(f *elf.File) (s symbols, err error) {
	all, err := f.Symbols()
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return s, fault.New(fault.Invalid, "its symbols cannot be read: %w", err)
	}
	places := map[string]*uint64{
		"tohost": &s.toHost, "fromhost": &s.fromHost, "begin_signature": &s.begin, "end_signature": &s.end,
	}
	for _, symbol := range all {
		if p := places[symbol.Name]; p != nil && symbol.Section != elf.SHN_UNDEF {
			*p = symbol.Value
		}
	}
	if s.toHost == 0 {
		return s, fault.New(fault.Invalid, "it has no symbol tohost, by which a test tells its result; "+
			"build it with the suite's riscv_test.h or model_test.h, and do not strip it")
	}
	return s, nil
}

// place copies the segments to where they are loaded.
func (m *Machine) place(f *elf.File) error {
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		if p.Filesz > p.Memsz || !m.ram.Contains(p.Paddr, p.Memsz) {
			return fault.New(fault.Invalid, "its segment of %d bytes at 0x%x does not lie in the memory of %d bytes at 0x%x; "+
				"link it there, or give it more memory", p.Memsz, p.Paddr, m.ram.Size(), uint64(Base))
		}
		if _, err := p.ReadAt(m.ram.Bytes()[p.Paddr-Base:][:p.Filesz], 0); err != nil && p.Filesz != 0 {
			return fault.New(fault.Invalid, "its segment at 0x%x cannot be read: %w", p.Paddr, err)
		}
	}
	return nil
}

// check holds the symbols to the memory.
func (m *Machine) check() error {
	for name, at := range map[string]uint64{"tohost": m.toHost, "fromhost": m.fromHost} {
		if at != 0 && (at%8 != 0 || !m.ram.Contains(at, 8)) {
			return fault.New(fault.Invalid, "its symbol %s is at 0x%x, which is no aligned word of the memory of %d bytes at 0x%x",
				name, at, m.ram.Size(), uint64(Base))
		}
	}
	return nil
}

// Run runs the program to its end. Fails with fault.Limit when it has not ended at the
// limit, and with fault.Failed when it never will: it waits for an interrupt that cannot
// come, or traps into its own handler for ever.
func (m *Machine) Run() (Result, error) {
	h := m.hart
	for {
		stop := h.Run(min(h.Count()+slice, m.limit))
		if v := m.word(m.toHost); v != 0 {
			end, err := m.command(v)
			if err != nil {
				return Result{}, err
			}
			if end != 0 {
				return m.result(end), nil
			}
		}
		switch stop {
		case riscv.StopIdle:
			to := h.IdleUntil()
			if to <= h.Count() || to == math.MaxUint64 {
				return Result{}, fault.New(fault.Failed, "it waits (wfi) for an interrupt that cannot come, after %d instructions, at 0x%x", h.Count(), h.PC())
			}
			h.Idle(min(to, m.limit))
		case riscv.StopWedged:
			return Result{}, fault.New(fault.Failed, "its trap handler at 0x%x traps itself for ever, after %d instructions: %s", h.PC(), h.Count(), m.lastTrap())
		default:
		}
		if h.Count() >= m.limit {
			return Result{}, fault.New(fault.Limit, "it has not ended after %d instructions, at 0x%x; give it a higher limit if it needs more, else it hangs", h.Count(), h.PC())
		}
	}
}

// unexpected is what the environment "p" of riscv-tests sets in the word besides the
// test's number, when a trap comes that the test has no handler for.
const unexpected = 1337

// result reads the value that has ended the program.
func (m *Machine) result(v uint64) Result {
	r := Result{Code: v >> 1, Count: m.hart.Count()}
	if v&unexpected == unexpected {
		r.Unexpected = true
		r.Cause, _ = m.hart.CSR(csrMcause)
		r.PC, _ = m.hart.CSR(csrMepc)
		r.Value, _ = m.hart.CSR(csrMtval)
	}
	return r
}

// M mode's registers of the trap taken last.
const (
	csrMepc   = 0x341
	csrMcause = 0x342
	csrMtval  = 0x343
)

// lastTrap is M mode's trap in words.
func (m *Machine) lastTrap() string {
	cause, _ := m.hart.CSR(csrMcause)
	pc, _ := m.hart.CSR(csrMepc)
	value, _ := m.hart.CSR(csrMtval)
	return fmt.Sprintf("mcause 0x%x, mepc 0x%x, mtval 0x%x", cause, pc, value)
}

// WriteSignature writes the signature, as it is now, in the form that riscv-arch-test
// compares: a line for each granularity bytes (4, 8 or 16), in hexadecimal with the
// highest address first. What is missing to a whole line is zero. Fails with
// fault.Invalid if there is none.
func (m *Machine) WriteSignature(w io.Writer, granularity int) error {
	if granularity != 4 && granularity != 8 && granularity != 16 {
		return fault.New(fault.Invalid, "a signature of %d bytes a line: 4, 8 and 16 are possible", granularity)
	}
	if m.begin == 0 || m.end == 0 {
		return fault.New(fault.Invalid, "it has no symbols begin_signature and end_signature; only tests of riscv-arch-test have a signature to write")
	}
	if m.begin > m.end || !m.ram.Contains(m.begin, m.end-m.begin) {
		return fault.New(fault.Invalid, "its signature from 0x%x to 0x%x does not lie in the memory of %d bytes at 0x%x",
			m.begin, m.end, m.ram.Size(), uint64(Base))
	}
	b := m.ram.Bytes()[m.begin-Base : m.end-Base]
	line := make([]byte, granularity)
	for len(b) > 0 {
		clear(line)
		n := copy(line, b)
		b = b[n:]
		for i, j := 0, len(line)-1; i < j; i, j = i+1, j-1 {
			line[i], line[j] = line[j], line[i]
		}
		if _, err := fmt.Fprintf(w, "%x\n", line); err != nil {
			return err
		}
	}
	return nil
}

// clock ticks every ten instructions.
type clock struct{}

// Time implements riscv.Clock.
func (clock) Time(count uint64) uint64 { return count / 10 }

// CountAt implements riscv.Clock.
func (clock) CountAt(time uint64) uint64 {
	if time > math.MaxUint64/10 {
		return math.MaxUint64
	}
	return time * 10
}

// nothing is a bus without devices.
type nothing struct{}

// Load implements riscv.Bus.
func (nothing) Load(uint64, int) (uint64, bool) { return 0, false }

// Store implements riscv.Bus.
func (nothing) Store(uint64, int, uint64) bool { return false }
