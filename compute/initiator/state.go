package initiator

import (
	"time"

	"steadfast/compute/initiator/nexus"
	"steadfast/scsi"
)

// Counters count since the disk was opened.
type Counters struct {
	Logins         int64 // sessions that began
	Losses         int64 // sessions that ended
	Retries        int64 // commands that were answered, and asked again
	LogoutRequests int64 // sessions that the target asked to end
	NexusLosses    int64 // unit attentions that told of a reset or a lost nexus
	Unknown        int64 // COMPARE AND WRITEs that ended with ErrUnknown
	Fences         int64 // paths that were fenced by another
	Pauses         int64 // times that requests waited for a path
	Paused         time.Duration
}

// Path is one portal group that the disk is, or was, reached by.
type Path struct {
	Group       uint16 // portal group tag
	Portal      string // of the session, or empty
	Up          bool   // it was probed and may be used
	Access      scsi.AccessState
	Preferred   bool
	Barred      bool // our registration does not cover it
	Outstanding int  // commands sent and not answered
	InDoubt     int  // commands that wait for the session to come back
}

// State is how a disk stands.
type State struct {
	Size     int64
	Identity string // of the unit: kind and value of its best designator
	Paths    []Path
	// Portals says what the last attempt by each ended by; nil: it is fine, or
	// another of its group serves.
	Portals map[string]error
	// Waiting is since when requests have waited without a path, or 0.
	Waiting time.Duration
	Pending int
	Counters
}

// State returns how the disk stands.
func (d *Disk) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := State{
		Size: d.Size(), Identity: d.identity, Pending: d.core.Pending(),
		Counters: d.counters, Portals: make(map[string]error),
	}
	for p, err := range d.why {
		if err != nil && err != errTaken { //nolint:errorlint // it is never wrapped
			s.Portals[p] = err
		}
	}
	for _, n := range d.core.Nexuses() {
		p := Path{
			Group: n.Tag, Up: n.Phase == nexus.Up, Access: n.Access, Preferred: n.Preferred,
			Barred: n.Barred, Outstanding: n.Outstanding(), InDoubt: n.InDoubt(),
		}
		if c := d.connOf(n); c != nil {
			p.Portal = c.portal
		}
		s.Paths = append(s.Paths, p)
	}
	if d.paused != 0 {
		s.Waiting = time.Duration(d.now() - d.paused)
		s.Paused += s.Waiting
	}
	return s
}

// watchPause notes when requests begin and cease to wait for a path. Under mu.
func (d *Disk) watchPause() {
	waits := d.core.Pending() > 0 && !d.core.Usable() && !d.closing
	switch {
	case waits && d.paused == 0 && d.unit.Load() != nil:
		d.paused = d.now()
		d.counters.Pauses++
	case !waits && d.paused != 0:
		d.counters.Paused += time.Duration(d.now() - d.paused)
		d.paused = 0
	}
}
