package vmhome

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"slices"

	"steadfast/block"
	"steadfast/cluster/inventory"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// Layout, in blocks of block.BlockSize: docs/formats/home.md.
const (
	version = 1

	headerBlock = 1
	slotFirst   = 16
	slotBlocks  = 16
	areaFirst   = 256

	headerLen  = 64 // bytes, of a slot's header
	headerSum  = 60 // where its checksum is
	slotBytes  = slotBlocks * block.BlockSize
	areaOffset = areaFirst * block.BlockSize
)

// DefinitionBytesMax bounds a definition.
const DefinitionBytesMax = slotBytes - headerLen

// FileBytesMax bounds a kernel or an initial RAM disk.
const FileBytesMax = 1 << 30

var (
	volumeMagic = [8]byte{'S', 'F', 'h', 'o', 'm', 'e', 0, 0}
	slotMagic   = [8]byte{'S', 'F', 'd', 'e', 'f', 0, 0, 0}
)

// Definition is a machine without what is its cluster's.
type Definition struct {
	Name string `json:"name"`
	// ID is 16 bytes in hex, as in the inventory.
	ID string `json:"id"`
	// Revision is that of the inventory's document that this was made from.
	Revision uint64 `json:"revision,omitempty"`
	inventory.Hardware
	Policy inventory.Policy `json:"policy,omitempty"`
	Kernel *File            `json:"kernel,omitempty"`
	Initrd *File            `json:"initrd,omitempty"`
}

// File is something that the machine boots from, in the home volume.
type File struct {
	Name   string `json:"name"`   // for people
	Offset int64  `json:"offset"` // bytes, of whole blocks
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // in hex
}

// end is where the file's last block ends.
func (f *File) end() int64 { return f.Offset + whole(f.Bytes) }

// whole rounds up to blocks.
func whole(n int64) int64 { return (n + block.BlockSize - 1) / block.BlockSize * block.BlockSize }

func checksum(parts ...[]byte) (sum uint32) {
	table := crc32.MakeTable(crc32.Castagnoli)
	for _, p := range parts {
		sum = crc32.Update(sum, table, p)
	}
	return sum
}

func blank(p []byte) bool { return !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) }

// encodeHeader makes the volume's header.
func encodeHeader(id vmlock.ID) []byte {
	p := make([]byte, block.BlockSize)
	le := binary.LittleEndian
	copy(p, volumeMagic[:])
	le.PutUint32(p[8:], version)
	copy(p[16:], id[:])
	for i, v := range []uint32{slotFirst, slotBlocks, areaFirst} {
		le.PutUint32(p[32+4*i:], v)
	}
	le.PutUint32(p[headerSum:], checksum(p[:headerSum]))
	return p
}

// decodeHeader reads it. Fails with fault.NotFound for what is no home,
// fault.Corrupt, and fault.Stale for one of a later version.
func decodeHeader(p []byte) (id vmlock.ID, err error) {
	le := binary.LittleEndian
	switch {
	case [8]byte(p[:8]) != volumeMagic:
		return id, fault.New(fault.NotFound, "this is no home volume of a machine")
	case le.Uint32(p[headerSum:]) != checksum(p[:headerSum]):
		return id, fault.New(fault.Corrupt, "the home volume's header does not match its checksum")
	case le.Uint32(p[8:]) > version:
		return id, fault.New(fault.Stale, "the home volume is of version %d, and this program knows %d; upgrade this host", le.Uint32(p[8:]), version)
	}
	id = vmlock.ID(p[16:32])
	if !bytes.Equal(p, encodeHeader(id)) {
		return id, fault.New(fault.Corrupt, "the home volume's header says what no program writes")
	}
	return id, nil
}

// slot is one of the two places of a definition.
type slot struct {
	kind       slotKind
	sequence   uint64
	definition Definition
	sum        uint32
}

type slotKind uint8

const (
	slotEmpty slotKind = iota // never written
	slotTorn                  // written in part, or damaged
	slotWhole
)

func slotOffset(i int) int64 { return int64(slotFirst+i*slotBlocks) * block.BlockSize }

// encodeSlot makes the blocks of a slot that a definition needs.
func encodeSlot(id vmlock.ID, sequence uint64, d *Definition) ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(d); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "a machine's definition")
	}
	if text.Len() > DefinitionBytesMax {
		return nil, fault.New(fault.Limit, "the machine's definition has %d bytes, the bound is %d", text.Len(), DefinitionBytesMax)
	}
	p := make([]byte, whole(int64(headerLen+text.Len())))
	le := binary.LittleEndian
	copy(p, slotMagic[:])
	le.PutUint32(p[8:], version)
	le.PutUint32(p[12:], uint32(text.Len()))
	le.PutUint64(p[16:], sequence)
	copy(p[24:], id[:])
	le.PutUint32(p[headerSum:], checksum(p[:headerSum], text.Bytes()))
	copy(p[headerLen:], text.Bytes())
	return p, nil
}

// decodeSlot reads a slot of the machine id in a volume of so many bytes. What a
// crash may leave is no error. Fails with fault.Stale for one that a newer
// program wrote, and with fault.Corrupt for one that says what none writes.
func decodeSlot(p []byte, id vmlock.ID, size int64) (s slot, err error) {
	le := binary.LittleEndian
	n := int64(le.Uint32(p[12:]))
	switch {
	case blank(p[:block.BlockSize]):
		return s, nil
	case [8]byte(p[:8]) != slotMagic || n > DefinitionBytesMax || le.Uint32(p[headerSum:]) != checksum(p[:headerSum], p[headerLen:headerLen+n]):
		s.kind = slotTorn
		return s, nil
	case le.Uint32(p[8:]) > version:
		return s, fault.New(fault.Stale, "the machine's definition is of version %d, and this program knows %d; upgrade this host", le.Uint32(p[8:]), version)
	case vmlock.ID(p[24:40]) != id:
		return s, fault.New(fault.Corrupt, "the home volume of the machine %s has the definition of %s", id, vmlock.ID(p[24:40]))
	}
	s = slot{kind: slotWhole, sequence: le.Uint64(p[16:]), sum: le.Uint32(p[headerSum:])}
	dec := json.NewDecoder(bytes.NewReader(p[headerLen : headerLen+n]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s.definition); err != nil {
		if !json.Valid(p[headerLen : headerLen+n]) {
			return s, fault.Wrap(fault.Corrupt, err, "the machine's definition")
		}
		return s, fault.Wrap(fault.Stale, err, "a newer program wrote the machine's definition; upgrade this host")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s, fault.New(fault.Corrupt, "the machine's definition goes on after its end")
	}
	return s, fault.Wrap(fault.Corrupt, s.definition.check(id, size), "the machine's definition")
}

// check fails with fault.Invalid for what is no definition of the machine id in a
// home volume of so many bytes.
func (d *Definition) check(id vmlock.ID, size int64) error {
	if d.ID != id.String() {
		return fault.New(fault.Invalid, "it is of the machine %.40q, in the home volume of %s", d.ID, id)
	}
	if d.Name == "" || len(d.Name) > 255 {
		return fault.New(fault.Invalid, "it has no name, or one of %d bytes", len(d.Name))
	}
	if err := d.Hardware.Check(); err != nil {
		return err
	}
	var before *File
	for _, f := range d.files() {
		sum, err := hex.DecodeString(f.SHA256)
		switch {
		case err != nil || len(sum) != 32 || len(f.Name) > 255:
			return fault.New(fault.Invalid, "the file %.100q has no hash", f.Name)
		case f.Bytes <= 0 || f.Bytes > FileBytesMax || f.Offset < areaOffset || f.Offset%block.BlockSize != 0 || f.Offset > size-whole(f.Bytes):
			return fault.New(fault.Invalid, "the file %.100q is said to be where it cannot be: %d bytes at %d", f.Name, f.Bytes, f.Offset)
		case before != nil && f.Offset < before.end() && before.Offset < f.end():
			return fault.New(fault.Invalid, "the kernel and the initial RAM disk are in one place")
		}
		before = f
	}
	return nil
}

// files are those that there are.
func (d *Definition) files() (list []*File) {
	for _, f := range []*File{d.Kernel, d.Initrd} {
		if f != nil {
			list = append(list, f)
		}
	}
	return list
}
