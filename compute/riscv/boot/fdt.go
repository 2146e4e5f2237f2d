package boot

import "encoding/binary"

// Tokens of a flattened device tree's structure block, and its header's constants.
// Devicetree Specification 0.4, 5.
const (
	fdtBeginNode = 1
	fdtEndNode   = 2
	fdtProp      = 3
	fdtEnd       = 9

	fdtMagic       = 0xd00dfeed
	fdtVersion     = 17
	fdtVersionLast = 16 // the oldest that a reader may know
	fdtHeaderSize  = 40
	fdtReserveSize = 16 // an empty list of reservations: its end
)

// fdt makes a flattened device tree: nodes and properties in the order of the calls.
type fdt struct {
	structs, strings []byte
	offsets          map[string]uint32 // of a property's name in strings
}

func newFDT() *fdt { return &fdt{offsets: map[string]uint32{}} }

func (f *fdt) u32(v uint32) { f.structs = binary.BigEndian.AppendUint32(f.structs, v) }

func (f *fdt) bytes(p []byte) {
	f.structs = append(f.structs, p...)
	for len(f.structs)%4 != 0 {
		f.structs = append(f.structs, 0)
	}
}

// node makes a node with what do puts in it. The root's name is empty.
func (f *fdt) node(name string, do func()) {
	f.u32(fdtBeginNode)
	f.bytes(append([]byte(name), 0))
	do()
	f.u32(fdtEndNode)
}

// prop makes a property of bytes; none for a truth value. All of a node's come
// before its nodes.
func (f *fdt) prop(name string, value []byte) {
	at, ok := f.offsets[name]
	if !ok {
		at = uint32(len(f.strings))
		f.offsets[name] = at
		f.strings = append(append(f.strings, name...), 0)
	}
	f.u32(fdtProp)
	f.u32(uint32(len(value)))
	f.u32(at)
	f.bytes(value)
}

// cells makes a property of 32-bit numbers.
func (f *fdt) cells(name string, vs ...uint32) {
	var p []byte
	for _, v := range vs {
		p = binary.BigEndian.AppendUint32(p, v)
	}
	f.prop(name, p)
}

// wide makes a property of 64-bit numbers.
func (f *fdt) wide(name string, vs ...uint64) {
	var p []byte
	for _, v := range vs {
		p = binary.BigEndian.AppendUint64(p, v)
	}
	f.prop(name, p)
}

// text makes a property of strings.
func (f *fdt) text(name string, vs ...string) {
	var p []byte
	for _, v := range vs {
		p = append(append(p, v...), 0)
	}
	f.prop(name, p)
}

// blob returns the tree: header, reservations (none), structure, strings. 5.1.
func (f *fdt) blob() []byte {
	f.u32(fdtEnd)
	structs := fdtHeaderSize + fdtReserveSize
	strings := structs + len(f.structs)
	total := (strings + len(f.strings) + 7) &^ 7
	var b []byte
	for _, v := range []int{
		fdtMagic, total, structs, strings, fdtHeaderSize, fdtVersion, fdtVersionLast, 0, len(f.strings), len(f.structs),
	} {
		b = binary.BigEndian.AppendUint32(b, uint32(v))
	}
	b = append(b, make([]byte, fdtReserveSize)...)
	b = append(append(b, f.structs...), f.strings...)
	return append(b, make([]byte, total-len(b))...)
}
