package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"steadfast/compute/device"
	"steadfast/compute/memory"
	"steadfast/compute/riscv"
)

// csrNumbers are those of csrNames.
var csrNumbers = [len(csrNames)]int{
	0x300, 0x344, 0x304, 0x303, 0x302, 0x305, 0x105, 0x341, 0x141, 0x342, 0x142, 0x343, 0x143, 0x340, 0x140, 0x180,
}

// clock is time that stands still: no program reads it.
type clock struct{}

func (clock) Time(uint64) uint64    { return 0 }
func (clock) CountAt(uint64) uint64 { return ^uint64(0) }

// board is the bus: nothing but what ends the program.
type board struct {
	hart  *riscv.Hart
	ended bool
}

func (b *board) Load(uint64, int) (uint64, bool) { return 0, false }

func (b *board) Store(addr uint64, _ int, _ uint64) bool {
	if addr != finisher {
		return false
	}
	b.ended = true
	b.hart.Stop()
	return true
}

func (b *board) ConsoleWrite(p []byte) int       { return len(p) }
func (b *board) ConsoleRead([]byte) int          { return 0 }
func (b *board) SystemReset(riscv.Reset, uint32) {}

// ours is a hart with a program.
type ours struct {
	*board
	ram *memory.RAM
	// path are the last addresses, for whoever looks for a mistake.
	path []uint64
}

func newOurs(img *image, flaw string) (*ours, error) {
	ram, err := memory.New(ramBase, ramSize)
	if err != nil {
		return nil, err
	}
	b := &board{}
	b.hart = riscv.New(ram, b, clock{}, b, riscv.Options{Bare: true, Flaw: flaw})
	ram.Write(img.bytes, ramBase)
	b.hart.Reset(ramBase+startAt, 0, 0)
	return &ours{board: b, ram: ram}, nil
}

// state reads the hart as QEMU prints it.
func (o *ours) state(s *state) {
	s.pc = o.hart.PC()
	for i := range 32 {
		s.x[i], s.f[i] = o.hart.X(i), o.hart.F(i)
	}
	for i, n := range csrNumbers {
		s.csr[i], _ = o.hart.CSR(n)
	}
}

// result is what came of one program.
type result struct {
	instructions int
	// differ is how many states did not agree: 1, since nothing after the first means
	// anything.
	differ int
	text   string
}

// compare runs the program of a seed on both.
func compare(dir string, seed uint64, size, rounds int, flaw string, m *seen) (result, error) {
	img := makeProgram(seed, size, rounds)
	o, err := newOurs(img, flaw)
	if err != nil {
		return result{}, err
	}
	q, err := startQEMU(dir, img, time.Minute)
	if err != nil {
		return result{}, errors.Join(err, o.ram.Release())
	}
	r, err := o.follow(q, img, m)
	if err == nil && r.differ == 0 {
		r.text, err = o.atOnce(img, flaw, seed)
		r.differ = min(len(r.text), 1)
	}
	if err != nil && q.errors.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(q.errors.String()))
	}
	return r, errors.Join(err, q.close(), o.ram.Release())
}

// follow steps ours along QEMU's states.
//
// QEMU prints a state before each instruction; ours is read and then stepped. So both are
// compared before an instruction, and what it did shows in the next state. What runs before the
// program (QEMU's ROM, and the image's start) is passed over: the ROM leaves other values in
// registers, and the start is what sets them.
func (o *ours) follow(q *qemu, img *image, m *seen) (r result, err error) {
	var theirs, mine, before state
	for theirs.pc != img.begin {
		if err := q.next(&theirs); err != nil {
			return r, fmt.Errorf("QEMU did not come to the program: %w", err)
		}
	}
	for o.hart.PC() != img.begin {
		o.hart.Step()
	}
	for !o.ended {
		if o.hart.PC() != theirs.pc {
			// QEMU tells of no instruction that it cannot fetch, but only of its trap.
			n := o.hart.Count()
			o.hart.Step()
			m.arrival(o)
			if o.hart.Count() != n {
				r.differ, r.text = 1, o.describe(&before, fmt.Sprintf(" QEMU is at %x", theirs.pc))
				return r, nil
			}
		}
		o.state(&mine)
		if text := m.difference(&mine, &theirs); text != "" {
			r.differ, r.text = 1, o.describe(&before, text)
			return r, nil
		}
		r.instructions++
		before = mine
		o.path = append(o.path[max(0, len(o.path)-8):], mine.pc)
		m.instruction(o, &mine)
		o.hart.Step()
		m.arrival(o)
		switch err := q.next(&theirs); {
		case errors.Is(err, io.EOF) && !o.ended:
			r.differ, r.text = 1, o.describe(&before, "QEMU ended")
			return r, nil
		case err != nil && !errors.Is(err, io.EOF):
			return r, err
		}
	}
	return r, nil
}

// atOnce runs the program again, not instruction by instruction but as far as it goes, in
// stretches of random lengths, and tells what is not as it was. What goes wrong only where many
// instructions run in one go, as they do for a guest, shows here.
func (o *ours) atOnce(img *image, flaw string, seed uint64) (string, error) {
	again, err := newOurs(img, flaw)
	if err != nil {
		return "", err
	}
	r := rand.New(rand.NewPCG(seed, 1))
	for end := o.hart.Count(); !again.ended && again.hart.Count() < end; {
		again.hart.Run(min(end, again.hart.Count()+1+r.Uint64N(1<<r.IntN(16))))
	}
	var a, b device.Encoder
	o.hart.Save(&a)
	again.hart.Save(&b)
	text := ""
	switch {
	case !bytes.Equal(a.Bytes(), b.Bytes()):
		text = "run at once, the registers are others at the end than step by step"
	case !bytes.Equal(o.ram.Bytes(), again.ram.Bytes()):
		text = "run at once, the memory is another at the end than step by step"
	}
	return text, again.ram.Release()
}

// raw is the instruction at an address of the code, in either space.
func (o *ours) raw(pc uint64) uint32 {
	var b [4]byte
	o.ram.Read(b[:], pc&(alias-1)|ramBase)
	return binary.LittleEndian.Uint32(b[:])
}

// describe says what the instruction before the difference was.
func (o *ours) describe(before *state, text string) string {
	raw := o.raw(before.pc)
	var path strings.Builder
	for _, pc := range o.path {
		fmt.Fprintf(&path, " %x %s,", pc, riscv.Mnemonic(o.raw(pc)))
	}
	return fmt.Sprintf("after %016x (%08x, %s):%s the way there:%s", before.pc, raw, riscv.Mnemonic(raw), text, path.String())
}

// difference lists what is not alike.
func (m *seen) difference(mine, theirs *state) string {
	m.mask(mine, theirs)
	if *mine == *theirs {
		return ""
	}
	var b strings.Builder
	show := func(name string, a, c uint64) {
		if a != c {
			fmt.Fprintf(&b, " %s is %016x, QEMU has %016x;", name, a, c)
		}
	}
	show("pc", mine.pc, theirs.pc)
	for i := range 32 {
		show(fmt.Sprint("x", i), mine.x[i], theirs.x[i])
		show(fmt.Sprint("f", i), mine.f[i], theirs.f[i])
	}
	for i, name := range csrNames {
		show(name, mine.csr[i], theirs.csr[i])
	}
	return b.String()
}
