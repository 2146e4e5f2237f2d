package lun

import (
	"cmp"
	"slices"
	"sync/atomic"

	"steadfast/fault"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// counters count what a unit did.
type counters struct {
	reads, writes, readBytes, writtenBytes, readNanos, writeNanos, errors atomic.Uint64
}

// read counts a read of n bytes that took nanos nanoseconds.
func (c *counters) read(n, nanos int64) {
	c.reads.Add(1)
	c.readBytes.Add(uint64(n))
	c.readNanos.Add(uint64(nanos))
}

// written counts a write.
func (c *counters) written(n, nanos int64) {
	c.writes.Add(1)
	c.writtenBytes.Add(uint64(n))
	c.writeNanos.Add(uint64(nanos))
}

// Counters are what was done on a unit since it exists. Errors are commands
// that ended in CHECK CONDITION, but for unit attentions and miscompares.
type Counters struct {
	Reads, Writes           uint64
	ReadBytes, WrittenBytes uint64
	// ReadNanos and WriteNanos are sums of the time from a command's arrival
	// to its answer, in nanoseconds.
	ReadNanos, WriteNanos uint64
	Errors                uint64
}

// snapshot reads the counters, each by itself.
func (c *counters) snapshot() Counters {
	return Counters{
		Reads: c.reads.Load(), Writes: c.writes.Load(), ReadBytes: c.readBytes.Load(), WrittenBytes: c.writtenBytes.Load(),
		ReadNanos: c.readNanos.Load(), WriteNanos: c.writeNanos.Load(), Errors: c.errors.Load(),
	}
}

// NexusStatus is one initiator port that sees a unit.
type NexusStatus struct {
	scsi.Nexus
	LUN      int
	ReadOnly bool
	// Holds says that it holds what RESERVE(6) reserved.
	Holds bool
}

// Status describes a unit.
type Status struct {
	Volume [16]byte
	Name   string
	// NAA is the identifier that initiators know the unit by.
	NAA [16]byte
	Counters
	Reservations reserve.State
	Nexuses      []NexusStatus // by target, initiator port and LUN
}

// Counters returns a unit's counters. Fails with fault.NotFound.
func (s *Server) Counters(id [16]byte) (Counters, error) {
	u, err := s.unit(id)
	if err != nil {
		return Counters{}, err
	}
	return u.count.snapshot(), nil
}

// Units describes all units, by volume name.
func (s *Server) Units() []Status {
	s.mu.Lock()
	list := make([]Status, 0, len(s.units))
	for _, u := range s.units {
		list = append(list, u.status())
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// status describes a unit.
func (u *unit) status() Status {
	st := Status{Volume: u.id, Name: u.vol().Name(), NAA: naa(u.id), Counters: u.count.snapshot()}
	u.mu.Lock()
	defer u.mu.Unlock()
	st.Reservations = u.pr
	for i := range u.nexuses {
		n, _ := i.lun.Number()
		st.Nexuses = append(st.Nexuses, NexusStatus{i.port.nexus, n, i.readOnly, u.legacy == i})
	}
	slices.SortFunc(st.Nexuses, func(a, b NexusStatus) int {
		return cmp.Or(cmp.Compare(a.TargetName, b.TargetName), cmp.Compare(a.InitiatorPort, b.InitiatorPort), a.LUN-b.LUN)
	})
	return st
}

// unit returns the unit of a volume. Fails with fault.NotFound.
func (s *Server) unit(id [16]byte) (*unit, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.units[id]; u != nil {
		return u, nil
	}
	return nil, fault.New(fault.NotFound, "no logical unit has the volume %x", id)
}

// ClearReservations takes every reservation and registration off a volume, for
// a host that died holding one. Nexuses hear of it. Fails with fault.NotFound,
// and with the volume's error when the change cannot be stored.
func (s *Server) ClearReservations(id [16]byte) error {
	u, err := s.unit(id)
	if err != nil {
		return err
	}
	return u.clearReservations()
}
