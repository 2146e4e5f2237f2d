// Package reserve decides about persistent reservations: who is registered
// with a logical unit, who holds it, and what everyone else may do. It is a
// pure core: Decide takes a state and a request and returns the next state
// with what must be done about it; package lun does it, and a mirror can carry
// the same requests to a peer in the same order.
//
//	                 REGISTER                RESERVE
//	not registered ------------> registered ---------> holder
//	       ^                       |   ^                  |
//	       |  REGISTER key 0       |   |  RELEASE         |
//	       +-----------------------+   +------------------+
//	       |  CLEAR; PREEMPT by another, which may become the holder
//	       +------------------------------------------------+
//
// Of the "all registrants" types every registrant is a holder.
//
// It trusts its caller to name nexuses truly, and to make a changed state
// durable before it answers when the state says so (Persist): else a host that
// was fenced could find itself unfenced after a loss of power.
//
// Sources: SPC-4, 5.13 (reservations), 6.15 and 6.16 (the commands).
package reserve

import "slices"

// Port names a target port: an iSCSI target and a portal group's tag.
type Port struct {
	Target string `json:"target"`
	Tag    uint16 `json:"tag"`
}

// Nexus names an I_T nexus as reservations know it: the initiator port's name
// ("name,i,0xISID") and the target port. A nexus that is lost and comes back
// is the same.
type Nexus struct {
	Initiator string `json:"initiator"`
	Port      Port   `json:"port"`
}

// Type is a persistent reservation type. SPC-4, 6.15.3.4. The zero Type means
// that nothing is reserved.
type Type uint8

// Reservation types.
const (
	WriteExclusive                 Type = 1
	ExclusiveAccess                Type = 3
	WriteExclusiveRegistrantsOnly  Type = 5
	ExclusiveAccessRegistrantsOnly Type = 6
	WriteExclusiveAllRegistrants   Type = 7
	ExclusiveAccessAllRegistrants  Type = 8
)

// Valid reports whether t is one of the six.
func (t Type) Valid() bool {
	return t == WriteExclusive || t == ExclusiveAccess || t >= WriteExclusiveRegistrantsOnly && t <= ExclusiveAccessAllRegistrants
}

// AllRegistrants reports whether every registrant holds a reservation of t.
func (t Type) AllRegistrants() bool { return t >= WriteExclusiveAllRegistrants }

// registrantsPass reports whether every registrant may do what the holder may.
func (t Type) registrantsPass() bool { return t >= WriteExclusiveRegistrantsOnly }

// writeOnly reports whether t leaves reading to everyone.
func (t Type) writeOnly() bool {
	return t == WriteExclusive || t == WriteExclusiveRegistrantsOnly || t == WriteExclusiveAllRegistrants
}

// String returns the type's name as people write it.
func (t Type) String() string {
	switch t {
	case WriteExclusive:
		return "write-exclusive"
	case ExclusiveAccess:
		return "exclusive-access"
	case WriteExclusiveRegistrantsOnly:
		return "write-exclusive-registrants-only"
	case ExclusiveAccessRegistrantsOnly:
		return "exclusive-access-registrants-only"
	case WriteExclusiveAllRegistrants:
		return "write-exclusive-all-registrants"
	case ExclusiveAccessAllRegistrants:
		return "exclusive-access-all-registrants"
	}
	return "none"
}

// Registration is one nexus's key.
type Registration struct {
	Nexus Nexus
	Key   uint64
	// AllPorts: made with ALL_TG_PT, for every target port at once; it is
	// changed and ended for all of them at once too.
	AllPorts bool
}

// State is all that persistent reservations of one logical unit know. The
// zero State is a unit without any. A State is never changed in place.
type State struct {
	Generation uint32 // PRgeneration; starts at 0 with the device server
	// Persist is APTPL: keep the state over a loss of power.
	Persist       bool
	Registrations []Registration // in order of registering
	Type          Type
	Holder        Nexus // of a reservation that is not for all registrants
}

// RegistrationsMax bounds the registrations of one logical unit; a request
// beyond it gets INSUFFICIENT REGISTRATION RESOURCES.
const RegistrationsMax = 256

// Action is a service action of PERSISTENT RESERVE OUT, with its code.
type Action uint8

// Actions. SPC-4, 6.16.2.
const (
	Register        Action = 0
	Reserve         Action = 1
	Release         Action = 2
	Clear           Action = 3
	Preempt         Action = 4
	PreemptAbort    Action = 5
	RegisterIgnore  Action = 6
	RegisterAndMove Action = 7
)

// Request is a decoded PERSISTENT RESERVE OUT.
type Request struct {
	Action    Action
	Type      Type
	Scope     uint8  // only 0 (logical unit) is valid
	Key       uint64 // the nexus's own key
	ActionKey uint64 // the key the action is about
	Persist   bool   // APTPL
	AllPorts  bool   // ALL_TG_PT
	Specified bool   // SPEC_I_PT
	// Also lists the initiator ports to register besides (SPEC_I_PT).
	Also []string
	// Ports are all target ports that the logical unit is reached through.
	Ports []Port
	// To is the nexus that REGISTER AND MOVE moves the reservation to.
	To         Nexus
	Unregister bool // UNREG
}

// Verdict is how a request ended. Anything but Done leaves the state alone.
type Verdict uint8

// Verdicts, with what the initiator is told.
const (
	Done           Verdict = iota // GOOD
	Conflict                      // RESERVATION CONFLICT
	InvalidRelease                // 05h/26h/04h
	InvalidField                  // 05h/26h/00h: a parameter contradicts the state
	InvalidCDB                    // 05h/24h/00h: scope, type or action
	NoResources                   // 05h/55h/04h
)

// Attention is a unit attention that a change raises.
type Attention uint8

// Attentions. SPC-4, 5.13.11.
const (
	ReservationsPreempted  Attention = iota // 2Ah/03h
	ReservationsReleased                    // 2Ah/04h
	RegistrationsPreempted                  // 2Ah/05h
)

// Notice is a unit attention for one nexus.
type Notice struct {
	To   Nexus
	What Attention
}

// Effects are what must follow a decision.
type Effects struct {
	Verdict Verdict
	Notices []Notice
	// Abort are nexuses whose tasks must have ended before the answer: they
	// have landed, or never can.
	Abort []Nexus
	// Changed says that the state differs; when the old or the new state has
	// Persist, it must be durable before the answer.
	Changed bool
}

// Access is what a nexus may do with the medium.
type Access struct {
	Read, Write bool
}

// Access returns what from may do. SPC-4, 5.13.1, table 68.
func (s State) Access(from Nexus) Access {
	if s.Type == 0 || s.holds(from) || s.Type.registrantsPass() && s.Registered(from) {
		return Access{true, true}
	}
	return Access{Read: s.Type.writeOnly()}
}

// Registered reports whether from has a registration.
func (s State) Registered(from Nexus) bool { return s.find(from) >= 0 }

// Holds reports whether from holds the reservation.
func (s State) Holds(from Nexus) bool { return s.Type != 0 && s.holds(from) }

// HolderKey returns the key to report for the reservation: the holder's, or 0
// for all registrants. SPC-4, 6.15.3.2.
func (s State) HolderKey() uint64 {
	if s.Type == 0 || s.Type.AllRegistrants() {
		return 0
	}
	if i := s.find(s.Holder); i >= 0 {
		return s.Registrations[i].Key
	}
	return 0
}

// find returns the index of from's registration, or -1.
func (s State) find(from Nexus) int {
	return slices.IndexFunc(s.Registrations, func(r Registration) bool { return r.Nexus == from })
}

// holds reports whether from holds the reservation that there is.
func (s State) holds(from Nexus) bool {
	if s.Type.AllRegistrants() {
		return s.Registered(from)
	}
	return s.Holder == from
}

// Decide returns the state after from asked for r, and what must follow.
func Decide(s State, from Nexus, r Request) (State, Effects) {
	d := decision{State: s, from: from}
	d.Registrations = slices.Clone(s.Registrations)
	if d.effects.Verdict = d.decide(r); d.effects.Verdict != Done {
		return s, Effects{Verdict: d.effects.Verdict}
	}
	if len(d.Registrations) == 0 {
		d.Registrations = nil
	}
	return d.State, d.effects
}

// decision is a state on its way to the next.
type decision struct {
	State
	from    Nexus
	effects Effects
}

func (d *decision) decide(r Request) Verdict {
	own := d.find(d.from)
	if r.Action == Register || r.Action == RegisterIgnore {
		return d.register(r, own)
	}
	// Everything else is for registrants who know their key. SPC-4, 5.13.7.
	if own < 0 || d.Registrations[own].Key != r.Key {
		return Conflict
	}
	switch r.Action {
	case Reserve:
		return d.reserve(r)
	case Release:
		return d.release(r)
	case Clear:
		d.notice(ReservationsPreempted, nil)
		d.Registrations, d.Type, d.Holder = nil, 0, Nexus{}
		d.step()
		return Done
	case Preempt, PreemptAbort:
		return d.preempt(r)
	case RegisterAndMove:
		return d.move(r)
	default:
		return InvalidCDB
	}
}

// step counts a change of registrations. SPC-4, 5.13.6.
func (d *decision) step() {
	d.Generation++
	d.effects.Changed = true
}

// notice raises a for every registrant but from, and but those in except.
func (d *decision) notice(a Attention, except []Nexus) {
	for _, r := range d.Registrations {
		if r.Nexus != d.from && !slices.Contains(except, r.Nexus) {
			d.effects.Notices = append(d.effects.Notices, Notice{r.Nexus, a})
		}
	}
}

// register does REGISTER and REGISTER AND IGNORE EXISTING KEY. SPC-4, 5.13.7.
func (d *decision) register(r Request, own int) Verdict {
	if r.Specified && (own >= 0 || r.Action == RegisterIgnore) {
		return InvalidField
	}
	all := r.AllPorts
	switch {
	case own < 0 && r.Action == Register && r.Key != 0:
		return Conflict
	case own < 0 && r.ActionKey == 0:
		return Done // nobody, and nothing to do
	case own >= 0:
		if r.Action == Register && r.Key != d.Registrations[own].Key {
			return Conflict
		}
		all = all || d.Registrations[own].AllPorts
	}
	ports := []Port{d.from.Port}
	if all {
		for _, p := range r.Ports {
			if p != d.from.Port {
				ports = append(ports, p)
			}
		}
	}
	for _, initiator := range append([]string{d.from.Initiator}, r.Also...) {
		for _, port := range ports {
			if n := (Nexus{initiator, port}); r.ActionKey == 0 {
				d.unregister(n)
			} else {
				d.set(n, r.ActionKey, all)
			}
		}
	}
	if len(d.Registrations) > RegistrationsMax {
		return NoResources
	}
	d.Persist = r.Persist
	d.step()
	return Done
}

// set registers n with key, or changes its key.
func (d *decision) set(n Nexus, key uint64, all bool) {
	if i := d.find(n); i >= 0 {
		d.Registrations[i].Key, d.Registrations[i].AllPorts = key, all
		return
	}
	d.Registrations = append(d.Registrations, Registration{n, key, all})
}

// unregister ends n's registration, and the reservation with it when n held
// it: for all registrants when the last of them goes. SPC-4, 5.13.11.2.3.
func (d *decision) unregister(n Nexus) {
	i := d.find(n)
	if i < 0 {
		return
	}
	held := d.Type != 0 && !d.Type.AllRegistrants() && d.Holder == n
	d.Registrations = slices.Delete(d.Registrations, i, i+1)
	switch {
	case held:
		if d.Type.registrantsPass() {
			d.notice(ReservationsReleased, nil)
		}
		d.Type, d.Holder = 0, Nexus{}
	case d.Type.AllRegistrants() && len(d.Registrations) == 0:
		d.Type = 0
	}
}

// reserve does RESERVE. SPC-4, 5.13.9.
func (d *decision) reserve(r Request) Verdict {
	switch {
	case r.Scope != 0 || !r.Type.Valid():
		return InvalidCDB
	case d.Type == 0:
		d.take(r.Type)
		d.effects.Changed = true
		return Done
	case d.holds(d.from) && d.Type == r.Type:
		return Done
	}
	return Conflict
}

// take makes from the holder.
func (d *decision) take(t Type) {
	d.Type, d.Holder = t, Nexus{}
	if !t.AllRegistrants() {
		d.Holder = d.from
	}
}

// release does RELEASE. SPC-4, 5.13.11.2.2.
func (d *decision) release(r Request) Verdict {
	switch {
	case d.Type == 0 || !d.holds(d.from):
		return Done
	case r.Type != d.Type || r.Scope != 0:
		return InvalidRelease
	}
	if d.Type.registrantsPass() {
		d.notice(ReservationsReleased, nil)
	}
	d.Type, d.Holder = 0, Nexus{}
	d.effects.Changed = true
	return Done
}

// preempt does PREEMPT and PREEMPT AND ABORT. SPC-4, 5.13.11.2.4 to 2.6.
func (d *decision) preempt(r Request) Verdict {
	takes := false // the reservation itself is preempted
	match := func(g Registration) bool { return g.Key == r.ActionKey }
	switch {
	case d.Type.AllRegistrants() && r.ActionKey == 0:
		takes = true
		match = func(g Registration) bool { return g.Nexus != d.from }
	case r.ActionKey == 0:
		return InvalidField
	case d.Type != 0 && d.HolderKey() == r.ActionKey:
		takes = true
	case !slices.ContainsFunc(d.Registrations, match):
		return Conflict
	}
	if takes && (r.Scope != 0 || !r.Type.Valid()) {
		return InvalidCDB
	}
	var gone []Nexus
	for _, g := range d.Registrations {
		// Whoever takes the reservation stays registered, whatever its key.
		if match(g) && (g.Nexus != d.from || !takes) {
			gone = append(gone, g.Nexus)
		}
	}
	if takes && d.Type != r.Type {
		d.notice(ReservationsReleased, gone)
	}
	for _, n := range gone {
		if n != d.from {
			d.effects.Notices = append(d.effects.Notices, Notice{n, RegistrationsPreempted})
		}
	}
	d.Registrations = slices.DeleteFunc(d.Registrations, func(g Registration) bool {
		return slices.Contains(gone, g.Nexus)
	})
	if takes {
		d.take(r.Type)
	} else if len(d.Registrations) == 0 {
		d.Type = 0 // the last of all registrants removed itself
	}
	if r.Action == PreemptAbort {
		d.effects.Abort = gone
	}
	d.step()
	return Done
}

// move does REGISTER AND MOVE. SPC-4, 5.13.8.
func (d *decision) move(r Request) Verdict {
	switch {
	case d.Type == 0 || d.Type.AllRegistrants() || d.Holder != d.from:
		return Conflict
	case r.ActionKey == 0 || r.To == d.from:
		return InvalidField
	}
	d.set(r.To, r.ActionKey, false)
	if len(d.Registrations) > RegistrationsMax {
		return NoResources
	}
	d.Holder = r.To
	if r.Unregister {
		d.unregister(d.from)
	}
	d.Persist = r.Persist
	d.step()
	return Done
}
