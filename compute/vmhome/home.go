package vmhome

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"

	"steadfast/block"
	"steadfast/compute/vmlock"
	"steadfast/fault"
)

// chunkBytes is how much of a file is read and written at once.
const chunkBytes = 1 << 20

// SizeFor returns the size in bytes of a home volume for files of so many bytes:
// the present ones and their successors have room in it.
func SizeFor(kernel, initrd int64) int64 { return areaOffset + 2*(whole(kernel)+whole(initrd)) }

// Home is a machine's home volume.
type Home struct {
	dev   block.Device
	id    vmlock.ID
	slots [2]slot
	at    int // the slot that counts; -1: none
	// broken: a save failed half way, so that what is on the volume is not known.
	broken error
}

// Format makes a volume the home of a machine, without a definition. generation is
// what the lock block had before, if the machine had one: see ResetLock. The
// header comes last: until it is stable the volume is no home, and Format can be
// done again. Fails with fault.Exists for what is a home already, fault.Invalid for
// a volume that is too small, and as the device does.
func Format(dev block.Device, id vmlock.ID, generation uint64) error {
	if dev.Size() < areaOffset {
		return fault.New(fault.Invalid, "a home volume of %d bytes: at least %d", dev.Size(), areaOffset)
	}
	p := make([]byte, block.BlockSize)
	if err := dev.ReadAt(p, headerBlock*block.BlockSize); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "a home volume's header")
	}
	if [8]byte(p[:8]) == volumeMagic {
		return fault.New(fault.Exists, "this is a home volume already")
	}
	if err := dev.Zero(0, areaOffset, 0); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "a new home volume")
	}
	if err := ResetLock(dev, id, generation); err != nil {
		return err
	}
	if err := dev.Flush(); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "a new home volume")
	}
	err := dev.WriteAt(encodeHeader(id), headerBlock*block.BlockSize, block.FUA)
	return fault.Wrap(fault.KindOf(err), err, "a new home volume's header")
}

// ResetLock writes a lock block that nobody holds. It is for a new home, and for
// one whose lock block is damaged, when no host runs the machine: it
// asks nobody. generation is at least that of every placement before, so that no
// key of a reservation is used twice; the keys that are registered tell some.
func ResetLock(dev block.Device, id vmlock.ID, generation uint64) error {
	b := vmlock.Block{VM: id, Generation: generation}.Encode()
	err := dev.WriteAt(b[:], 0, block.FUA)
	return fault.Wrap(fault.KindOf(err), err, "a lock block")
}

// ReadLock reads a home's lock block: its generation is what a machine that is
// registered from its volumes begins above. Fails as vmlock.Decode and the
// device do.
func ReadLock(dev block.Device) (vmlock.Block, error) {
	var p [vmlock.BlockSize]byte
	if err := dev.ReadAt(p[:], 0); err != nil {
		return vmlock.Block{}, fault.Wrap(fault.KindOf(err), err, "a lock block")
	}
	return vmlock.Decode(p)
}

// Open reads a home volume. Fails with fault.NotFound for what is none,
// fault.Corrupt when neither copy of the definition can be read, fault.Stale when
// a newer program wrote it, and as the device does.
func Open(dev block.Device) (*Home, error) {
	if dev.Size() < areaOffset {
		return nil, fault.New(fault.NotFound, "a volume of %d bytes is no home volume", dev.Size())
	}
	p := make([]byte, slotBytes)
	read := func(p []byte, off int64, what string) error {
		err := dev.ReadAt(p, off)
		return fault.Wrap(fault.KindOf(err), err, what)
	}
	if err := read(p[:block.BlockSize], headerBlock*block.BlockSize, "a home volume's header"); err != nil {
		return nil, err
	}
	id, err := decodeHeader(p[:block.BlockSize])
	if err != nil {
		return nil, err
	}
	h := &Home{dev: dev, id: id}
	for i := range h.slots {
		err := read(p, slotOffset(i), "a machine's definition")
		switch {
		case fault.Is(err, fault.Corrupt):
			h.slots[i].kind = slotTorn // a medium error in one copy: the other may do
			continue
		case err != nil:
			return nil, err
		}
		if h.slots[i], err = decodeSlot(p, id, dev.Size()); err != nil {
			return nil, err
		}
	}
	h.at, err = counts(h.slots)
	return h, err
}

// counts returns the slot that counts, or -1. One that is torn beside one that
// was never written is what the first save leaves when it is interrupted.
func counts(s [2]slot) (int, error) {
	a, b := s[0], s[1]
	switch {
	case a.kind == slotWhole && b.kind == slotWhole && a.sequence == b.sequence, a.kind == slotTorn && b.kind == slotTorn:
		return -1, fault.New(fault.Corrupt, "neither copy of the machine's definition can be trusted; save it again from the inventory")
	case a.kind == slotWhole && (b.kind != slotWhole || a.sequence > b.sequence):
		return 0, nil
	case b.kind == slotWhole:
		return 1, nil
	}
	return -1, nil
}

// ID is the machine's.
func (h *Home) ID() vmlock.ID { return h.id }

// Definition returns the machine's definition; false when there is none yet.
func (h *Home) Definition() (Definition, bool) {
	if h.at < 0 {
		return Definition{}, false
	}
	return h.slots[h.at].definition.clone(), true
}

// Torn tells that one copy of the definition is not whole: a save was
// interrupted, or it was damaged. The next save mends it.
func (h *Home) Torn() bool { return h.slots[0].kind == slotTorn || h.slots[1].kind == slotTorn }

func (d Definition) clone() Definition {
	d.Disks, d.Nets = slices.Clone(d.Disks), slices.Clone(d.Nets)
	for _, f := range []**File{&d.Kernel, &d.Initrd} {
		if *f != nil {
			c := **f
			*f = &c
		}
	}
	return d
}

// Source is a file to be put into a home.
type Source struct {
	Name  string
	Bytes int64
	io.Reader
}

// Save makes d the machine's definition, with what it boots from: a Source
// replaces a file, and without one d's File must be the present one, or nil for
// none. Files are where they are put, whatever d says. When it returns nil all is
// stable. Fails with fault.Invalid, fault.Full when the volume has no room for both the
// present files and the new ones, and as the device does; then the old definition
// or the new one counts, and the home is opened again.
func (h *Home) Save(d Definition, kernel, initrd *Source) error {
	if h.broken != nil {
		return fault.Wrap(fault.Failed, h.broken, "a save before failed; open the home volume again")
	}
	next := d.clone()
	var used []*File // what must not be overwritten
	var present Definition
	if h.at >= 0 {
		present = h.slots[h.at].definition
		used = present.files()
	}
	for _, f := range []struct {
		to     **File
		is     *File
		source *Source
	}{{&next.Kernel, present.Kernel, kernel}, {&next.Initrd, present.Initrd, initrd}} {
		if f.source == nil {
			if *f.to != nil && (f.is == nil || **f.to != *f.is) {
				return fault.New(fault.Invalid, "the file %.100q is not in the home volume", (*f.to).Name)
			}
			continue
		}
		file, err := h.put(used, f.source)
		if err != nil {
			return err
		}
		*f.to = file
		used = append(used, file)
	}
	if err := next.check(h.id, h.dev.Size()); err != nil {
		return err
	}
	return h.saveSlot(&next)
}

// saveSlot writes the slot that does not count.
func (h *Home) saveSlot(d *Definition) error {
	to, sequence := 0, uint64(1)
	if h.at >= 0 {
		to, sequence = 1-h.at, h.slots[h.at].sequence+1
	}
	p, err := encodeSlot(h.id, sequence, d)
	if err != nil {
		return err
	}
	// The new files, and the slot that counts, which may have been read from a
	// cache, are stable before the other slot is touched: so one of the two always
	// is whole, and names what is there.
	if err := h.dev.Flush(); err != nil {
		h.broken = err
		return fault.Wrap(fault.KindOf(err), err, "a home volume")
	}
	if err := h.dev.WriteAt(p, slotOffset(to), block.FUA); err != nil {
		h.broken = err
		return fault.Wrap(fault.KindOf(err), err, "a machine's definition")
	}
	s := slot{kind: slotWhole, sequence: sequence, definition: *d}
	h.slots[to], h.at = s, to
	return nil
}

// put writes a file where nothing is that is used, in whole blocks.
func (h *Home) put(used []*File, s *Source) (*File, error) {
	if s.Bytes <= 0 || s.Bytes > FileBytesMax {
		return nil, fault.New(fault.Invalid, "the file %.100q has %d bytes: at least 1 and at most %d", s.Name, s.Bytes, FileBytesMax)
	}
	at, ok := h.room(used, whole(s.Bytes))
	if !ok {
		return nil, fault.New(fault.Full, "the home volume of %d bytes has no room for %q of %d bytes beside what is there; let it grow: \"steadfast volume resize\"", h.dev.Size(), s.Name, s.Bytes)
	}
	sum := sha256.New()
	buf := make([]byte, min(chunkBytes, whole(s.Bytes)))
	for done := int64(0); done < s.Bytes; {
		n := min(int64(len(buf)), s.Bytes-done)
		if _, err := io.ReadFull(s.Reader, buf[:n]); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "reading "+s.Name)
		}
		sum.Write(buf[:n])
		clear(buf[n:])
		if err := h.dev.WriteAt(buf[:whole(n)], at+done, 0); err != nil {
			return nil, fault.Wrap(fault.KindOf(err), err, "writing "+s.Name)
		}
		done += n
	}
	return &File{s.Name, at, s.Bytes, hex.EncodeToString(sum.Sum(nil))}, nil
}

// room finds the first place of n bytes that no used file is in.
func (h *Home) room(used []*File, n int64) (at int64, ok bool) {
	used = slices.Clone(used)
	slices.SortFunc(used, func(a, b *File) int { return cmp.Compare(a.Offset, b.Offset) })
	at = areaOffset
	for _, f := range used {
		if at+n <= f.Offset {
			return at, true
		}
		at = max(at, f.end())
	}
	return at, at+n <= h.dev.Size()
}

// Copy writes a file's content to w. Fails with fault.Corrupt when it does not
// match its hash, which is known when all of it was written: w's content is
// not to be used then.
func (h *Home) Copy(w io.Writer, f File) error {
	if f.Bytes <= 0 || f.Bytes > FileBytesMax || f.Offset < areaOffset || f.Offset > h.dev.Size()-whole(f.Bytes) {
		return fault.New(fault.Invalid, "the file %.100q is not in the home volume", f.Name)
	}
	sum := sha256.New()
	buf := make([]byte, min(chunkBytes, whole(f.Bytes)))
	for done := int64(0); done < f.Bytes; {
		n := min(int64(len(buf)), f.Bytes-done)
		if err := h.dev.ReadAt(buf[:whole(n)], f.Offset+done); err != nil {
			return fault.Wrap(fault.KindOf(err), err, "reading "+f.Name)
		}
		sum.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return fault.Wrap(fault.Failed, err, "copying "+f.Name)
		}
		done += n
	}
	if want, err := hex.DecodeString(f.SHA256); err != nil || !bytes.Equal(want, sum.Sum(nil)) {
		return fault.New(fault.Corrupt, "the file %.100q in the home volume does not match its hash; put it there again: \"steadfast vm set\"", f.Name)
	}
	return nil
}
