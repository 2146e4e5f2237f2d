package reserve

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"steadfast/fault"
)

// EncodedMax bounds the length in bytes of an encoded State, so that it fits
// where volumes keep such values.
const EncodedMax = 64 << 10

// encodedVersion is the first byte; JSON follows. It is raised when a reader
// of the old form would go wrong.
const encodedVersion = 1

// stored is a State as it is written down. Keys are strings in hex: they are
// names, not numbers, and JSON's numbers do not hold 64 bits.
type stored struct {
	Type          Type        `json:"type,omitempty"`
	Holder        *Nexus      `json:"holder,omitempty"`
	Registrations []storedOne `json:"registrations"`
}

type storedOne struct {
	Initiator string `json:"initiator"`
	Target    string `json:"target"`
	Tag       uint16 `json:"tag"`
	Key       string `json:"key"`
	AllPorts  bool   `json:"allPorts,omitempty"`
}

// Encode returns s as it is kept with a volume. The generation is not kept:
// it starts anew with the device server. Fails with fault.Limit when it would
// be longer than EncodedMax.
func Encode(s State) ([]byte, error) {
	f := stored{Type: s.Type, Registrations: []storedOne{}}
	if s.Type != 0 && !s.Type.AllRegistrants() {
		f.Holder = &s.Holder
	}
	for _, r := range s.Registrations {
		f.Registrations = append(f.Registrations, storedOne{
			r.Nexus.Initiator, r.Nexus.Port.Target, r.Nexus.Port.Tag, fmt.Sprintf("%016x", r.Key), r.AllPorts,
		})
	}
	text, err := json.Marshal(f)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "encode reservations")
	}
	if len(text)+1 > EncodedMax {
		return nil, fault.New(fault.Limit, "reservations need %d bytes, more than the %d there are", len(text)+1, EncodedMax)
	}
	return append([]byte{encodedVersion}, text...), nil
}

// Decode reads what Encode wrote; the state has Persist set. Fails with
// fault.Corrupt when b is not such, or contradicts itself: a reservation that
// is half known must not be enforced, and not dropped in silence either.
func Decode(b []byte) (State, error) {
	if len(b) == 0 || b[0] != encodedVersion {
		return State{}, fault.New(fault.Corrupt, "stored reservations are of an unknown version")
	}
	var f stored
	dec := json.NewDecoder(bytes.NewReader(b[1:]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return State{}, fault.Wrap(fault.Corrupt, err, "stored reservations")
	}
	s := State{Persist: true, Type: f.Type}
	for _, o := range f.Registrations {
		key, err := strconv.ParseUint(o.Key, 16, 64)
		if err != nil || key == 0 {
			return State{}, fault.New(fault.Corrupt, "stored reservations: key %q", o.Key)
		}
		n := Nexus{o.Initiator, Port{o.Target, o.Tag}}
		if s.find(n) >= 0 {
			return State{}, fault.New(fault.Corrupt, "stored reservations: %s is there twice", o.Initiator)
		}
		s.Registrations = append(s.Registrations, Registration{n, key, o.AllPorts})
	}
	if f.Holder != nil {
		s.Holder = *f.Holder
	}
	return s, s.Check()
}

// Check returns a fault.Corrupt error when s, read from where it was stored,
// cannot be a state that Decide made.
func (s State) Check() error {
	switch {
	case len(s.Registrations) > RegistrationsMax:
		return fault.New(fault.Corrupt, "stored reservations: %d registrations", len(s.Registrations))
	case s.Type == 0 && s.Holder == Nexus{}:
		return nil
	case !s.Type.Valid():
		return fault.New(fault.Corrupt, "stored reservations: type %d", s.Type)
	case s.Type.AllRegistrants() && (len(s.Registrations) == 0 || s.Holder != Nexus{}),
		!s.Type.AllRegistrants() && s.find(s.Holder) < 0:
		return fault.New(fault.Corrupt, "stored reservations: the holder is not registered")
	}
	return nil
}
