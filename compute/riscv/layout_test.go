package riscv

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"

	"steadfast/compute/device"
)

// row is one of a table of docs/formats/machine.md.
type row struct {
	offset, bytes int
	field         string
}

// layout reads the table of a section of docs/formats/machine.md.
func layout(t *testing.T, section string) (rows []row) {
	t.Helper()
	text, err := os.ReadFile("../../docs/formats/machine.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text2, ok := strings.Cut(string(text), "\n## "+section)
	if !ok {
		t.Fatal("no section", section)
	}
	for line := range strings.Lines(text2) {
		if strings.HasPrefix(line, "#") {
			break
		}
		var r row
		if n, _ := fmt.Sscanf(line, "| %d | %d |", &r.offset, &r.bytes); n == 2 {
			r.field = strings.TrimSpace(strings.Split(line, "|")[3])
			rows = append(rows, r)
		}
	}
	return rows
}

// checkLayout holds saved bytes to a table: fields in the order of the table, and of each
// its bytes.
func checkLayout(t *testing.T, rows []row, saved []byte, fields [][]byte) {
	t.Helper()
	if len(rows) != len(fields) {
		t.Fatalf("%d fields are in the page, %d are known here", len(rows), len(fields))
	}
	at := 0
	for i, r := range rows {
		if r.offset != at || r.bytes != len(fields[i]) || at+r.bytes > len(saved) {
			t.Fatalf("%s: %d bytes at %d, want %d at %d", r.field, r.bytes, r.offset, len(fields[i]), at)
		}
		if got := saved[at : at+r.bytes]; string(got) != string(fields[i]) {
			t.Errorf("%s at %d is % x, want % x", r.field, at, got, fields[i])
		}
		at += r.bytes
	}
	if at != len(saved) {
		t.Errorf("%d bytes are saved, the page has %d", len(saved), at)
	}
}

// words are 64-bit integers as they are saved.
func words(of ...uint64) (b []byte) {
	for _, v := range of {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// TestHartLayout: docs/formats/machine.md has the hart to the byte.
func TestHartLayout(t *testing.T) {
	h, _ := newTest(t, 1<<18, Options{})
	next := uint64(0x1111)
	value := func() uint64 { next += 0x0101010101010110; return next }
	for i := 1; i < 32; i++ {
		h.x[i] = value()
	}
	for i := range h.f {
		h.f[i] = value()
	}
	h.count, h.pc, h.mode, h.waiting, h.external = value(), value()&^1, modeU, true, true
	h.mstatus, h.mie, h.soft = statusSUM|statusFS, irqSTI|irqSSI, irqSSI
	h.stvec, h.sepc, h.scause, h.stval, h.sscratch = value()&^3, value()&^1, value(), value(), value()
	h.scounteren, h.senvcfg, h.satp, h.stimecmp = 5, envCBZE, 8<<60|value()>>8, value()
	h.fflags, h.frm = 17, 3
	h.reservedSize, h.reserved = 8, testBase+0x128
	b := saved(h)
	checkLayout(t, layout(t, "Processor, version 1"), b, [][]byte{
		{saveVersion},
		words(h.count), words(h.pc),
		{0},
		words(h.x[1:32]...), words(h.f[:]...),
		words(h.mstatus), words(h.mie), words(h.soft), words(h.stvec), words(h.sepc), words(h.scause), words(h.stval), words(h.sscratch),
		words(h.scounteren), words(h.senvcfg), words(h.satp), words(h.stimecmp), words(h.fflags), words(h.frm),
		make([]byte, 88),
		{8},
		words(h.reserved),
		{1},
		{1},
	})
	if err := h.Restore(device.NewDecoder(b)); err != nil {
		t.Error(err)
	}
}

// TestPLICLayout: and the interrupt controller.
func TestPLICLayout(t *testing.T) {
	p := NewPLIC(func(bool) {})
	priority := make([]byte, plicSources)
	for n := 1; n < plicSources; n++ {
		priority[n] = byte(n % 8)
		p.priority[n] = uint32(priority[n])
	}
	p.level, p.pending, p.claimed = 0x1122334455667788, 0x99aabbccddeeff00, 0x0102030405060708
	p.enabled, p.threshold = [plicContexts]uint64{0x1020304050607080, 0x8070605040302010}, [plicContexts]uint32{3, 5}
	var e device.Encoder
	p.Save(&e)
	checkLayout(t, layout(t, "Interrupt controller"), e.Bytes(), [][]byte{
		priority, words(p.level), words(p.pending), words(p.claimed), words(p.enabled[0]), {3}, words(p.enabled[1]), {5},
	})
	if err := p.Restore(device.NewDecoder(e.Bytes())); err != nil {
		t.Error(err)
	}
}

// TestSaveBare: what a hart with M mode has besides comes after everything else.
func TestSaveBare(t *testing.T) {
	plain, _ := newTest(t, 1<<18, Options{})
	a, _ := newTest(t, 1<<18, Options{Bare: true})
	b, _ := newTest(t, 1<<18, Options{Bare: true})
	a.csrWrite(csrPmpcfg0, 0x1f)
	a.csrWrite(csrPmpaddr15, 0x1234)
	a.csrWrite(csrMtvec, testBase)
	if n := len(saved(a)) - len(saved(plain)); n != 18*8 {
		t.Errorf("M mode's registers are %d bytes", n)
	}
	if err := b.Restore(device.NewDecoder(saved(a))); err != nil {
		t.Fatal(err)
	}
	if string(saved(a)) != string(saved(b)) {
		t.Error("it saves other than it was restored")
	}
	if v, _ := b.csrRead(csrPmpaddr15); v != 0x1234 {
		t.Errorf("pmpaddr15 is %x", v)
	}
	bad := saved(a)
	bad[len(bad)-1] = 0xff
	if b.Restore(device.NewDecoder(bad)) == nil {
		t.Error("an address of 64 bits was restored")
	}
}
