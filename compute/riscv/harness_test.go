package riscv

import (
	"encoding/binary"
	"testing"

	"steadfast/compute/memory"
)

// testBase is where RAM begins in the tests, as in the machine.
const testBase = 0x80000000

// tick is a clock of one tick every ten instructions.
type tick struct{}

func (tick) Time(count uint64) uint64 { return count / 10 }

func (tick) CountAt(time uint64) uint64 {
	if time > never/10 {
		return never
	}
	return time * 10
}

// world is the bus and the machine of a test: no device but a register that remembers.
type world struct {
	h       *Hart
	console []byte
	input   []byte
	stores  []uint64
	counts  []uint64
	resets  []Reset
	onStore func(addr, v uint64)
}

// testDevice is the address of the register.
const testDevice = 0x10000000

func (w *world) Load(addr uint64, size int) (uint64, bool) {
	w.counts = append(w.counts, w.h.Count())
	return 0x1122334455667788, addr-testDevice < 0x1000
}

func (w *world) Store(addr uint64, size int, v uint64) bool {
	if addr-testDevice >= 0x1000 {
		return false
	}
	w.stores, w.counts = append(w.stores, v), append(w.counts, w.h.Count())
	if w.onStore != nil {
		w.onStore(addr, v)
	}
	return true
}

func (w *world) ConsoleWrite(p []byte) int { w.console = append(w.console, p...); return len(p) }

func (w *world) ConsoleRead(p []byte) int {
	n := copy(p, w.input)
	w.input = w.input[n:]
	return n
}

func (w *world) SystemReset(kind Reset, _ uint32) {
	w.resets = append(w.resets, kind)
	w.h.Stop()
}

// newTest makes a hart with RAM of size bytes.
func newTest(t testing.TB, size uint64, o Options) (*Hart, *world) {
	t.Helper()
	ram, err := memory.New(testBase, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ram.Release(); err != nil {
			t.Error(err)
		}
	})
	w := &world{}
	w.h = New(ram, w, tick{}, w, o)
	return w.h, w
}

// put stores instructions, or any words, at an address.
func put(h *Hart, addr uint64, words ...uint32) {
	for i, word := range words {
		binary.LittleEndian.PutUint32(h.bytes[addr-testBase+uint64(4*i):], word)
	}
}

// put64 stores a doubleword, put16 a halfword.
func put64(h *Hart, addr, v uint64) { binary.LittleEndian.PutUint64(h.bytes[addr-testBase:], v) }

func put16(h *Hart, addr uint64, v uint16) { binary.LittleEndian.PutUint16(h.bytes[addr-testBase:], v) }

// get64 reads a doubleword.
func get64(h *Hart, addr uint64) uint64 { return binary.LittleEndian.Uint64(h.bytes[addr-testBase:]) }
