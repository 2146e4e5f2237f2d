package lun

import (
	"encoding/binary"
	"slices"

	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// reserve is RESERVE(6) and (10), which SPC-2 had and ESXi still sends. With
// persistent registrations around it reserves nothing: a registrant gets GOOD
// all the same, anyone else a conflict (CRH). SPC-2, 7.21; SPC-4, 5.13.3.
func (k *task) reserve() *scsi.Check {
	i, u := k.itl, k.itl.unit
	if k.CDB[1]&0x11 != 0 {
		return scsi.InvalidCDB(1, 4) // third party, extents
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case len(u.pr.Registrations) > 0:
		if !u.pr.Registered(i.nexus) || u.pr.Type != 0 && !u.pr.Access(i.nexus).Write {
			return &scsi.Check{Status: scsi.ReservationConflict}
		}
		return nil
	case u.legacy != nil && u.legacy != i:
		return &scsi.Check{Status: scsi.ReservationConflict}
	case u.legacy == nil && !i.closed:
		u.legacy = i
		u.refresh()
	}
	return nil
}

// release is RELEASE(6) and (10): of what is not the nexus's it releases
// nothing, and that is no error. SPC-2, 7.16.
func (k *task) release() *scsi.Check {
	u := k.itl.unit
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.legacy == k.itl {
		u.legacy = nil
		u.refresh()
	}
	return nil
}

// persistentIn is PERSISTENT RESERVE IN. SPC-4, 6.15.
func (k *task) persistentIn() *scsi.Check {
	_, s, err := k.itl.unit.told()
	if err != nil {
		return failed(err, -1)
	}
	var data []byte
	switch k.CDB[1] & 0x1f {
	case scsi.ActionPersistReadKeys:
		keys := make([]uint64, 0, len(s.Registrations))
		for _, r := range s.Registrations {
			keys = append(keys, r.Key)
		}
		data = scsi.AppendKeys(nil, s.Generation, keys)
	case scsi.ActionPersistReadReserved:
		data = scsi.AppendReservation(nil, s.Generation, uint8(s.Type), s.HolderKey())
	case scsi.ActionPersistCapabilities:
		data = scsi.AppendCapabilities(nil, s.Persist)
	default:
		list := make([]scsi.FullStatus, 0, len(s.Registrations))
		for _, r := range s.Registrations {
			list = append(list, scsi.FullStatus{
				Key: r.Key, AllPorts: r.AllPorts, Holder: s.Holds(r.Nexus), Type: uint8(s.Type),
				Port: r.Nexus.Port.Tag, Initiator: r.Nexus.Initiator,
			})
		}
		data = scsi.AppendFullStatus(nil, s.Generation, list)
	}
	return k.reply(data, int(binary.BigEndian.Uint16(k.CDB[7:])))
}

// persistentOut is PERSISTENT RESERVE OUT. SPC-4, 6.16.
func (k *task) persistentOut() *scsi.Check {
	k.Required = int(min(binary.BigEndian.Uint32(k.CDB[5:]), 1<<30))
	p, check := scsi.DecodePersistOut(k.CDB, k.DataOut)
	if check != nil {
		return check
	}
	r := reserve.Request{
		Action: reserve.Action(p.Action), Type: reserve.Type(p.Type), Scope: p.Scope, Key: p.Key, ActionKey: p.ActionKey,
		Persist: p.Persist, AllPorts: p.AllPorts, Specified: p.Specified, Unregister: p.Unregister,
		Ports: k.port.srv.portsOf(k.itl.unit),
	}
	if r.Action == reserve.RegisterAndMove {
		if p.Initiators[0].Device {
			return scsi.InvalidData(24, 7) // a nexus has an initiator port
		}
		r.To = reserve.Nexus{Initiator: p.Initiators[0].Name, Port: reserve.Port{Target: k.itl.nexus.Port.Target, Tag: p.Port}}
		if !slices.Contains(r.Ports, r.To.Port) {
			return scsi.InvalidData(18, -1) // a holder there could never come
		}
	} else if r.Also, check = k.ports(p.Initiators); check != nil {
		return check
	}
	return k.decide(r)
}

// ports names the initiator ports of SPEC_I_PT. A name without a port stands
// for the ports of that initiator that are logged in.
func (k *task) ports(ids []scsi.TransportID) (list []string, check *scsi.Check) {
	for _, id := range ids {
		if !id.Device {
			list = append(list, id.Name)
			continue
		}
		n := len(list)
		list = append(list, k.itl.unit.loggedIn(id.Name)...)
		for _, far := range k.known {
			if isPortOf(far, id.Name) {
				list = append(list, far)
			}
		}
		if len(list) == n {
			return nil, scsi.InvalidData(28, -1)
		}
	}
	return list, nil
}

// decide changes the unit's reservations, and does what follows: the new state
// is stored, if it is to outlive a loss of power or if another node may take
// over, then in force, and then the tasks of preempted nexuses end. Only then there is an answer. A crash before
// the store leaves the old state and no answer; one after it, the new state,
// which the initiator finds when it asks again.
func (k *task) decide(r reserve.Request) *scsi.Check {
	u := k.itl.unit
	u.persist.Lock()
	if check := k.outdated(0); check != nil {
		u.persist.Unlock()
		return check
	}
	u.mu.Lock()
	old, legacy := u.pr, u.legacy
	u.mu.Unlock()
	next, e := reserve.Decide(old, k.itl.nexus, r)
	check := verdict(e.Verdict)
	if k.stop.Load() {
		// Preempted itself, by one that waits for this task. Were it to preempt
		// now and wait for that one's tasks, both would wait forever.
		check = ended
	} else if check == nil && legacy != nil {
		check = &scsi.Check{Status: scsi.ReservationConflict} // SPC-2's way excludes this one
	}
	if check == nil && e.Changed {
		check = refusal(u.keep(old, next, e.Notices))
	}
	if check != nil || !e.Changed {
		u.persist.Unlock()
		return check
	}
	u.mu.Lock()
	u.pr = next
	u.refresh()
	// In the same step in which the nexuses lose their rights, so that what a
	// nexus sends after it has registered anew is not taken for the old.
	aborted := u.mark(k.port, k, func(t *task) bool { return slices.Contains(e.Abort, t.itl.nexus) })
	away := u.notify(e.Notices)
	u.mu.Unlock()
	brought := u.tellAway(away)
	u.persist.Unlock()
	for _, i := range u.all(nil) {
		if i.pending() {
			i.tell()
		}
	}
	aborted.drain()
	aborted.cleared(k.port)
	brought()
	return nil
}

// verdict turns a decision into what the initiator is told.
func verdict(v reserve.Verdict) *scsi.Check {
	switch v {
	case reserve.Done:
		return nil
	case reserve.Conflict:
		return &scsi.Check{Status: scsi.ReservationConflict}
	case reserve.InvalidRelease:
		return scsi.Fail(scsi.KeyIllegalRequest, 0x26, 0x04)
	case reserve.InvalidField:
		return scsi.InvalidData(8, -1)
	case reserve.NoResources:
		return scsi.Fail(scsi.KeyIllegalRequest, 0x55, 0x04)
	default:
		return scsi.InvalidCDB(2, -1)
	}
}
