package machine

import (
	"bufio"
	"encoding/binary"
	"hash/crc32"
	"io"

	"steadfast/compute/device"
	"steadfast/fault"
)

// StateVersion is the version of a saved machine: docs/formats/machine.md.
const StateVersion = 1

// stateMagic begins a saved machine.
const stateMagic = "SFmach\x00"

// Bounds of a saved machine's parts, in bytes: of all but the disks, and of a disk, which
// has what its guest writes at the moment: see the bounds of virtio's.
const (
	configMax   = 1 << 20
	partsMax    = 4 << 20
	diskPartMax = 40 << 20
)

// saveParts appends the state of all but the memory.
func (m *Machine) saveParts(e *device.Encoder) {
	m.clock.save(e)
	e.U64(m.wall)
	e.U8(uint8(m.end))
	e.U64(m.alarm)
	m.proc.Save(e)
	m.board.save(e)
	for _, p := range m.parts[1:] {
		p.Save(e)
	}
}

func (m *Machine) restoreParts(d *device.Decoder) error {
	m.clock.restore(d)
	m.wall = d.U64()
	m.end = End(d.U8())
	m.alarm = d.U64()
	if m.end > Wedged {
		d.Fail("an end that there is not")
	}
	if err := m.proc.Restore(d); err != nil {
		return err
	}
	if err := m.board.restore(d); err != nil {
		return err
	}
	for _, p := range m.parts[1:] {
		if err := p.Restore(d); err != nil {
			return err
		}
	}
	if d.Err() == nil && d.Left() > 0 {
		d.Fail("more than a machine has")
	}
	return d.Err()
}

// Save writes the machine: what it was made up as, the state of its parts, and the pages
// that are not zeros. It does not change the machine, nor what it answers.
func (m *Machine) Save(w io.Writer) error {
	cfg, err := m.cfg.Encode()
	if err != nil {
		return err
	}
	var e device.Encoder
	m.saveParts(&e)
	s := &summed{w: bufio.NewWriterSize(w, 1<<20), table: castagnoli}
	s.bytes(append([]byte(stateMagic), StateVersion))
	s.counted(cfg)
	s.counted(e.Bytes())
	var number [4]byte
	for page := range m.ram.Pages() {
		p := m.ram.Data(page)
		if string(p) == string(zeroPage[:]) {
			continue
		}
		binary.LittleEndian.PutUint32(number[:], page)
		s.bytes(number[:])
		s.bytes(p)
	}
	binary.LittleEndian.PutUint32(number[:], noPage)
	s.bytes(number[:])
	sum := binary.LittleEndian.AppendUint32(nil, s.sum)
	s.bytes(sum)
	if s.err == nil {
		s.err = s.w.Flush()
	}
	return fault.Wrap(fault.Failed, s.err, "saving a machine")
}

// SaveParts returns all of the machine but its configuration and its memory, for a copy
// of it that gets those by themselves. It does not change the machine.
func (m *Machine) SaveParts() []byte {
	var e device.Encoder
	e.U8(StateVersion)
	m.saveParts(&e)
	return e.Bytes()
}

// RestoreParts takes what SaveParts has returned of a machine of the same Config, when this
// one's memory is that machine's, written by RAM. Fails with fault.Corrupt, or fault.Invalid
// for another version; the machine is not to be used then.
func (m *Machine) RestoreParts(parts []byte) error {
	d := device.NewDecoder(parts)
	if v := d.U8(); d.Err() == nil && v != StateVersion {
		return fault.New(fault.Invalid, "a machine's state of version %d; this program reads version %d", v, StateVersion)
	}
	return m.restoreParts(d)
}

// noPage ends the list of pages.
const noPage = 1<<32 - 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// summed writes, and keeps a checksum and the first error.
type summed struct {
	w     *bufio.Writer
	table *crc32.Table
	sum   uint32
	err   error
}

func (s *summed) bytes(p []byte) {
	if s.err != nil {
		return
	}
	s.sum = crc32.Update(s.sum, s.table, p)
	_, s.err = s.w.Write(p)
}

func (s *summed) counted(p []byte) {
	s.bytes(binary.LittleEndian.AppendUint32(nil, uint32(len(p))))
	s.bytes(p)
}

// Restore makes up the machine that Save has written. What it had asked of the world is
// in Pending. Fails with fault.Corrupt, or fault.Invalid for another version.
func Restore(r io.Reader) (m *Machine, err error) {
	in := &checked{r: bufio.NewReaderSize(r, 1<<20)}
	head := in.bytes(len(stateMagic) + 1)
	switch {
	case in.err != nil || string(head[:len(stateMagic)]) != stateMagic:
		return nil, fault.New(fault.Corrupt, "this is no saved machine")
	case head[len(stateMagic)] != StateVersion:
		return nil, fault.New(fault.Invalid, "a saved machine of version %d; this program reads version %d", head[len(stateMagic)], StateVersion)
	}
	encoded := in.counted(configMax)
	if in.err != nil {
		return nil, in.err
	}
	cfg, err := DecodeConfig(encoded)
	if err != nil {
		return nil, err
	}
	parts := in.counted(partsMax + uint32(len(cfg.Disks))*diskPartMax)
	if in.err != nil {
		return nil, in.err
	}
	if m, err = New(cfg); err != nil {
		return nil, err
	}
	if err := m.restore(in, parts); err != nil {
		_ = m.Release() // what was wrong is said
		return nil, err
	}
	return m, nil
}

// restore reads the pages and then, for they look at them, the parts.
func (m *Machine) restore(in *checked, parts []byte) error {
	next := uint32(0)
	for {
		page := in.u32()
		if in.err != nil || page == noPage {
			break
		}
		if page < next || page >= m.ram.Pages() {
			return fault.New(fault.Corrupt, "a saved machine: page %d after %d of %d", page, next, m.ram.Pages())
		}
		m.ram.Touch(page)
		in.into(m.ram.Data(page))
		next = page + 1
	}
	sum := in.sum
	if got := in.u32(); in.err == nil && got != sum {
		return fault.New(fault.Corrupt, "a saved machine: its checksum is wrong")
	}
	if in.err != nil {
		return in.err
	}
	return m.restoreParts(device.NewDecoder(parts))
}

// checked reads, and keeps a checksum and the first error.
type checked struct {
	r   *bufio.Reader
	sum uint32
	err error
}

func (c *checked) into(p []byte) {
	if c.err != nil {
		return
	}
	if _, err := io.ReadFull(c.r, p); err != nil {
		c.err = fault.Wrap(fault.Corrupt, err, "a saved machine is cut short")
		return
	}
	c.sum = crc32.Update(c.sum, castagnoli, p)
}

func (c *checked) bytes(n int) []byte {
	p := make([]byte, n)
	c.into(p)
	return p
}

func (c *checked) u32() uint32 { return binary.LittleEndian.Uint32(c.bytes(4)) }

func (c *checked) counted(most uint32) []byte {
	n := c.u32()
	if n > most && c.err == nil {
		c.err = fault.New(fault.Corrupt, "a saved machine: a part of %d bytes", n)
	}
	// In pieces: what a damaged length promises is not there.
	var p []byte
	for n > 0 && c.err == nil {
		piece := min(n, countedPiece)
		p = append(p, c.bytes(int(piece))...)
		n -= piece
	}
	if c.err != nil {
		return nil
	}
	return p
}

// countedPiece is how much is read at once, in bytes.
const countedPiece = 1 << 20
