package lun

import (
	"cmp"
	"encoding/binary"
	"slices"

	"steadfast/fault"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// What a StateKeeper is given: docs/formats/state-volume.md, "A unit's state".
// Integers are little-endian.
const (
	stateVersion = 1
	stateHeader  = 40 // bytes before the strings
	noHolder     = 0xffff

	stateAPTPL      = 1
	stateDescriptor = 2
	stateProtect    = 4
	stateAborted    = 8
)

// unitState is all that initiators can tell of a unit beside the volume's
// content and flags: what another node needs to serve it in our place.
type unitState struct {
	volume       [16]byte
	blocks       uint64    // capacity when it was saved
	mode         scsi.Mode // but for WriteCache, which is the volume's
	reservations reserve.State
	nexuses      []nexusState
}

// nexusState is what a nexus is still to be told.
type nexusState struct {
	nexus   reserve.Nexus
	pending attention
}

// stringTable collects names that an encoded state refers to by index.
type stringTable struct {
	index map[string]uint16
	list  []string
	bytes int
}

// add returns s's index. Names are at most 255 bytes long.
func (t *stringTable) add(s string) (uint16, error) {
	if i, ok := t.index[s]; ok {
		return i, nil
	}
	if len(s) > 255 || len(t.list) >= noHolder {
		return 0, fault.New(fault.Limit, "a name of %d bytes, or one too many, in a unit's state", len(s))
	}
	i := uint16(len(t.list))
	t.index[s] = i
	t.list = append(t.list, s)
	t.bytes += 1 + len(s)
	return i, nil
}

// drop takes back what was added after there were n names.
func (t *stringTable) drop(n int) {
	for _, s := range t.list[n:] {
		delete(t.index, s)
		t.bytes -= 1 + len(s)
	}
	t.list = t.list[:n]
}

// appendNexus appends a nexus as two indexes and the port's tag.
func (t *stringTable) appendNexus(dst []byte, n reserve.Nexus) ([]byte, error) {
	initiator, err := t.add(n.Initiator)
	if err != nil {
		return dst, err
	}
	target, err := t.add(n.Port.Target)
	if err != nil {
		return dst, err
	}
	le := binary.LittleEndian
	dst = le.AppendUint16(dst, initiator)
	dst = le.AppendUint16(dst, target)
	return le.AppendUint16(dst, n.Port.Tag), nil
}

// encodeState writes st down for a StateKeeper. Fails with fault.Limit when the
// reservations alone need more than StateMax bytes. Unit attentions that
// do not fit beside them are left out, those of registrants last: such a nexus
// learns no more than that it was lost.
func encodeState(st unitState) ([]byte, error) {
	names := &stringTable{index: map[string]uint16{}}
	var registrations, nexuses []byte
	holder := uint16(noHolder)
	for i, r := range st.reservations.Registrations {
		var err error
		if registrations, err = names.appendNexus(registrations, r.Nexus); err != nil {
			return nil, err
		}
		registrations = binary.LittleEndian.AppendUint64(registrations, r.Key)
		registrations = append(registrations, flag(r.AllPorts, 1))
		if st.reservations.Type != 0 && !st.reservations.Type.AllRegistrants() && st.reservations.Holder == r.Nexus {
			holder = uint16(i)
		}
	}
	size := stateHeader + names.bytes + len(registrations)
	if size > StateMax {
		return nil, fault.New(fault.Limit, "reservations need %d bytes, more than the %d there are", size, StateMax)
	}
	told := 0
	for _, n := range pendingOf(st) {
		had := len(names.list)
		next, err := names.appendNexus(nexuses, n.nexus)
		next = appendAttentions(next, n.pending&carriedAttentions)
		if err != nil || stateHeader+names.bytes+len(registrations)+len(next) > StateMax || told == noHolder {
			names.drop(had)
			continue
		}
		nexuses = next
		told++
	}
	b := appendStateHeader(make([]byte, 0, size+len(nexuses)), st)
	le := binary.LittleEndian
	for _, v := range []int{int(holder), len(names.list), len(st.reservations.Registrations), told} {
		b = le.AppendUint16(b, uint16(v))
	}
	for _, s := range names.list {
		b = append(append(b, byte(len(s))), s...)
	}
	return append(append(b, registrations...), nexuses...), nil
}

// appendStateHeader appends the part of fixed length, up to the counts.
func appendStateHeader(b []byte, st unitState) []byte {
	flags := flag(st.reservations.Persist, stateAPTPL) | flag(st.mode.DescriptorSense, stateDescriptor) |
		flag(st.mode.SoftwareProtect, stateProtect) | flag(st.mode.TaskAborted, stateAborted)
	b = append(b, stateVersion, flags, byte(st.reservations.Type), 0)
	b = binary.LittleEndian.AppendUint32(b, st.reservations.Generation)
	b = append(b, st.volume[:]...)
	return binary.LittleEndian.AppendUint64(b, st.blocks)
}

func flag(on bool, mask byte) byte {
	if on {
		return mask
	}
	return 0
}

// pendingOf lists the nexuses with something to carry: registrants first, so
// that one state has one form and the others are the first left out.
func pendingOf(st unitState) []nexusState {
	list := slices.DeleteFunc(slices.Clone(st.nexuses), func(n nexusState) bool {
		return n.pending&carriedAttentions == 0
	})
	slices.SortFunc(list, func(a, b nexusState) int {
		if x, y := st.reservations.Registered(a.nexus), st.reservations.Registered(b.nexus); x != y {
			if x {
				return -1
			}
			return 1
		}
		return cmp.Or(
			cmp.Compare(a.nexus.Initiator, b.nexus.Initiator),
			cmp.Compare(a.nexus.Port.Target, b.nexus.Port.Target),
			cmp.Compare(a.nexus.Port.Tag, b.nexus.Port.Tag),
		)
	})
	return list
}

// appendAttentions appends conditions by their codes, which outlive the order
// of the bits.
func appendAttentions(dst []byte, a attention) []byte {
	at := len(dst)
	dst = append(dst, 0)
	for bit, c := range attentionCodes {
		if a&(1<<bit) != 0 {
			dst = append(dst, c[0], c[1])
			dst[at]++
		}
	}
	return dst
}

// attentionOf returns the condition of a code, or 0 for one that we do not
// know: it is not told then.
func attentionOf(asc, ascq uint8) attention {
	for bit, c := range attentionCodes {
		if c == [2]uint8{asc, ascq} {
			return 1 << bit & carriedAttentions
		}
	}
	return 0
}

// decodeState reads what encodeState wrote. Fails with fault.Corrupt when b is
// not such or contradicts itself, and with fault.Invalid when its version is
// another: a reservation that is half known must neither be enforced nor
// dropped in silence.
func decodeState(b []byte) (unitState, error) {
	if len(b) > 0 && b[0] != stateVersion {
		return unitState{}, fault.New(fault.Invalid, "a unit's state is of version %d, and this program knows %d", b[0], stateVersion)
	}
	r := stateReader{rest: b}
	h := r.take(stateHeader)
	if r.bad {
		return unitState{}, errState
	}
	le := binary.LittleEndian
	st := unitState{volume: [16]byte(h[8:24]), blocks: le.Uint64(h[24:])}
	st.mode = scsi.Mode{
		DescriptorSense: h[1]&stateDescriptor != 0, SoftwareProtect: h[1]&stateProtect != 0, TaskAborted: h[1]&stateAborted != 0,
	}
	pr := &st.reservations
	pr.Persist, pr.Type, pr.Generation = h[1]&stateAPTPL != 0, reserve.Type(h[2]), le.Uint32(h[4:])
	for range le.Uint16(h[34:]) {
		r.names = append(r.names, string(r.take(r.byte())))
		if r.bad {
			return unitState{}, errState
		}
	}
	seen := map[reserve.Nexus]bool{}
	for range le.Uint16(h[36:]) {
		n, tail := r.nexus(), r.take(9)
		if r.bad || seen[n] || le.Uint64(tail) == 0 {
			return unitState{}, errState
		}
		seen[n] = true
		pr.Registrations = append(pr.Registrations, reserve.Registration{Nexus: n, Key: le.Uint64(tail), AllPorts: tail[8] != 0})
	}
	if i := int(le.Uint16(h[32:])); i != noHolder {
		if i >= len(pr.Registrations) {
			return unitState{}, errState
		}
		pr.Holder = pr.Registrations[i].Nexus
	}
	for range le.Uint16(h[38:]) {
		st.nexuses = append(st.nexuses, nexusState{r.nexus(), r.attentions()})
	}
	if r.bad || len(r.rest) > 0 {
		return unitState{}, errState
	}
	return st, pr.Check()
}

// errState says that a state cannot be read.
var errState = fault.New(fault.Corrupt, "a unit's state is not what was saved")

// stateReader reads an encoded state from front to back. After a field that is
// not there bad is set, and all others are zero.
type stateReader struct {
	rest  []byte
	names []string
	bad   bool
}

func (r *stateReader) take(n int) []byte {
	if n > len(r.rest) {
		r.bad, r.rest = true, nil
		return make([]byte, n)
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *stateReader) byte() int { return int(r.take(1)[0]) }

func (r *stateReader) name() string {
	i := int(binary.LittleEndian.Uint16(r.take(2)))
	if i >= len(r.names) {
		r.bad = true
		return ""
	}
	return r.names[i]
}

func (r *stateReader) nexus() reserve.Nexus {
	n := reserve.Nexus{Initiator: r.name()}
	n.Port.Target = r.name()
	n.Port.Tag = binary.LittleEndian.Uint16(r.take(2))
	return n
}

func (r *stateReader) attentions() (a attention) {
	for range r.byte() {
		c := r.take(2)
		a |= attentionOf(c[0], c[1])
	}
	return a
}
