// Isa runs random programs on the processor of package riscv and on QEMU, and compares
// all registers after each instruction.
//
// A program comes from a seed: integers, compressed instructions, atomics, floating point
// of all modes and kinds of numbers, bit manipulation, traps of M and S mode, address
// translation with all its faults, and code that changes itself. What the manuals leave
// open stands in one table (table), and how often it mattered is printed.
//
// It ends with "isa-check: N instructions, N differ".
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
)

func main() {
	count := flag.Int("n", 1_000_000, "instructions to compare")
	seed := flag.Uint64("seed", 1, "the first program's seed; the next have the next")
	size := flag.Int("size", 600, "pieces of a program")
	rounds := flag.Int("rounds", 12, "how often a program runs its pieces")
	flaw := flag.String("flaw", "", "break our processor on purpose: see riscv.Options")
	verbose := flag.Bool("v", false, "count the instructions by their names")
	flag.Parse()
	if _, err := exec.LookPath(qemuCommand); err != nil {
		fmt.Printf("SKIP isa-check: no %s (apt-get install qemu-system-misc)\n", qemuCommand)
		return
	}
	differ, err := check(*count, *seed, *size, *rounds, *flaw, *verbose, 10)
	if err != nil {
		fmt.Fprintln(os.Stderr, "isa:", err)
		os.Exit(2)
	}
	if differ != 0 {
		os.Exit(1)
	}
}

// check compares at least count instructions, and prints what it saw.
func check(count int, seed uint64, size, rounds int, flaw string, verbose bool, most int) (differ int, err error) {
	dir, err := os.MkdirTemp("", "isa")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	m := newSeen()
	done, programs := 0, 0
	for done < count && differ < most {
		r, err := compare(dir, seed, size, rounds, flaw, m)
		if err != nil {
			return differ, fmt.Errorf("seed %d: %w", seed, err)
		}
		done += r.instructions
		differ += r.differ
		if r.differ != 0 {
			fmt.Printf("seed %d: %s\n", seed, r.text)
		}
		programs++
		seed++
	}
	m.print(verbose)
	fmt.Printf("isa-check: %d instructions, %d differ\n", done, differ)
	return differ, nil
}
