package lun

import (
	"sync"
	"sync/atomic"

	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// port is one I_T nexus. It implements scsi.Port.
type port struct {
	srv    *Server
	nexus  scsi.Nexus
	events scsi.Events
	// far: it stands for a nexus of another node while something that was passed
	// on is performed. Nothing is seen through it.
	far bool
	// view holds what the nexus sees, by number. It is replaced as a whole.
	view atomic.Pointer[view]

	copies sync.Mutex
	// results are those of EXTENDED COPY, by list identifier; the oldest is
	// dropped beyond copyResultsMax. Under copies.
	results []*copyResult
}

// view is what a nexus sees: I_T_L nexuses by logical unit number, nil where
// there is none.
type view []*itl

// itl is one I_T_L nexus: what there is between an initiator and a unit it
// sees. It ends when the nexus or the mapping does.
type itl struct {
	attentions
	// denied is what reservations, the mapping and the access state keep the
	// nexus from; 0 lets everything through. Stored under unit.mu.
	denied atomic.Uint32

	unit  *unit
	port  *port
	lun   scsi.LUN
	nexus reserve.Nexus

	// Under unit.mu.
	closed   bool
	readOnly bool             // by the mapping
	access   scsi.AccessState // of the port's group
}

// Reasons for denying, bits of itl.denied.
const (
	denyRead    = 1 << iota // a persistent reservation of another nexus
	denyWrite               // likewise
	denyLegacy              // RESERVE(6) of another nexus
	denyProtect             // the mapping is read-only
	denyAccess              // the asymmetric access state is not active
)

var _ scsi.Port = (*port)(nil)

// lookup returns the I_T_L nexus at a LUN, or nil.
func (p *port) lookup(l scsi.LUN) *itl {
	n, ok := l.Number()
	v := *p.view.Load()
	if !ok || n >= len(v) {
		return nil
	}
	return v[n]
}

// Begin implements scsi.Port.
func (p *port) Begin(t *scsi.Task) {
	k := p.srv.newTask()
	k.Task, k.port, k.itl = t, p, p.lookup(t.LUN)
	k.began = p.srv.now()
	t.Unit = k
	if k.itl == nil {
		return
	}
	u := k.itl.unit
	u.mu.Lock()
	if k.itl.closed {
		k.itl = nil // unmapped between our look and now
	} else {
		u.insert(k)
	}
	u.mu.Unlock()
}

// Execute implements scsi.Port.
func (p *port) Execute(t *scsi.Task) bool {
	k := t.Unit.(*task)
	if k.itl == nil {
		k.finish(k.absent())
		p.srv.freeTask(k)
		return true
	}
	u := k.itl.unit
	answer, told := false, false
	if u.start(k) {
		k.finish(k.perform())
		answer, told = u.leave(k)
	} else {
		u.mu.Lock()
		told = k.told
		u.mu.Unlock()
	}
	p.srv.freeTask(k)
	if !answer && told {
		clearAnswer(t)
		t.Status = scsi.TaskAborted
	}
	return answer || told
}

// Drop implements scsi.Port.
func (p *port) Drop(t *scsi.Task) {
	k, _ := t.Unit.(*task)
	if k == nil {
		return
	}
	if k.itl != nil {
		u := k.itl.unit
		u.mu.Lock()
		if k.state.Load() == queued {
			u.remove(k)
		}
		u.mu.Unlock()
	}
	p.srv.freeTask(k)
}

// Manage implements scsi.Port. SAM-5, 7.
func (p *port) Manage(f scsi.Function, lun scsi.LUN, tag uint32) scsi.FunctionResponse {
	switch f {
	case scsi.TargetWarmReset, scsi.TargetColdReset:
		return resetResponse(p.resetAll())
	case scsi.TaskReassign:
		return scsi.ReassignUnsupported // error recovery level 0
	default: // of one logical unit
	}
	i := p.lookup(lun)
	if i == nil {
		return scsi.LUNDoesNotExist
	}
	switch f {
	case scsi.AbortTask:
		if len(i.unit.abort(p, func(t *task) bool { return t.itl == i && t.Tag == tag }).hit) == 0 {
			return scsi.TaskDoesNotExist
		}
	case scsi.AbortTaskSet:
		i.unit.abort(p, func(t *task) bool { return t.itl == i })
	case scsi.ClearTaskSet:
		if !i.passFunction(f) {
			return scsi.FunctionRejected
		}
		i.unit.abort(p, func(*task) bool { return true }).cleared(p)
	case scsi.ClearACA:
		// NACA is refused, so there never is an ACA condition to clear.
	case scsi.LogicalUnitResetFunction:
		return resetResponse(i.passFunction(f) && i.unit.reset(p))
	default:
		return scsi.FunctionUnsupported
	}
	return scsi.FunctionComplete
}

// resetAll resets what the port sees: units that this initiator does not see
// are not its to reset. It returns whether that could be done and saved.
func (p *port) resetAll() bool {
	done, asking := true, true
	var waits []func()
	for _, i := range *p.view.Load() {
		if i == nil {
			continue
		}
		// When the other node does not answer for one unit, it does not for the next
		// either, and each takes its time.
		if i.unit.elsewhere() {
			asking = asking && i.passFunction(scsi.LogicalUnitResetFunction)
			done = done && asking
			if !asking {
				continue
			}
		}
		reset, brought := i.unit.beginReset(p)
		done = done && reset
		waits = append(waits, brought)
	}
	// Other nodes are told of all units at once: one that does not answer takes its
	// time once.
	for _, brought := range waits {
		brought()
	}
	return done
}

// resetResponse answers a reset that is done, or that could not be saved.
func resetResponse(done bool) scsi.FunctionResponse {
	if !done {
		return scsi.FunctionRejected
	}
	return scsi.FunctionComplete
}

// Close implements scsi.Port. What RESERVE(6) reserved ends with its nexus;
// persistent reservations stay. SPC-2, 5.5.1; SPC-4, 5.13.1.
func (p *port) Close() {
	for _, i := range p.srv.closePort(p) {
		i.detach()
	}
}

// detach ends an I_T_L nexus; it returns when its tasks have landed or never
// can. Without locks.
func (i *itl) detach() {
	u := i.unit
	u.mu.Lock()
	i.closed = true
	u.mu.Unlock()
	u.abort(nil, func(t *task) bool { return t.itl == i })
	u.mu.Lock()
	delete(u.nexuses, i)
	if u.legacy == i {
		// Not before its tasks have landed: the next holder must not find
		// them landing in its time.
		u.legacy = nil
		u.refresh()
	}
	u.mu.Unlock()
}
