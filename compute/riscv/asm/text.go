package asm

import "encoding/binary"

// Text is code in the making: words, and labels that may be used before they are set.
type Text struct {
	base   uint64
	words  []uint32
	labels map[string]int
	holes  []hole
}

// hole is where words follow from the place of a label.
type hole struct {
	at    int
	label string
	make  func(off int32) []uint32
}

// NewText begins code whose first word is at base.
func NewText(base uint64) *Text { return &Text{base: base, labels: map[string]int{}} }

// Emit appends words.
func (t *Text) Emit(words ...uint32) { t.words = append(t.words, words...) }

// Label names the place of the next word. A label is set once.
func (t *Text) Label(name string) {
	if _, ok := t.labels[name]; ok {
		panic("asm: label " + name + " is set twice")
	}
	t.labels[name] = len(t.words)
}

// Here is the address of the next word.
func (t *Text) Here() uint64 { return t.base + uint64(4*len(t.words)) }

// Later appends n words that Done will have made of the distance in bytes from the first
// of them to a label.
func (t *Text) Later(n int, label string, make func(off int32) []uint32) {
	t.holes = append(t.holes, hole{len(t.words), label, make})
	for range n {
		t.Emit(0)
	}
}

// Branch branches to a label on a condition: Equal and its like.
func (t *Text) Branch(condition, rs1, rs2 uint32, label string) {
	t.Later(1, label, func(off int32) []uint32 { return []uint32{B(condition, rs1, rs2, off)} })
}

// Jal jumps to a label, and leaves in rd where to go back to.
func (t *Text) Jal(rd uint32, label string) {
	t.Later(1, label, func(off int32) []uint32 { return []uint32{Jal(rd, off)} })
}

// J jumps to a label.
func (t *Text) J(label string) { t.Jal(Zero, label) }

// La loads a label's address, in two instructions.
func (t *Text) La(rd uint32, label string) {
	t.Later(2, label, func(off int32) []uint32 {
		return []uint32{Auipc(rd, (off+0x800)>>12), Addi(rd, rd, off<<20>>20)}
	})
}

// Done returns the words. A label that was never set is a mistake of the test's, and panics.
func (t *Text) Done() []uint32 {
	for _, h := range t.holes {
		to, ok := t.labels[h.label]
		if !ok {
			panic("asm: label " + h.label + " is not set")
		}
		copy(t.words[h.at:], h.make(int32(4*(to-h.at))))
	}
	return t.words
}

// Bytes returns what Done does, as it lies in memory.
func (t *Text) Bytes() []byte {
	words := t.Done()
	b := make([]byte, 0, 4*len(words))
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}
