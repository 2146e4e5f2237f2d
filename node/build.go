package node

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"sync"

	"steadfast/fault"
)

// buildOf names what this process was built from, for people and for comparison: the version, and
// a digest of what the linker has made. Two hosts run a machine the same way for certain only
// when they run the very same program, and a version is what somebody has typed.
func buildOf(version string) (string, error) {
	id, err := linkedID()
	if err != nil {
		return "", err
	}
	return version + " " + id, nil
}

// linkedID is of this process's program, in a few digits.
var linkedID = sync.OnceValues(func() (string, error) {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "this program's own file")
	}
	defer f.Close()
	s := f.Section(".note.go.buildid")
	if s == nil {
		return "", fault.New(fault.Internal, "this program has no Go build ID, by which two hosts tell whether theirs is the same; build it with \"make build\"")
	}
	note, err := s.Data()
	if err != nil {
		return "", fault.Wrap(fault.Internal, err, "this program's build ID")
	}
	id, err := noteOf(note)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(id)
	return hex.EncodeToString(sum[:6]), nil
})

// noteOf returns what an ELF note describes: sizes of the name and of that, a type, the name
// padded to 4 bytes, and then it. elf(5), "Notes".
func noteOf(note []byte) ([]byte, error) {
	const header = 12
	if len(note) < header {
		return nil, fault.New(fault.Internal, "this program's build ID: %d bytes", len(note))
	}
	name, size := binary.NativeEndian.Uint32(note), binary.NativeEndian.Uint32(note[4:])
	at := header + (uint64(name)+3)&^3
	if size == 0 || at+uint64(size) > uint64(len(note)) {
		return nil, fault.New(fault.Internal, "this program's build ID: %d bytes at %d of %d", size, at, len(note))
	}
	return note[at : at+uint64(size)], nil
}
