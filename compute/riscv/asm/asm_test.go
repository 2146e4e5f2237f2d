package asm

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestEncodings: words that were made by the GNU assembler.
func TestEncodings(t *testing.T) {
	for _, c := range []struct {
		name string
		got  uint32
		want uint32
	}{
		{"beq a0, a1, -4096", B(Equal, A0, A1, -4096), 0x80b50063},
		{"bgeu s2, zero, 4094", B(GreaterEqualUnsigned, S2, Zero, 4094), 0x7e097fe3},
		{"jal ra, -1048576", Jal(RA, -1<<20), 0x800000ef},
		{"jal zero, 1048574", Jal(Zero, 1<<20-2), 0x7ffff06f},
		{"jalr ra, -1(t0)", Jalr(RA, T0, -1), 0xfff280e7},
		{"lui t6, 0xfffff", Lui(T6, -1), 0xffffffb7},
		{"auipc gp, 1", Auipc(GP, 1), 0x00001197},
		{"addiw s1, s1, -2048", Addiw(S1, S1, -2048), 0x8004849b},
		{"srli t5, t5, 63", Srli(T5, T5, 63), 0x03ff5f13},
		{"sd t6, -8(sp)", Sd(T6, SP, -8), 0xfff13c23},
		{"sw a7, 2047(tp)", Sw(A7, TP, 2047), 0x7f122fa3},
		{"fld ft1, 16(sp)", Fld(1, SP, 16), 0x01013087},
		{"csrrc t1, mstatus, t2", Csrrc(T1, 0x300, T2), 0x3003b373},
		{"csrrwi zero, frm, 1", Csr(5, Zero, 2, 1), 0x0020d073},
		{"sc.d a0, a1, (a2)", Sc(3, A0, A2, A1), 0x18b6352f},
		{"lr.w a0, (a1)", Lr(2, A0, A1), 0x1005a52f},
		{"fnmadd.d f1, f2, f3, f4, rtz", Fma(0x4f, 1, 1, 2, 3, 4, 1), 0x223110cf},
		{"fsub.s f1, f2, f3, rup", Float(1, 0, 3, 1, 2, 3), 0x083130d3},
	} {
		if c.got != c.want {
			t.Errorf("%s is %08x, want %08x", c.name, c.got, c.want)
		}
	}
}

// run has the words of Li do what they do.
func run(words []uint32) (v uint64) {
	for _, w := range words {
		imm := uint64(int64(int32(w)) >> 20)
		switch w & 0x707f {
		case 0x13:
			if w>>15&31 == 0 {
				v = 0
			}
			v += imm
		case 0x1b:
			v = uint64(int64(int32(v + imm)))
		case 0x1013:
			v <<= imm & 63
		case 0x5013:
			v >>= imm & 63
		default: // lui
			v = uint64(int64(int32(w &^ 0xfff)))
		}
	}
	return v
}

// TestConstants: Li and Li32 load what they are told to.
func TestConstants(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 100_000 {
		v := r.Uint64() >> r.UintN(64)
		if r.IntN(2) == 0 {
			v = -v
		}
		if words := Li(A0, v); run(words) != v || len(words) > 8 {
			t.Fatalf("%x is loaded as %x by %08x", v, run(words), words)
		}
		if words := Li32(A0, uint32(v)); run(words) != uint64(uint32(v)) || len(words) != 4 {
			t.Fatalf("%x is loaded as %x by %08x", uint32(v), run(words), words)
		}
	}
}

// TestText: labels ahead and behind, near and far.
func TestText(t *testing.T) {
	c := NewText(0x1000)
	c.Branch(Less, A0, A1, "end")
	c.Label("back")
	if c.Here() != 0x1004 {
		t.Errorf("here is %x", c.Here())
	}
	c.Emit(Nop)
	c.La(A0, "end")
	c.La(A1, "back")
	c.Jal(RA, "back")
	for range 600 {
		c.Emit(Nop)
	}
	c.Label("end")
	c.J("back")
	c.La(A2, "end")
	words := c.Done()
	want := []uint32{
		B(Less, A0, A1, 4*607), Nop, Auipc(A0, 1), Addi(A0, A0, 4*605-4096), Auipc(A1, 0), Addi(A1, A1, -12), Jal(RA, -20),
	}
	if !slices.Equal(words[:7], want) || words[607] != Jal(Zero, -4*606) || words[609] != Addi(A2, A2, -4) {
		t.Errorf("%08x ... %08x", words[:7], words[607:])
	}
	b := c.Bytes()
	if len(b) != 4*len(words) || binary.LittleEndian.Uint32(b[4:]) != Nop {
		t.Error("the bytes are others")
	}
}

// TestMistakes: a label that is missing, or there twice, is told at once.
func TestMistakes(t *testing.T) {
	for name, do := range map[string]func(c *Text){
		"missing": func(c *Text) { c.J("nowhere"); c.Done() },
		"twice":   func(c *Text) { c.Label("here"); c.Label("here") },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("nothing was told")
				}
			}()
			do(NewText(0))
		})
	}
}

// source is assembler's text, and the words that this package makes of it.
type source struct {
	text  strings.Builder
	words []uint32
}

func (s *source) add(w uint32, format string, args ...any) {
	fmt.Fprintf(&s.text, format+"\n", args...)
	s.words = append(s.words, w)
}

// random adds each function of one instruction, with random operands.
func (s *source) random(r *rand.Rand) {
	d, a, b := r.Uint32N(32), r.Uint32N(32), r.Uint32N(32)
	imm, n, off := r.Int32N(4096)-2048, r.Int32N(64), r.Int32N(4096)*2-4096
	hi, csr := r.Int32N(1<<20), r.Uint32N(4096)
	s.add(Jalr(d, a, imm), "jalr x%d, %d(x%d)", d, imm, a)
	s.add(Lui(d, hi), "lui x%d, %d", d, hi)
	s.add(Auipc(d, hi), "auipc x%d, %d", d, hi)
	for i, name := range []string{"addi", "addiw", "andi", "sltiu"} {
		w := []func(rd, rs1 uint32, imm int32) uint32{Addi, Addiw, Andi, Sltiu}[i](d, a, imm)
		s.add(w, "%s x%d, x%d, %d", name, d, a, imm)
	}
	s.add(Slli(d, a, n), "slli x%d, x%d, %d", d, a, n)
	s.add(Srli(d, a, n), "srli x%d, x%d, %d", d, a, n)
	for i, name := range []string{"add", "xor", "or", "and", "srl"} {
		s.add([]func(rd, rs1, rs2 uint32) uint32{Add, Xor, Or, And, Srl}[i](d, a, b), "%s x%d, x%d, x%d", name, d, a, b)
	}
	for i, name := range []string{"lbu", "lhu", "lw", "ld", "sw", "sd"} {
		s.add([]func(rd, rs1 uint32, imm int32) uint32{Lbu, Lhu, Lw, Ld, Sw, Sd}[i](d, a, imm), "%s x%d, %d(x%d)", name, d, imm, a)
	}
	s.add(Fld(d, a, imm), "fld f%d, %d(x%d)", d, imm, a)
	s.add(Csrrw(d, csr, a), "csrrw x%d, %d, x%d", d, csr, a)
	s.add(Csrrs(d, csr, a), "csrrs x%d, %d, x%d", d, csr, a)
	s.add(Csrrc(d, csr, a), "csrrc x%d, %d, x%d", d, csr, a)
	s.add(Amo(4, 3, d, a, b), "amoxor.d x%d, x%d, (x%d)", d, b, a)
	s.add(Lr(3, d, a), "lr.d x%d, (x%d)", d, a)
	s.add(Sc(2, d, a, b), "sc.w x%d, x%d, (x%d)", d, b, a)
	s.add(Float(2, 1, 4, d, a, b), "fmul.d f%d, f%d, f%d, rmm", d, a, b)
	s.add(Fma(0x47, 0, d, a, b, a^1, 2), "fmsub.s f%d, f%d, f%d, f%d, rdn", d, a, b, a^1)
	for f3, name := range map[uint32]string{Equal: "beq", Unequal: "bne", Less: "blt", GreaterEqual: "bge", LessUnsigned: "bltu", GreaterEqualUnsigned: "bgeu"} {
		s.add(B(f3, a, b, off), "%s x%d, x%d, .%+d", name, a, b, off)
	}
	s.add(Jal(d, off<<8), "jal x%d, .%+d", d, off<<8)
}

// TestAgainstGNU: every function of one instruction says what the GNU assembler does.
func TestAgainstGNU(t *testing.T) {
	const as = "riscv64-linux-gnu-as"
	if _, err := exec.LookPath(as); err != nil {
		t.Skip("SKIP: no " + as + " (apt-get install binutils-riscv64-linux-gnu)")
	}
	var s source
	s.text.WriteString(".option norvc\n.option norelax\n")
	r := rand.New(rand.NewPCG(2, 2))
	for range 200 {
		s.random(r)
	}
	for name, w := range map[string]uint32{
		"nop": Nop, "ecall": Ecall, "ebreak": Ebreak, "sret": Sret, "mret": Mret, "wfi": Wfi, "fence.i": FenceI, "sfence.vma": SfenceVMA,
	} {
		s.add(w, "%s", name)
	}
	b := assemble(t, as, s.text.String())
	if len(b) != 4*len(s.words) {
		t.Fatalf("%d bytes of %d words", len(b), len(s.words))
	}
	for i, w := range s.words {
		if got := binary.LittleEndian.Uint32(b[4*i:]); got != w {
			t.Errorf("word %d is %08x, the GNU assembler's %08x", i, w, got)
		}
	}
}

// assemble has the GNU assembler do it.
func assemble(t *testing.T, as, text string) []byte {
	t.Helper()
	dir := t.TempDir()
	file, object, linked, raw := filepath.Join(dir, "a.s"), filepath.Join(dir, "a.o"), filepath.Join(dir, "a"), filepath.Join(dir, "a.bin")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{as, "-march=rv64gc", "-o", object, file},
		// In the middle of the address space, for jumps that lead out of the text.
		{"riscv64-linux-gnu-ld", "-Ttext=0x40000000", "-e0", "-o", linked, object},
		{"riscv64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", linked, raw},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
