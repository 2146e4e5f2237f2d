package machineio

import (
	"encoding/binary"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/arch/riscv64/riscv64asm"

	"steadfast/compute/machine"
	"steadfast/compute/memory"
	"steadfast/fault"
)

// Names of registers: RISC-V ABIs Specification 1.0, 1.1, and the privileged
// specification's CSR listing.
var (
	registerNames = strings.Fields("zero ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6")
	floatNames    = strings.Fields("ft0 ft1 ft2 ft3 ft4 ft5 ft6 ft7 fs0 fs1 fa0 fa1 fa2 fa3 fa4 fa5 fa6 fa7 fs2 fs3 fs4 fs5 fs6 fs7 fs8 fs9 fs10 fs11 ft8 ft9 ft10 ft11")
	modeNames     = map[int]string{0: "U", 1: "S", 3: "M"}
	csrs          = []struct {
		name   string
		number int
	}{
		{"sstatus", 0x100},
		{"sie", 0x104},
		{"stvec", 0x105},
		{"sscratch", 0x140},
		{"sepc", 0x141},
		{"scause", 0x142},
		{"stval", 0x143},
		{"sip", 0x144},
		{"stimecmp", 0x14d},
		{"satp", csrSATP},
		{"fcsr", 0x003},
	}
)

const csrSATP = 0x180

// errOtherKind is of a machine whose processor nobody here can read.
var errOtherKind error = fault.New(fault.Invalid, "the machine's processor is none that can be printed")

// PrintState writes what a machine's processor holds, and the machine's digest.
func PrintState(w io.Writer, m *machine.Machine) error {
	h := m.Hart()
	if h == nil {
		return errOtherKind
	}
	p := &columns{w: w}
	p.line("count     %d", m.Count())
	p.line("time      %d.%09d s", m.Now()/1e9, m.Now()%1e9)
	p.line("machine   %s", m.End())
	p.line("digest    %x", m.Hash())
	waits := ""
	if h.Waiting() {
		waits = ", waits for an interrupt"
	}
	p.line("mode      %s%s", modeNames[h.Mode()], waits)
	p.cell("pc", h.PC())
	for i := 1; i < 32; i++ {
		p.cell(registerNames[i], h.X(i))
	}
	for _, c := range csrs {
		if v, ok := h.CSR(c.number); ok {
			p.cell(c.name, v)
		}
	}
	for i := range 32 {
		if h.F(i) != 0 {
			p.cell(floatNames[i], h.F(i))
		}
	}
	p.line("")
	return p.err
}

// columns prints values, three in a line.
type columns struct {
	w   io.Writer
	n   int
	err error
}

func (p *columns) print(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *columns) line(format string, args ...any) {
	if p.n%3 != 0 {
		p.print("\n")
	}
	p.n = 0
	if format != "" {
		p.print(format+"\n", args...)
	}
}

func (p *columns) cell(name string, v uint64) {
	end := "   "
	if p.n++; p.n%3 == 0 {
		end = "\n"
	}
	p.print("%-9s %016x%s", name, v, end)
}

// Around the next instruction, so much is disassembled: bytes before, instructions from it on.
const (
	bytesBefore       = 32
	instructionsAfter = 16
)

// PrintDisassembly writes the instructions around the one that the processor is to
// execute next, which it marks. Those before it are a guess where the code has
// instructions of both lengths.
func PrintDisassembly(w io.Writer, m *machine.Machine) error {
	h := m.Hart()
	if h == nil {
		return errOtherKind
	}
	satp, _ := h.CSR(csrSATP)
	t := translator{m.RAM(), satp, h.Mode()}
	pc := h.PC()
	p := &columns{w: w}
	for from := pc - bytesBefore; from != pc; from += 2 {
		if lines := disassemble(t, from, pc); lines != nil {
			for _, line := range lines {
				p.line("   %s", line)
			}
			break
		}
	}
	mark := "=>"
	for range instructionsAfter {
		text, n := instruction(t, pc)
		p.line("%s %s", mark, text)
		if n == 0 {
			break
		}
		mark, pc = "  ", pc+n
	}
	return p.err
}

// disassemble returns the instructions from one address to another, nil if they do not
// end there or make no sense.
func disassemble(t translator, from, to uint64) (lines []string) {
	for from < to {
		text, n := instruction(t, from)
		if n == 0 || strings.Contains(text, unknown) {
			return nil
		}
		lines = append(lines, text)
		from += n
	}
	if from != to {
		return nil
	}
	return lines
}

// unknown is in the line of what is no instruction that the disassembler knows.
const unknown = ".insn"

// instruction returns a line and the length of the instruction at an address, 0 when
// nothing is there.
func instruction(t translator, at uint64) (line string, n uint64) {
	low, ok := t.half(at)
	if !ok {
		return fmt.Sprintf("%016x  (nothing is mapped here)", at), 0
	}
	code := binary.LittleEndian.AppendUint16(nil, low)
	if low&3 == 3 {
		high, ok := t.half(at + 2)
		if !ok {
			return fmt.Sprintf("%016x  %04x      (its other half is not mapped)", at, low), 0
		}
		code = binary.LittleEndian.AppendUint16(code, high)
	}
	text := fmt.Sprintf("%s 0x%x", unknown, low)
	if len(code) == 4 {
		text = fmt.Sprintf("%s 0x%08x", unknown, binary.LittleEndian.Uint32(code))
	}
	if in, err := riscv64asm.Decode(code); err == nil && in.Len == len(code) {
		text = named(riscv64asm.GNUSyntax(in))
	}
	digits := fmt.Sprintf("%04x", low)
	if len(code) == 4 {
		digits = fmt.Sprintf("%08x", binary.LittleEndian.Uint32(code))
	}
	return fmt.Sprintf("%016x  %-8s  %s", at, digits, text), uint64(len(code))
}

// numbered is a register as the disassembler writes it.
var numbered = regexp.MustCompile(`\bx[0-9]+\b`)

// named gives registers the names that PrintState has for them.
func named(text string) string {
	return numbered.ReplaceAllStringFunc(text, func(x string) string {
		n, err := strconv.Atoi(x[1:])
		if err != nil || n >= len(registerNames) {
			return x
		}
		return registerNames[n]
	})
}

// translator reads a guest's virtual memory without any effect on it.
type translator struct {
	ram  *memory.RAM
	satp uint64
	mode int
}

// half reads two bytes.
func (t translator) half(virtual uint64) (uint16, bool) {
	addr, ok := t.physical(virtual)
	var b [2]byte
	if !ok || !t.ram.Read(b[:], addr) {
		return 0, false
	}
	return binary.LittleEndian.Uint16(b[:]), true
}

// physical walks the page table: the privileged specification's Sv39.
func (t translator) physical(virtual uint64) (uint64, bool) {
	const modeM, sv39, valid, leaf = 3, 8, 1, 2 | 4 | 8
	if t.mode == modeM || t.satp>>60 != sv39 {
		return virtual, true
	}
	if v := int64(virtual) >> 38; v != 0 && v != -1 {
		return 0, false
	}
	table := t.satp << 12 & (1<<56 - 1)
	for level := 2; level >= 0; level-- {
		shift := 12 + 9*level
		var b [8]byte
		if !t.ram.Read(b[:], table+virtual>>shift&511*8) {
			return 0, false
		}
		entry := binary.LittleEndian.Uint64(b[:])
		if entry&valid == 0 {
			return 0, false
		}
		table = entry >> 10 << 12 & (1<<56 - 1)
		if entry&leaf != 0 {
			mask := uint64(1)<<shift - 1
			return table&^mask | virtual&mask, true
		}
	}
	return 0, false
}
