package riscv

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"steadfast/compute/device"
	"steadfast/compute/riscv/asm"
)

// saved is what a hart saves.
func saved(h *Hart) []byte {
	var e device.Encoder
	h.Save(&e)
	return e.Bytes()
}

// random fills the hart's memory with what is mostly code: legal instructions of all
// kinds on random registers, that access memory near x2 and jump near where they are.
func random(h *Hart, r *rand.Rand) {
	for off := 0; off < 0x10000; off += 4 {
		word := r.Uint32() | 3
		if r.IntN(3) != 0 {
			word = word&^0x7f | []uint32{0x13, 0x33, 0x3b, 0x1b, 0x03, 0x23, 0x63, 0x2f, 0x53, 0x43, 0x07, 0x27, 0x6f, 0x73}[r.IntN(14)]
		}
		switch word & 0x7f {
		case 0x03, 0x23, 0x07, 0x27, 0x2f:
			word = word&^(31<<15) | 2<<15
		case 0x6f:
			word = word&0xfff | uint32(r.IntN(128))<<21
		case 0x33, 0x3b:
			word &= 0x4200707f | 0x01ff8f80
		case 0x73:
			if r.IntN(4) != 0 {
				word = word&^0xfff00000 | []uint32{1, 2, 3, csrSstatus, csrSie, csrSip, csrSscratch, csrStimecmp, csrTime, csrInstret}[r.IntN(10)]<<20
			}
		}
		if r.IntN(8) == 0 {
			word = r.Uint32()
		}
		put(h, testBase+uint64(off), word)
	}
	// The handler goes on behind what trapped.
	put(h, testBase+0x100, asm.Csrrs(31, csrSepc, 0), asm.Addi(31, 31, 4), asm.Csrrw(0, csrSepc, 31), asm.Lui(31, 0x6), asm.Csrrs(0, csrSstatus, 31), asm.Sret)
	put64(h, testRoot+8*2, testBase>>2|leafAll)
	h.Reset(testBase+0x200, 0, 0)
	h.stvec = testBase + 0x100
	for i := 1; i < 32; i++ {
		h.x[i], h.f[i] = r.Uint64(), boxed|uint64(r.Uint32())
	}
	h.x[2] = testBase + 0x20000
	if r.IntN(2) == 0 {
		h.csrWrite(csrSatp, 8<<60|testRoot>>12)
	}
}

// TestSave: what goes on after Restore in another hart is what would have gone on, and
// the saved bytes do not tell how a hart came there.
func TestSave(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		a, _ := newTest(t, 1<<18, Options{})
		random(a, r)
		a.Run(r.Uint64N(3000))
		b, _ := newTest(t, 1<<18, Options{})
		copy(b.bytes, a.bytes)
		if err := b.Restore(device.NewDecoder(saved(a))); err != nil {
			t.Fatal(seed, err)
		}
		if !bytes.Equal(saved(a), saved(b)) {
			t.Fatal(seed, "it saves other than it was restored")
		}
		end := a.count + 3000
		stopA := runTo(a, end)
		for b.count < end {
			before := b.count
			b.Step()
			if b.waiting {
				b.Idle(end)
			}
			if b.count == before && b.wedged {
				break
			}
		}
		if !bytes.Equal(saved(a), saved(b)) || !bytes.Equal(a.bytes, b.bytes) {
			t.Errorf("seed %d: another state after %d instructions (stop %d)", seed, a.count, stopA)
		}
	}
}

// TestRestoreInPlace: a hart that is restored with another RAM runs what is there now.
func TestRestoreInPlace(t *testing.T) {
	h, _ := newTest(t, 1<<18, Options{})
	put(h, testBase, asm.Addi(3, 3, 1), asm.Jal(0, -4))
	h.Reset(testBase, 0, 0)
	begin := saved(h)
	h.Run(10)
	put(h, testBase, asm.Addi(3, 3, 100))
	if err := h.Restore(device.NewDecoder(begin)); err != nil {
		t.Fatal(err)
	}
	if h.Run(1); h.x[3] != 100 {
		t.Errorf("x3 is %d, want 100", h.x[3])
	}
}

// runTo runs as far as the hart goes.
func runTo(h *Hart, end uint64) Stop {
	for {
		switch stop := h.Run(end); stop {
		case StopIdle:
			h.Idle(end)
		case StopAsked:
		default:
			return stop
		}
	}
}

// TestRestoreRefuses: no bytes but those of a hart, and never a panic afterwards.
func TestRestoreRefuses(t *testing.T) {
	h, _ := newTest(t, 1<<18, Options{})
	random(h, rand.New(rand.NewPCG(1, 1)))
	h.Run(500)
	good := saved(h)
	for n := range good {
		if h.Restore(device.NewDecoder(good[:n])) == nil {
			t.Fatalf("%d bytes of %d were restored", n, len(good))
		}
	}
	r := rand.New(rand.NewPCG(2, 2))
	for range 2000 {
		bad := bytes.Clone(good)
		bad[r.IntN(len(bad))] ^= 1 << r.IntN(8)
		if h.Restore(device.NewDecoder(bad)) == nil {
			h.Run(h.count + 50)
		}
	}
	e := bytes.Clone(good)
	e[17] = byte(modeM)
	if h.Restore(device.NewDecoder(e)) == nil {
		t.Error("M mode was restored on a hart that has none")
	}
}

// FuzzCode: no memory makes the hart panic or leave its RAM, and stepping is running.
func FuzzCode(f *testing.F) {
	f.Add([]byte{0x13, 0x05, 0x15, 0x00, 0x01, 0x00}, uint64(1))
	f.Add([]byte{0x73, 0x00, 0x10, 0x00}, uint64(3))
	r := rand.New(rand.NewPCG(3, 3))
	for seed := range uint64(8) {
		b := make([]byte, 512)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b, seed)
	}
	f.Fuzz(func(t *testing.T, code []byte, seed uint64) {
		whole, _ := newTest(t, 1<<18, Options{})
		parts, _ := newTest(t, 1<<18, Options{})
		for _, h := range []*Hart{whole, parts} {
			random(h, rand.New(rand.NewPCG(seed, 4)))
			copy(h.bytes[0x200:0x8000], code)
			h.dropAllCode()
		}
		const end = 2000
		runTo(whole, end)
		r := rand.New(rand.NewPCG(seed, 5))
		for parts.count < end {
			if runTo(parts, min(end, parts.count+1+r.Uint64N(30))) == StopWedged {
				break
			}
		}
		if !bytes.Equal(saved(whole), saved(parts)) || !bytes.Equal(whole.bytes, parts.bytes) {
			t.Errorf("cut into parts it ran otherwise: %d and %d instructions, pc %x and %x", whole.count, parts.count, whole.pc, parts.pc)
		}
	})
}
