package scsi

import (
	"bytes"
	"encoding/binary"
)

// PersistOut is a decoded PERSISTENT RESERVE OUT: CDB and parameter list.
// SPC-4, 6.16.
type PersistOut struct {
	Action      uint8
	Scope, Type uint8
	Key         uint64 // RESERVATION KEY: the nexus's own
	ActionKey   uint64 // SERVICE ACTION RESERVATION KEY
	Specified   bool   // SPEC_I_PT
	AllPorts    bool   // ALL_TG_PT
	Persist     bool   // APTPL
	Unregister  bool   // UNREG of REGISTER AND MOVE
	Port        uint16 // relative target port of REGISTER AND MOVE
	// Initiators are the TransportIDs of SPEC_I_PT, or the one of REGISTER
	// AND MOVE.
	Initiators []TransportID
}

// TransportID names an initiator: an iSCSI port ("name,i,0xISID") or, with
// Device, an iSCSI name without its port. SPC-4, 7.6.4.6.
type TransportID struct {
	Name   string
	Device bool
}

// DecodePersistOut decodes a CDB of at least 10 bytes and its parameter list.
func DecodePersistOut(cdb, list []byte) (p PersistOut, check *Check) {
	p.Action = cdb[1] & 0x1f
	p.Scope, p.Type = cdb[2]>>4, cdb[2]&0xf
	length := int(binary.BigEndian.Uint32(cdb[5:]))
	if length < 24 || len(list) < length {
		return p, ListLength()
	}
	list = list[:length]
	p.Key = binary.BigEndian.Uint64(list)
	p.ActionKey = binary.BigEndian.Uint64(list[8:])
	if p.Action == ActionPersistRegisterMove {
		return p, p.decodeMove(list)
	}
	flags := list[20]
	p.Specified = flags&0x08 != 0
	p.AllPorts = flags&0x04 != 0
	p.Persist = flags&0x01 != 0
	if !p.Specified {
		if length != 24 {
			return p, ListLength()
		}
		return p, nil
	}
	if p.Action != ActionPersistRegister {
		return p, InvalidData(20, 3)
	}
	if length < 28 || length != 28+int(binary.BigEndian.Uint32(list[24:])) {
		return p, ListLength()
	}
	for rest := list[28:]; len(rest) > 0; {
		id, n, ok := decodeTransportID(rest)
		if !ok {
			return p, InvalidData(length-len(rest), -1)
		}
		p.Initiators = append(p.Initiators, id)
		rest = rest[n:]
	}
	return p, nil
}

// decodeMove decodes the parameter list of REGISTER AND MOVE. SPC-4, 6.16.4.
func (p *PersistOut) decodeMove(list []byte) *Check {
	p.Unregister = list[17]&0x02 != 0
	p.Persist = list[17]&0x01 != 0
	p.Port = binary.BigEndian.Uint16(list[18:])
	if len(list) != 24+int(binary.BigEndian.Uint32(list[20:])) {
		return ListLength()
	}
	id, n, ok := decodeTransportID(list[24:])
	if !ok || n != len(list)-24 {
		return InvalidData(24, -1)
	}
	p.Initiators = []TransportID{id}
	return nil
}

// decodeTransportID reads one iSCSI TransportID and returns its length.
func decodeTransportID(b []byte) (id TransportID, n int, ok bool) {
	if len(b) < 24 || b[0]&0x3f != 0x05 {
		return id, 0, false
	}
	n = 4 + int(binary.BigEndian.Uint16(b[2:]))
	if n < 24 || n%4 != 0 || n > len(b) || n > 4+256 {
		return id, 0, false
	}
	name, _, ended := bytes.Cut(b[4:n], []byte{0})
	if !ended || len(name) == 0 {
		return id, 0, false
	}
	id.Name = string(name)
	switch port := bytes.Contains(name, []byte(",i,0x")); {
	case b[0]>>6 == 0 && !port:
		id.Device = true
	case b[0]>>6 == 1 && port:
	default:
		return id, 0, false
	}
	return id, n, true
}

// AppendTransportID appends an initiator port's TransportID. SPC-4, 7.6.4.6.
func AppendTransportID(dst []byte, port string) []byte {
	n := max((len(port)+4)&^3, 20)
	dst = append(dst, 0x45, 0, byte(n>>8), byte(n))
	dst = append(dst, port...)
	return append(dst, make([]byte, n-len(port))...)
}

// AppendKeys appends READ KEYS data. SPC-4, 6.15.2.
func AppendKeys(dst []byte, generation uint32, keys []uint64) []byte {
	dst = binary.BigEndian.AppendUint32(dst, generation)
	dst = binary.BigEndian.AppendUint32(dst, uint32(8*len(keys)))
	for _, k := range keys {
		dst = binary.BigEndian.AppendUint64(dst, k)
	}
	return dst
}

// AppendReservation appends READ RESERVATION data; kind 0 means none.
// SPC-4, 6.15.3.
func AppendReservation(dst []byte, generation uint32, kind uint8, key uint64) []byte {
	dst = binary.BigEndian.AppendUint32(dst, generation)
	if kind == 0 {
		return append(dst, 0, 0, 0, 0)
	}
	dst = append(dst, 0, 0, 0, 16)
	dst = binary.BigEndian.AppendUint64(dst, key)
	return append(dst, 0, 0, 0, 0, 0, kind, 0, 0)
}

// AppendCapabilities appends REPORT CAPABILITIES data: RESERVE(6) is handled
// compatibly (CRH), SPEC_I_PT, ALL_TG_PT and APTPL are possible, all six types
// valid. active says that APTPL is in force. SPC-4, 6.15.4.
func AppendCapabilities(dst []byte, active bool) []byte {
	b := byte(0x80) // TMV
	if active {
		b |= 0x01
	}
	return append(dst, 0, 8, 0x1d, b, 0xea, 0x01, 0, 0)
}

// FullStatus is one registration as READ FULL STATUS tells it.
type FullStatus struct {
	Key       uint64
	AllPorts  bool
	Holder    bool
	Type      uint8
	Port      uint16 // relative target port
	Initiator string // initiator port name
}

// AppendFullStatus appends READ FULL STATUS data. SPC-4, 6.15.5.
func AppendFullStatus(dst []byte, generation uint32, list []FullStatus) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, generation)
	dst = append(dst, 0, 0, 0, 0)
	for _, s := range list {
		dst = binary.BigEndian.AppendUint64(dst, s.Key)
		flags, kind := byte(0), byte(0)
		if s.AllPorts {
			flags |= 2
		}
		if s.Holder {
			flags |= 1
			kind = s.Type
		}
		dst = append(dst, 0, 0, 0, 0, flags, kind, 0, 0, 0, 0, byte(s.Port>>8), byte(s.Port), 0, 0, 0, 0)
		at := len(dst)
		dst = AppendTransportID(dst, s.Initiator)
		binary.BigEndian.PutUint32(dst[at-4:], uint32(len(dst)-at))
	}
	binary.BigEndian.PutUint32(dst[start+4:], uint32(len(dst)-start-8))
	return dst
}
