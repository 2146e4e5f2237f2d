package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"steadfast/compute/riscv/bare"
	"steadfast/fault"
)

// failedStatus is the exit status of a program of a test suite that says it failed.
const failedStatus = exitStatus(1)

// isaTestFlags say how a program of a test suite is run.
type isaTestFlags struct {
	signature   string
	granularity int
	limit       string
	memory      sizeFlag
}

func (a *app) machineISATest() *cobra.Command {
	f := &isaTestFlags{memory: 128 << 20}
	c := &cobra.Command{
		Use: "isa-test ELF", Short: "Run a program of the public RISC-V test suites", Args: exactly(1),
		Example: `  steadfast machine isa-test rv64ui-p-add
  steadfast machine isa-test rv64um-v-div --limit 10M
  steadfast machine isa-test add-01.elf --signature add-01.signature`,
		Long: `Run a program of riscv-tests or riscv-arch-test on the machine's processor alone: no
device, no firmware, machine mode as the suites need it. Guests never get that mode.

The file is a linked ELF file for RV64, with its memory at 0x80000000 and the symbol
tohost, by which it tells its result. --signature writes what lies between its symbols
begin_signature and end_signature when it has ended, a line for each
--signature-granularity bytes, as riscv-arch-test compares it. The program's console
(HTIF) is standard output. docs/ISA-TESTS.md says how to build the suites, and which
tests fail and why.

Exit status: 0 passed, 1 failed, 80 not ended at --limit, 82 it cannot end (it waits for
an interrupt that cannot come, or traps for ever), 64 the file is no such program.`,
		RunE: func(_ *cobra.Command, args []string) error { return a.isaTest(args[0], f) },
	}
	c.Flags().StringVar(&f.signature, "signature", "", "file to write the signature to")
	c.Flags().IntVar(&f.granularity, "signature-granularity", 4, "bytes of a line of the signature: 4, 8 or 16")
	c.Flags().StringVar(&f.limit, "limit", "1G", "instructions after which a test that has not ended is given up")
	c.Flags().Var(&f.memory, "memory", "the program's memory, from 0x80000000 on")
	a.complete(c, "signature-granularity", func(context.Context) []string { return []string{"4", "8", "16"} })
	return c
}

// isaTest runs a program, and says how it ended.
func (a *app) isaTest(name string, f *isaTestFlags) (err error) {
	o := bare.Options{Memory: uint64(f.memory), Console: a.out}
	if o.Limit, err = parseCount(f.limit); err != nil {
		return err
	}
	file, err := os.Open(name)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "the test's program")
	}
	defer file.Close()
	m, err := bare.Load(file, o)
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, name)
	}
	defer func() { err = errors.Join(err, m.Release()) }()
	if f.signature != "" {
		// What cannot be written is told before the program runs.
		if err := m.WriteSignature(io.Discard, f.granularity); err != nil {
			return fault.Wrap(fault.KindOf(err), err, name)
		}
	}
	r, err := m.Run()
	if err != nil {
		return fault.Wrap(fault.KindOf(err), err, name)
	}
	if f.signature != "" {
		if err := writeSignature(m, f.signature, f.granularity); err != nil {
			return fault.Wrap(fault.Denied, err, "the signature")
		}
	}
	return a.sayISATest(filepath.Base(name), r)
}

// writeSignature writes a program's signature to a file.
func writeSignature(m *bare.Machine, name string, granularity int) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(m.WriteSignature(file, granularity), file.Close())
}

// sayISATest says how a program has ended.
func (a *app) sayISATest(name string, r bare.Result) error {
	switch {
	case r.Code == 0:
		a.say("PASS %s (within %s instructions)\n", name, counted(r.Count))
		return nil
	case r.Unexpected:
		a.say("FAIL %s: an exception that the test has no handler for: mcause 0x%x, mepc 0x%x, mtval 0x%x (within %s instructions)\n",
			name, r.Cause, r.PC, r.Value, counted(r.Count))
	default:
		a.say("FAIL %s: test %d (within %s instructions)\n", name, r.Code, counted(r.Count))
	}
	return failedStatus
}
