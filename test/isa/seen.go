package main

import (
	"fmt"
	"slices"

	"steadfast/compute/riscv"
)

// mask is a difference between the two that is none: the manuals leave it open, or the
// board around the hart is another. What of QEMU is plainly an error the programs
// avoid, and say so where they do.
type mask struct {
	reason string
	// same makes theirs what is to be compared, and tells whether it had to.
	same func(mine, theirs *state) bool
}

// table is all of them.
var table = [...]mask{
	{
		"mip.MTIP: QEMU's CLINT has a timer, which this board has not",
		func(mine, theirs *state) bool {
			const mip, mtip = 1, 1 << 7
			if (mine.csr[mip]^theirs.csr[mip])&mtip == 0 {
				return false
			}
			theirs.csr[mip] ^= mtip
			return true
		},
	},
}

// seen counts what the programs came through.
type seen struct {
	masked       [len(table)]int
	instructions map[string]int
	causes       map[string]int
	modes        [4]int
}

func newSeen() *seen { return &seen{instructions: map[string]int{}, causes: map[string]int{}} }

func (s *seen) mask(mine, theirs *state) {
	for i := range table {
		if table[i].same(mine, theirs) {
			s.masked[i]++
		}
	}
}

// instruction counts what is about to run, if it lies in the code.
func (s *seen) instruction(o *ours, at *state) {
	s.modes[o.hart.Mode()&3]++
	if at.pc&(alias-1) < patchable {
		s.instructions[riscv.Mnemonic(o.raw(at.pc))]++
	}
}

// arrival counts the trap that was taken, if one was.
func (s *seen) arrival(o *ours) {
	switch o.hart.PC() {
	case ramBase + handlersM:
		cause, _ := o.hart.CSR(0x342)
		s.causes[fmt.Sprintf("M:%x", cause)]++
	case alias + handlersS:
		cause, _ := o.hart.CSR(0x142)
		s.causes[fmt.Sprintf("S:%x", cause)]++
	}
}

func (s *seen) print(verbose bool) {
	if verbose {
		counts("instructions", s.instructions)
	}
	counts("traps", s.causes)
	fmt.Printf("  modes: U %d, S %d, M %d; %d kinds of instructions\n", s.modes[0], s.modes[1], s.modes[3], len(s.instructions))
	for i, hits := range s.masked {
		fmt.Printf("  mask: %s: %d hits\n", table[i].reason, hits)
	}
}

// counts prints a table by its names.
func counts(title string, of map[string]int) {
	names := make([]string, 0, len(of))
	for name := range of {
		names = append(names, name)
	}
	slices.Sort(names)
	fmt.Printf("  %s:", title)
	for _, name := range names {
		fmt.Printf(" %s %d", name, of[name])
	}
	fmt.Println()
}
