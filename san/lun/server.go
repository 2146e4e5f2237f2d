package lun

import (
	"maps"
	"slices"
	"sync"
	"time"

	"steadfast/fault"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// Any stands, as the initiator of a view, for every initiator. What one sees
// under its own name takes precedence, number by number.
const Any = "*"

// Mapping says what is seen under a logical unit number.
type Mapping struct {
	LUN    uint16 // 0 to scsi.LUNMax
	Volume [16]byte
	// ReadOnly refuses writes through this mapping.
	ReadOnly bool
}

// Server holds units and views. It implements scsi.PortOpener.
type Server struct {
	base     time.Time
	waits    Waits
	commands [256]*entry
	tasks    sync.Pool // *task
	buffers  sync.Pool // *buffer

	mu      sync.Mutex
	units   map[[16]byte]*unit
	targets map[string]map[string][]Mapping // by target, then by initiator
	ports   map[*port]struct{}
	groups  []scsi.PortGroup // as SetPortGroups gave them
	// unitPorts are those of units that have their own (SetUnitPorts).
	unitPorts map[[16]byte][]scsi.PortGroup
	// changing are volumes whose unit is just made, replaced or taken away.
	changing map[[16]byte]bool
}

var _ scsi.PortOpener = (*Server)(nil)

// NewServer returns a server without units. It starts no goroutine.
func NewServer() *Server { return NewServerThatWaits(syncWaits{}) }

// NewServerThatWaits is NewServer for a caller that runs the tasks in an order of
// its own.
func NewServerThatWaits(w Waits) *Server {
	return &Server{
		base:     time.Now(),
		waits:    w,
		commands: newCommands(),
		units:    map[[16]byte]*unit{},
		targets:  map[string]map[string][]Mapping{},
		ports:    map[*port]struct{}{},

		unitPorts: map[[16]byte][]scsi.PortGroup{},
		changing:  map[[16]byte]bool{},
	}
}

// now returns nanoseconds since the server began, for latencies.
func (s *Server) now() int64 { return int64(time.Since(s.base)) }

func (s *Server) newTask() *task {
	k, _ := s.tasks.Get().(*task)
	if k == nil {
		k = new(task)
	}
	return k
}

// freeTask gives a task that is in no set back to the pool.
func (s *Server) freeTask(k *task) {
	k.Task.Unit = nil
	k.Task, k.port, k.itl = nil, nil, nil
	k.answer, k.late, k.known = nil, nil, nil
	k.ready, k.told = false, false
	k.stop.Store(false)
	k.state.Store(queued)
	s.tasks.Put(k)
}

// RemoveVolume takes a unit away, out of all views, with its SetUnitPorts;
// initiators find no unit in its place. It returns when no task of it is left:
// those in the volume are waited for. Fails with fault.NotFound, and with
// fault.Busy while the unit is being made or changed.
func (s *Server) RemoveVolume(id [16]byte) error {
	s.mu.Lock()
	u := s.units[id]
	switch {
	case s.changing[id]:
		s.mu.Unlock()
		return fault.New(fault.Busy, "the logical unit of volume %x is just being changed", id)
	case u == nil:
		s.mu.Unlock()
		return fault.New(fault.NotFound, "no logical unit has the volume %x", id)
	}
	s.changing[id] = true
	delete(s.units, id)
	delete(s.unitPorts, id)
	gone, grown := s.remap("")
	s.mu.Unlock()
	defer s.vacate(id)
	u.leaveOthers()
	s.settle(gone, grown)
	u.close()
	return nil
}

// SetView makes a target known, with what each initiator (or Any) sees through
// it. A volume that is no unit yet is seen once it is. It returns when tasks
// that came through mappings that are gone have landed or never can. Fails
// with fault.Invalid for a number out of range or given twice, and changes
// nothing then.
func (s *Server) SetView(target string, view map[string][]Mapping) error {
	copied := make(map[string][]Mapping, len(view))
	for initiator, list := range view {
		seen := map[uint16]bool{}
		for _, m := range list {
			if m.LUN > scsi.LUNMax || seen[m.LUN] {
				return fault.New(fault.Invalid, "LUN %d of %s for %s is out of range or given twice", m.LUN, target, initiator)
			}
			seen[m.LUN] = true
		}
		copied[initiator] = slices.Clone(list)
	}
	s.mu.Lock()
	s.targets[target] = copied
	gone, grown := s.remap(target)
	s.mu.Unlock()
	s.settle(gone, grown)
	return nil
}

// RemoveTarget forgets a target: its nexuses see nothing any more. It returns
// when no task that came through it is left.
func (s *Server) RemoveTarget(target string) error {
	s.mu.Lock()
	if s.targets[target] == nil {
		s.mu.Unlock()
		return fault.New(fault.NotFound, "target %s does not exist", target)
	}
	delete(s.targets, target)
	gone, grown := s.remap(target)
	s.mu.Unlock()
	s.settle(gone, grown)
	return nil
}

// OpenPort implements scsi.PortOpener. The nexus begins with the unit
// attention of a power on, and on a unit that another node may have served
// before with that of its own loss. SAM-5, 6.3.1 and 6.3.4.
func (s *Server) OpenPort(n scsi.Nexus, ev scsi.Events) (scsi.Port, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.targets[n.TargetName] == nil {
		return nil, fault.New(fault.NotFound, "target %s does not exist", n.TargetName)
	}
	p := &port{srv: s, nexus: n, events: ev}
	p.view.Store(&view{})
	s.ports[p] = struct{}{}
	if _, grown := s.look(p); len(grown) == 0 {
		delete(s.ports, p)
		return nil, fault.New(fault.Denied, "no volume of %s is mapped to %s", n.TargetName, n.InitiatorName)
	}
	return p, nil
}

// closePort takes a port out and returns what it saw.
func (s *Server) closePort(p *port) (gone []*itl) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ports, p)
	for _, i := range *p.view.Load() {
		if i != nil {
			gone = append(gone, i)
		}
	}
	p.view.Store(&view{})
	return gone
}

// remap gives every port of a target ("" for all) its present view. It returns
// the I_T_L nexuses that are gone, and those whose port sees something else
// than before. Under mu.
func (s *Server) remap(target string) (gone, changed []*itl) {
	for p := range s.ports {
		if target != "" && p.nexus.TargetName != target {
			continue
		}
		lost, grown := s.look(p)
		gone = append(gone, lost...)
		if len(lost)+len(grown) == 0 {
			continue
		}
		for _, i := range *p.view.Load() {
			if i != nil {
				changed = append(changed, i)
			}
		}
	}
	return gone, changed
}

// settle ends what is gone and tells the rest. Without mu: it waits.
func (s *Server) settle(gone, changed []*itl) {
	for _, i := range gone {
		i.detach()
	}
	attend(changed, lunsChanged)
}

// look gives a port its present view and returns what it has lost and what is
// new to it. An I_T_L nexus stays as long as the number shows the same unit.
// Under mu.
func (s *Server) look(p *port) (lost, grown []*itl) {
	want := map[uint16]Mapping{}
	t := s.targets[p.nexus.TargetName]
	for _, initiator := range []string{Any, p.nexus.InitiatorName} {
		for _, m := range t[initiator] {
			want[m.LUN] = m
		}
	}
	old, next := *p.view.Load(), view{}
	for n, i := range old {
		m, ok := want[uint16(n)]
		switch {
		case i == nil:
		case !ok || s.units[m.Volume] != i.unit || !s.reaches(p, i.unit):
			lost = append(lost, i)
		default:
			next.put(n, i)
			i.protect(m.ReadOnly)
			delete(want, m.LUN)
		}
	}
	for n, m := range want {
		u := s.units[m.Volume]
		if u == nil || !s.reaches(p, u) {
			continue
		}
		i := &itl{
			unit: u, port: p, lun: scsi.MakeLUN(int(n)), readOnly: m.ReadOnly, access: s.groupFor(p, u).State,
			nexus: reserve.Nexus{
				Initiator: p.nexus.InitiatorPort,
				Port:      reserve.Port{Target: p.nexus.TargetName, Tag: p.nexus.TargetPort},
			},
		}
		i.attach()
		grown = append(grown, i)
		next.put(int(n), i)
	}
	p.view.Store(&next)
	return lost, grown
}

// put sets a view's n-th place.
func (v *view) put(n int, i *itl) {
	for len(*v) <= n {
		*v = append(*v, nil)
	}
	(*v)[n] = i
}

// protect changes the mapping's read-only option.
func (i *itl) protect(on bool) {
	u := i.unit
	u.mu.Lock()
	changed := i.readOnly != on
	if changed {
		i.readOnly = on
		u.refresh()
		i.raise(modeChanged)
	}
	u.mu.Unlock()
}

// shows reports whether any initiator's view has the volume.
func shows(view map[string][]Mapping, id [16]byte) bool {
	for _, list := range view {
		if slices.ContainsFunc(list, func(m Mapping) bool { return m.Volume == id }) {
			return true
		}
	}
	return false
}

// Close ends every nexus and unit. It returns when no task is left.
func (s *Server) Close() {
	s.mu.Lock()
	ports := slices.Collect(maps.Keys(s.ports))
	for _, u := range s.units {
		u.leaveOthers()
	}
	s.mu.Unlock()
	for _, p := range ports {
		p.Close()
	}
	s.mu.Lock()
	units := slices.Collect(maps.Values(s.units))
	clear(s.units)
	clear(s.targets)
	s.mu.Unlock()
	for _, u := range units {
		u.close()
	}
}
