package device

import (
	"encoding/binary"

	"steadfast/fault"
)

// Encoder makes the bytes of a saved state: little-endian integers, and bytes after
// their length (uint32). What is saved equal is equal bytes.
type Encoder struct{ b []byte }

// Bytes returns what was encoded.
func (e *Encoder) Bytes() []byte { return e.b }

// U8 appends a byte.
func (e *Encoder) U8(v uint8) { e.b = append(e.b, v) }

// Bool appends 0 or 1.
func (e *Encoder) Bool(v bool) {
	if v {
		e.U8(1)
		return
	}
	e.U8(0)
}

// U16 appends two bytes.
func (e *Encoder) U16(v uint16) { e.b = binary.LittleEndian.AppendUint16(e.b, v) }

// U32 appends four bytes.
func (e *Encoder) U32(v uint32) { e.b = binary.LittleEndian.AppendUint32(e.b, v) }

// U64 appends eight bytes.
func (e *Encoder) U64(v uint64) { e.b = binary.LittleEndian.AppendUint64(e.b, v) }

// Data appends bytes, after their length.
func (e *Encoder) Data(p []byte) {
	e.U32(uint32(len(p)))
	e.b = append(e.b, p...)
}

// Decoder reads what an Encoder has made. The first thing that does not fit makes
// everything after it zero, and Err tell so: only that has to be looked at.
type Decoder struct {
	b   []byte
	err error
}

// NewDecoder reads b.
func NewDecoder(b []byte) *Decoder { return &Decoder{b: b} }

// Err returns fault.Corrupt if the bytes did not fit.
func (d *Decoder) Err() error { return d.err }

// Left returns how many bytes are left.
func (d *Decoder) Left() int { return len(d.b) }

// Fail makes Err tell what does not fit.
func (d *Decoder) Fail(what string) {
	if d.err == nil {
		d.err = fault.New(fault.Corrupt, "a saved state: %s", what)
	}
	d.b = nil
}

func (d *Decoder) take(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.Fail("it is cut short")
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

// U8 reads a byte.
func (d *Decoder) U8() uint8 {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

// Bool reads a byte that must be 0 or 1.
func (d *Decoder) Bool() bool {
	v := d.U8()
	if v > 1 {
		d.Fail("a truth value of neither kind")
	}
	return v == 1
}

// U16 reads two bytes.
func (d *Decoder) U16() uint16 {
	if p := d.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

// U32 reads four bytes.
func (d *Decoder) U32() uint32 {
	if p := d.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

// U64 reads eight bytes.
func (d *Decoder) U64() uint64 {
	if p := d.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// Data reads bytes that follow their length, at most so many. They are the
// decoder's own memory: copy what is kept.
func (d *Decoder) Data(most int) []byte {
	n := int(d.U32())
	if n > most {
		d.Fail("more bytes than there can be")
		return nil
	}
	return d.take(n)
}
