package bare

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"steadfast/compute/riscv/asm"
	"steadfast/fault"
)

// Where a program of a test has its words, from its base on.
const (
	toHostAt, fromHostAt = 0x1000, 0x1008
	signatureAt          = 0x1010
	memoryBytes          = 1 << 20
)

// program assembles a test's program; t0 is its tohost when it begins.
func program(body func(t *asm.Text)) []byte {
	t := asm.NewText(Base)
	t.Emit(asm.Li(asm.T0, Base+toHostAt)...)
	body(t)
	image := make([]byte, 0x2000)
	copy(image, t.Bytes())
	for i := range 24 {
		image[signatureAt+i] = byte(i + 1)
	}
	return asm.ELF(Base, image, map[string]uint64{
		"tohost": Base + toHostAt, "fromhost": Base + fromHostAt,
		"begin_signature": Base + signatureAt, "end_signature": Base + signatureAt + 20,
	})
}

// tell emits the end of a program with a value.
func tell(t *asm.Text, value uint64) {
	t.Emit(asm.Li(asm.T1, value)...)
	t.Label("end")
	t.Emit(asm.Sd(asm.T1, asm.T0, 0))
	t.J("end")
}

// load makes a machine of a program.
func load(t testing.TB, file []byte, o Options) *Machine {
	t.Helper()
	m, err := Load(bytes.NewReader(file), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Release(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// TestEnds: how programs end.
func TestEnds(t *testing.T) {
	const limit = 100_000
	for _, c := range []struct {
		name string
		body func(t *asm.Text)
		code uint64
		kind fault.Kind
		text string
	}{
		{"pass", func(t *asm.Text) { tell(t, 1) }, 0, 0, ""},
		{"failed test 7", func(t *asm.Text) { tell(t, 7<<1|1) }, 7, 0, ""},
		{"endless", func(t *asm.Text) { t.Label("here"); t.J("here") }, 0, fault.Limit, "higher limit"},
		{"idle", func(t *asm.Text) { t.Emit(asm.Wfi, asm.Wfi) }, 0, fault.Failed, "cannot come"},
		{"idle with a timer that is off", func(t *asm.Text) {
			t.Emit(asm.Li(asm.T1, 1<<5)...)
			t.Emit(asm.Csrrw(0, 0x304, asm.T1), asm.Csrrw(0, 0x14d, asm.T1), asm.Wfi)
		}, 0, fault.Failed, "cannot come"},
		{"wedged", func(t *asm.Text) { t.Emit(asm.Csrrw(0, 0x305, 0), 0) }, 0, fault.Failed, "mcause 0x1"},
		{"even", func(t *asm.Text) { tell(t, 2) }, 0, fault.Invalid, "0x2"},
		{"another device", func(t *asm.Text) { tell(t, 9<<56|1) }, 0, fault.Invalid, "0x900000000000001"},
		{"a call outside of memory", func(t *asm.Text) { tell(t, Base+memoryBytes-56) }, 0, fault.Invalid, "write and exit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := load(t, program(c.body), Options{Memory: memoryBytes, Limit: limit})
			r, err := m.Run()
			if c.text != "" {
				if !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
					t.Errorf("%+v, %v", r, err)
				}
				return
			}
			if err != nil || r.Code != c.code || r.Unexpected || r.Count == 0 {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
}

// TestUnexpected: the environment's own word for a trap without a handler is told as that.
func TestUnexpected(t *testing.T) {
	m := load(t, program(func(t *asm.Text) {
		t.La(asm.T2, "trap")
		t.Emit(asm.Csrrw(0, 0x305, asm.T2), asm.Ld(asm.T3, asm.Zero, 8))
		t.Label("trap")
		tell(t, 3|unexpected)
	}), Options{Memory: memoryBytes, Limit: 1000})
	r, err := m.Run()
	if err != nil || !r.Unexpected || r.Cause != 5 || r.Value != 8 || r.PC < Base || r.PC > Base+0x40 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestTimer: a program that waits for its timer gets it.
func TestTimer(t *testing.T) {
	m := load(t, program(func(t *asm.Text) {
		t.Emit(asm.Li(asm.T1, 1<<63)...) // menvcfg.STCE
		t.Emit(asm.Csrrw(0, 0x30a, asm.T1), asm.Addi(asm.T1, asm.Zero, 1<<5), asm.Csrrw(0, 0x304, asm.T1))
		t.Emit(asm.Addi(asm.T1, asm.Zero, 2000), asm.Csrrw(0, 0x14d, asm.T1), asm.Wfi)
		tell(t, 1)
	}), Options{Memory: memoryBytes, Limit: 100_000})
	if r, err := m.Run(); err != nil || r.Code != 0 || r.Count < 20_000 || r.Count > 22_000 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestConsole: characters one by one, the calls write and exit, and one that there is not.
func TestConsole(t *testing.T) {
	var console bytes.Buffer
	m := load(t, program(func(t *asm.Text) {
		wait := func(name string, ask uint64) {
			t.Emit(asm.Li(asm.T1, ask)...)
			t.Emit(asm.Sd(asm.T1, asm.T0, 0))
			t.Label(name)
			t.Emit(asm.Ld(asm.T1, asm.T0, 0))
			t.Branch(asm.Unequal, asm.T1, 0, name)
		}
		wait("h", 1<<56|1<<48|'h')
		wait("i", 1<<56|1<<48|'i')
		call := func(name string, arguments ...uint64) {
			for i, v := range arguments {
				t.Emit(asm.Li(asm.T1, v)...)
				t.Emit(asm.Sd(asm.T1, asm.T0, int32(0x40+8*i)))
			}
			t.Emit(asm.Sd(0, asm.T0, fromHostAt-toHostAt))
			wait(name, Base+toHostAt+0x40)
		}
		call("write", callWrite, 1, Base+signatureAt, 3)
		t.Emit(asm.Ld(asm.S0, asm.T0, 0x40), asm.Ld(asm.S1, asm.T0, fromHostAt-toHostAt))
		call("outside", callWrite, 1, Base+memoryBytes-2, 3)
		t.Emit(asm.Ld(asm.S2, asm.T0, 0x40))
		call("other", 1000)
		t.Emit(asm.Ld(asm.S3, asm.T0, 0x40))
		call("exit", callExit, 5)
	}), Options{Memory: memoryBytes, Limit: 100_000, Console: &console})
	r, err := m.Run()
	if err != nil || r.Code != 5 || console.String() != "hi\x01\x02\x03" {
		t.Errorf("%+v, %v, %q", r, err, console.String())
	}
	if got := [4]uint64{m.hart.X(asm.S0), m.hart.X(asm.S1), m.hart.X(asm.S2), m.hart.X(asm.S3)}; got != [4]uint64{3, 1, noCall, noCall} {
		t.Errorf("the calls came to %x", got)
	}
}

// TestSignature: the form of riscv-arch-test, filled up with zeros.
func TestSignature(t *testing.T) {
	m := load(t, program(func(t *asm.Text) { tell(t, 1) }), Options{Memory: memoryBytes, Limit: 1000})
	for granularity, want := range map[int]string{
		4:  "04030201\n08070605\n0c0b0a09\n100f0e0d\n14131211\n",
		8:  "0807060504030201\n100f0e0d0c0b0a09\n0000000014131211\n",
		16: "100f0e0d0c0b0a090807060504030201\n00000000000000000000000014131211\n",
	} {
		var b bytes.Buffer
		if err := m.WriteSignature(&b, granularity); err != nil || b.String() != want {
			t.Errorf("by %d: %v\n%s", granularity, err, b.String())
		}
	}
	if err := m.WriteSignature(&bytes.Buffer{}, 3); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	// The environment v of riscv-tests has its beginning only.
	for text, ends := range map[string][2]uint64{
		"no symbols":   {Base + 8, 0},
		"from 0x80000": {Base + 16, Base + 8},
		"memory of":    {Base + 8, Base + memoryBytes + 8},
	} {
		symbols := map[string]uint64{"tohost": Base + 0x1000, "begin_signature": ends[0], "end_signature": ends[1]}
		none := load(t, asm.ELF(Base, []byte{0, 0}, symbols), Options{Memory: memoryBytes, Limit: 1})
		if err := none.WriteSignature(&bytes.Buffer{}, 4); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), text) {
			t.Error(err)
		}
	}
}

// TestRefuses: what is no program of a suite, and what the error says to do.
func TestRefuses(t *testing.T) {
	good := program(func(t *asm.Text) { tell(t, 1) })
	with := func(at int, v ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], v)
		return b
	}
	symbols := func(s map[string]uint64) []byte { return asm.ELF(Base, []byte{0, 0}, s) }
	outside := asm.ELF(0x1000, []byte{0, 0}, map[string]uint64{"tohost": Base})
	for _, c := range []struct {
		name, text string
		file       []byte
	}{
		{"empty", "no ELF file", nil},
		{"text", "no ELF file", []byte(strings.Repeat("a text file\n", 100))},
		{"another machine", "a compiler for riscv64", with(18, 62, 0)},
		{"relocatable", "-nostartfiles", with(16, 1, 0)},
		{"position-independent", "-static", with(16, 3, 0)},
		{"no tohost", "do not strip", symbols(map[string]uint64{"main": Base})},
		{"no symbols", "do not strip", symbols(nil)},
		{"tohost outside", "no aligned word", symbols(map[string]uint64{"tohost": Base + memoryBytes})},
		{"tohost askew", "no aligned word", symbols(map[string]uint64{"tohost": Base + 4})},
		{"fromhost outside", "fromhost", symbols(map[string]uint64{"tohost": Base, "fromhost": 8})},
		{"loaded elsewhere", "link it there", outside},
	} {
		m, err := Load(bytes.NewReader(c.file), Options{Memory: memoryBytes})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.text) || m != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// RV32: the class decides how all else is read, so a whole file of 32 bits.
	b := make([]byte, 52)
	copy(b, "\x7fELF\x01\x01\x01")
	binary.LittleEndian.PutUint16(b[16:], 2)
	binary.LittleEndian.PutUint16(b[18:], 243)
	b[20], b[40], b[42], b[46] = 1, 52, 32, 40
	if _, err := Load(bytes.NewReader(b), Options{Memory: memoryBytes}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "rv64gc") {
		t.Error(err)
	}
	if _, err := Load(bytes.NewReader(good), Options{Memory: 100}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

// TestDamaged: no damage to a file makes it do more than fail or run to its limit.
func TestDamaged(t *testing.T) {
	good := program(func(t *asm.Text) { tell(t, 1) })
	r := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		bad := bytes.Clone(good)
		for range 1 + r.IntN(3) {
			// The headers, the code, or the symbols behind the image.
			at := []int{r.IntN(200), len(bad) - 1 - r.IntN(600)}[r.IntN(2)]
			bad[at] ^= 1 << r.IntN(8)
		}
		m, err := Load(bytes.NewReader(bad), Options{Memory: memoryBytes, Limit: 3000})
		if err != nil {
			continue
		}
		_, _ = m.Run()
		_ = m.WriteSignature(io.Discard, 4)
		if err := m.Release(); err != nil {
			t.Fatal(err)
		}
	}
}
