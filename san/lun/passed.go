package lun

import (
	"context"
	"slices"
	"strings"
	"time"

	"steadfast/fault"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// A unit on standby passes on to the node that serves it whatever changes the
// unit and is performed in that state, too. SPC-4, 5.15.2.4.4, has PERSISTENT
// RESERVE OUT and MODE SELECT among the commands of the state standby, and hosts
// rely on it: a registration is one nexus's, so that Linux (mpathpersist),
// Windows' failover clusters and ESXi register through every path, and give up
// when one refuses. RESERVE and RELEASE are not in the list, and end with
// TARGET PORT IN STANDBY STATE. Task management knows no access states (SAM-5,
// 7): functions that reach beyond their nexus are passed on, for an initiator
// that was told that a unit was reset takes it that no task is left in it.
//
// Who serves the unit performs the command for the nexus that it came from, in
// the unit's task set, and saves before it answers, as ever. It does not begin
// to when who passed it on may have given up (late): then the initiator was told
// to try again, and an old command must not land behind the new one. The
// question is asked with unit.persist held, which is kept until the change is
// in force; so a command that was not late is in force before any that comes
// after it is looked at.

// Passed is a command, or a task management function, on its way from a unit on
// standby to the node that serves it.
type Passed struct {
	Volume [16]byte `json:"-"` // whose unit it is
	// Nexus is where it came from.
	Nexus reserve.Nexus `json:"nexus"`
	// Function is a task management function of the whole unit, or 0: a command.
	Function scsi.Function `json:"function,omitempty"`
	CDB      []byte        `json:"cdb,omitempty"`
	DataOut  []byte        `json:"data,omitempty"`
	// Known are the initiator ports that are logged in where the command came in,
	// of those that it names by their initiator alone (SPEC_I_PT).
	Known []string `json:"known,omitempty"`
}

// Answer is what became of a Passed.
type Answer struct {
	// Status, Sense and Required are a command's, as scsi.Task has them.
	Status   scsi.Status `json:"status"`
	Sense    []byte      `json:"sense,omitempty"`
	Required int         `json:"required,omitempty"`
	// Response is a function's.
	Response scsi.FunctionResponse `json:"response,omitempty"`
}

// PassOn has the commands that change the unit's state performed by the node
// that serves it: pass brings them there. It is to return within seconds, and
// soon after ctx ends: the volume has been replaced then, or its unit goes. What
// fails is answered with 02h/04h/0Ah, which has initiators try again: the
// command was not performed, or nobody knows. To be called before the volume is
// a unit's; without, such commands are answered as from a port in standby.
func (v *Standby) PassOn(pass func(context.Context, Passed) (Answer, error)) {
	v.pass = pass
}

// errTransition is that nobody can be asked just now, or that nobody knows what
// became of a command.
var errTransition = scsi.Fail(scsi.KeyNotReady, 0x04, 0x0a)

// errLate is that who passed a command on may have given up.
var errLate = scsi.Fail(scsi.KeyNotReady, 0x04, 0x0a)

// standby returns the unit's volume, when another node serves it.
func (u *unit) standby() *Standby {
	v, _ := u.vol().(*Standby)
	return v
}

// passOn has the task performed by the node that serves the unit.
func (k *task) passOn(v *Standby) *scsi.Check {
	if v.pass == nil {
		return errStandby
	}
	a, err := v.pass(v.ctx, Passed{Volume: v.ID(), Nexus: k.itl.nexus, CDB: k.CDB, DataOut: k.DataOut, Known: k.knownTo()})
	if err != nil {
		return errTransition
	}
	k.Required, k.answer = a.Required, &a
	return nil
}

// knownTo lists the initiator ports here that the command may mean.
func (k *task) knownTo() (list []string) {
	if scsi.Opcode(k.CDB[0]) != scsi.OpPersistentOut {
		return nil
	}
	p, check := scsi.DecodePersistOut(k.CDB, k.DataOut)
	if check != nil {
		return nil // whoever performs it says so
	}
	for _, id := range p.Initiators {
		if id.Device {
			list = append(list, k.itl.unit.loggedIn(id.Name)...)
		}
	}
	return list
}

// loggedIn lists the ports of an initiator that see the unit here.
func (u *unit) loggedIn(initiator string) (list []string) {
	for _, i := range u.all(nil) {
		if isPortOf(i.nexus.Initiator, initiator) && !slices.Contains(list, i.nexus.Initiator) {
			list = append(list, i.nexus.Initiator)
		}
	}
	return list
}

// isPortOf reports whether an initiator port is one of an initiator.
func isPortOf(port, initiator string) bool { return strings.HasPrefix(port, initiator+",i,0x") }

// passFunction has the node that serves the unit perform a task management
// function, and reports whether it did. It is true where there is nobody to
// pass it on to.
func (i *itl) passFunction(f scsi.Function) bool {
	v := i.unit.standby()
	if v == nil || v.pass == nil {
		return true
	}
	a, err := v.pass(v.ctx, Passed{Volume: v.ID(), Nexus: i.nexus, Function: f})
	return err == nil && a.Response == scsi.FunctionComplete
}

// Perform performs what another node passes on, for a nexus of a port of its
// own. late is asked whether that node may have given up meanwhile.
//
// Fails with fault.NotFound when the volume is no unit, with fault.Fenced when
// this node does not serve it, or not yet, with fault.Stale when it was late, and
// with fault.Denied when a nexus could not have come there or the command is
// none that is passed on. Nothing was done then.
func (s *Server) Perform(p Passed, late func() bool) (Answer, error) {
	u, err := s.unit(p.Volume)
	if err != nil {
		return Answer{}, err
	}
	if !slices.Contains(s.portsOf(u), p.Nexus.Port) {
		return Answer{}, fault.New(fault.Denied, "the unit is not reached through port %d of %s", p.Nexus.Port.Tag, p.Nexus.Port.Target)
	}
	if u.elsewhere() {
		return Answer{}, notHere(u)
	}
	by := &port{srv: s, far: true, nexus: scsi.Nexus{InitiatorPort: p.Nexus.Initiator, TargetName: p.Nexus.Port.Target, TargetPort: p.Nexus.Port.Tag}}
	by.view.Store(&view{})
	if p.Function != 0 {
		return s.performFunction(u, by, p.Function, late)
	}
	if len(p.CDB) == 0 {
		return Answer{}, fault.New(fault.Denied, "a command without a byte")
	}
	if c, check := s.find(p.CDB); check == nil && c.class&passes == 0 {
		return Answer{}, fault.New(fault.Denied, "command %02xh is none that is passed on", p.CDB[0])
	}
	i := &itl{unit: u, port: by, nexus: p.Nexus, access: scsi.ActiveOptimized}
	u.mu.Lock()
	u.allow(i)
	u.mu.Unlock()
	t := &scsi.Task{CDB: p.CDB, DataOut: p.DataOut, Attribute: scsi.Simple, ExpectedOut: len(p.DataOut)}
	k := s.newTask()
	k.Task, k.port, k.itl, k.began, k.late, k.known = t, by, i, s.now(), late, p.Known
	return s.performTask(u, k)
}

// performTask brings a task that was passed on through the unit's task set.
func (s *Server) performTask(u *unit, k *task) (Answer, error) {
	t := k.Task
	defer s.freeTask(k)
	if !u.enter(k) {
		return Answer{}, fault.New(fault.Fenced, "the unit is being taken away")
	}
	if !u.start(k) {
		return Answer{Status: scsi.TaskAborted}, nil
	}
	check := k.perform()
	k.finish(check)
	answer, _ := u.leave(k)
	switch {
	case !answer:
		// Whoever ended it has told its nexuses. The one that waits for this answer
		// is of another node, where nothing was ended: it gets one.
		return Answer{Status: scsi.TaskAborted}, nil
	case check == errStandby:
		return Answer{}, notHere(u)
	case check == errLate:
		return Answer{}, fault.New(fault.Stale, "the command came too late")
	}
	return Answer{Status: t.Status, Sense: t.Sense, Required: t.Required}, nil
}

// performFunction performs a task management function of the whole unit.
func (s *Server) performFunction(u *unit, by *port, f scsi.Function, late func() bool) (Answer, error) {
	if late() {
		return Answer{}, fault.New(fault.Stale, "the function came too late")
	}
	switch f {
	case scsi.LogicalUnitResetFunction:
		return Answer{Response: resetResponse(u.reset(by))}, nil
	case scsi.ClearTaskSet:
		u.abort(by, func(*task) bool { return true }).cleared(by)
		return Answer{Response: scsi.FunctionComplete}, nil
	default:
		return Answer{}, fault.New(fault.Denied, "function %d is none that is passed on", f)
	}
}

func notHere(u *unit) error {
	return fault.New(fault.Fenced, "volume %s is not served here", u.vol().Name())
}

// outdated says why a change of the unit's state cannot be made any more, by a
// command of class c, or of none. Under persist.
func (k *task) outdated(c class) *scsi.Check {
	u := k.itl.unit
	switch {
	case u.elsewhere():
		return errStandby
	case k.late == nil:
		return nil
	case k.late():
		return errLate
	case c == 0: // reservations judge by themselves
		return nil
	}
	u.mu.Lock()
	u.allow(k.itl) // nobody keeps this nexus's rights up to date
	u.mu.Unlock()
	return k.admit(c)
}

// Notice is a unit attention for a nexus that comes through a port of another
// node; without To it is for all of them but Except.
type Notice struct {
	To     reserve.Nexus `json:"to"`
	Except reserve.Nexus `json:"except"`
	ASC    uint8         `json:"asc"`
	ASCQ   uint8         `json:"ascq"`
}

// Teller is a Volume whose unit initiators see through another node, too.
type Teller interface {
	// Tell takes what nexuses there are to be told, to be brought to that node's
	// Hear. It is called with locks held: it does not block, nor call the Server.
	// The channel is closed when they were brought, or could not be; nil is that
	// there is nothing to wait for.
	Tell([]Notice) <-chan struct{}
}

// tellMax bounds how long a command that has nexuses of other nodes told waits
// for that.
const tellMax = 250 * time.Millisecond

// tellAway has nexuses of other nodes told. Under persist, so that nobody does
// once the volume was replaced. The command is to be answered after what it
// returns, which is called without locks and waits until they were told, a
// little while from now: an initiator that is behind both nodes finds the condition
// pending once it has the answer, as with one device. SAM-5, 5.14.
func (u *unit) tellAway(list []Notice) (brought func()) {
	t, ok := u.vol().(Teller)
	if !ok || len(list) == 0 {
		return func() {}
	}
	done := t.Tell(list)
	if done == nil {
		return func() {}
	}
	end := time.Now().Add(tellMax)
	return func() {
		timer := time.NewTimer(time.Until(end))
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
		}
	}
}

// everyone is a notice of a for all nexuses of other nodes but except.
func everyone(a attention, except reserve.Nexus) []Notice {
	n := noticeOf(a)
	n.Except = except
	return []Notice{n}
}

// noticeOf returns a notice of the foremost condition of a, for everyone.
func noticeOf(a attention) Notice {
	var p attentions
	p.raise(a)
	check, _ := p.take()
	return Notice{ASC: check.ASC, ASCQ: check.ASCQ}
}

// Hear raises unit attentions that the node which serves a unit has for nexuses
// of this one. It returns those that found their nexus. Fails with
// fault.NotFound; a unit that is served here knows by itself, and takes none.
func (s *Server) Hear(volume [16]byte, list []Notice) (heard []Notice, err error) {
	u, err := s.unit(volume)
	if err != nil {
		return nil, err
	}
	if !u.elsewhere() {
		return nil, nil
	}
	for _, n := range list {
		a, found := attentionOf(n.ASC, n.ASCQ), false
		for _, i := range u.all(nil) {
			if a == 0 || n.To != (reserve.Nexus{}) && i.nexus != n.To || i.nexus == n.Except {
				continue
			}
			i.raise(a)
			i.tell()
			found = true
		}
		if found {
			heard = append(heard, n)
		}
	}
	return heard, nil
}

// Heard takes back what was kept for nexuses until they come here: another
// node's Hear has told them. What is no unit any more is no error.
func (s *Server) Heard(volume [16]byte, list []Notice) {
	u, err := s.unit(volume)
	if err != nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, n := range list {
		left := u.returning[n.To] &^ attentionOf(n.ASC, n.ASCQ)
		if left == 0 {
			delete(u.returning, n.To)
		} else {
			u.returning[n.To] = left
		}
	}
}
