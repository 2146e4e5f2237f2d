package target

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"steadfast/fault"
	"steadfast/iscsi"
)

// AddTarget makes a target known. Fails with fault.Invalid and fault.Exists.
func (srv *Server) AddTarget(t Target) error {
	n, err := newTarget(t)
	if err != nil {
		return err
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.targets[n.Name] != nil {
		return fault.New(fault.Exists, "target %s exists already", n.Name)
	}
	srv.targets[n.Name] = n
	return nil
}

// RemoveTarget ends a target: no login reaches it any more, its initiators
// are asked to log out, and dropped when they do not within the logout time
// or before ctx ends. When it returns, every task of its sessions has landed.
// Fails with fault.NotFound.
func (srv *Server) RemoveTarget(ctx context.Context, name string) error {
	srv.mu.Lock()
	t := srv.find(name)
	if t == nil {
		srv.mu.Unlock()
		return fault.New(fault.NotFound, "target %s does not exist", name)
	}
	delete(srv.targets, t.Name)
	list := srv.all(func(s *session) bool { return s.id.TargetName == t.Name && !s.id.Discovery })
	srv.mu.Unlock()
	srv.askOut(ctx, list, "target removed")
	return nil
}

// find returns a target by its name in any case. Under srv.mu.
func (srv *Server) find(name string) *target {
	n, err := iscsi.NormalizeName(name)
	if err != nil {
		return nil
	}
	return srv.targets[n]
}

// SetAccess replaces a target's access list. Sessions of initiators that are
// no longer on it are dropped, and their tasks have landed when SetAccess
// returns; those whose secret changed stay until they log in again. Fails
// with fault.NotFound and fault.Invalid.
func (srv *Server) SetAccess(name string, list []Access) error {
	srv.mu.Lock()
	t := srv.find(name)
	if t == nil {
		srv.mu.Unlock()
		return fault.New(fault.NotFound, "target %s does not exist", name)
	}
	access, err := accessMap(t.Name, list)
	if err != nil {
		srv.mu.Unlock()
		return err
	}
	n := *t
	n.access, n.Access = access, list
	srv.targets[t.Name] = &n
	drop := srv.all(func(s *session) bool {
		_, ok := n.admits(s.id.InitiatorName)
		return s.id.TargetName == n.Name && !s.id.Discovery && !ok
	})
	srv.mu.Unlock()
	for _, s := range drop {
		s.drop("access withdrawn")
	}
	for _, s := range drop {
		<-s.gone
	}
	return nil
}

// SetDiscovery replaces what an initiator must prove for a discovery session.
// Fails with fault.Invalid.
func (srv *Server) SetDiscovery(a iscsi.Auth) error {
	if err := a.Check(); err != nil {
		return fault.Wrap(fault.Invalid, err, "discovery")
	}
	srv.mu.Lock()
	srv.discovery = a
	srv.mu.Unlock()
	return nil
}

// Targets returns the names of all targets, sorted.
func (srv *Server) Targets() []string {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	names := make([]string, 0, len(srv.targets))
	for n := range srv.targets {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Session is what is known of a session.
type Session struct {
	TSIH           uint16 // its handle: DropSession takes it
	ISID           iscsi.ISID
	Initiator      string
	InitiatorAlias string
	Target         string         // empty: a discovery session
	Portal         string         // the address it came in by
	Group          uint16         // that portal's group tag
	Address        string         // the initiator's address and port
	Local          netip.AddrPort // what Portal and Address say, to reckon with
	Remote         netip.AddrPort
	Since          time.Time
	BytesIn        uint64 // received from the initiator, with headers
	BytesOut       uint64
	Commands       uint64 // SCSI commands
	Outstanding    int    // commands not answered yet
	Memory         int64  // bytes of data buffers held
	HeaderDigest   bool
	DataDigest     bool
}

// Sessions lists the sessions, by TSIH.
func (srv *Server) Sessions() []Session {
	srv.mu.Lock()
	all := srv.all(nil)
	srv.mu.Unlock()
	list := make([]Session, 0, len(all))
	for _, s := range all {
		s.mu.Lock()
		outstanding := s.outstanding + s.immediates
		s.mu.Unlock()
		list = append(list, Session{
			TSIH: s.tsih, ISID: s.id.ISID, Initiator: s.id.InitiatorName, InitiatorAlias: s.id.InitiatorAlias,
			Target: s.id.TargetName, Portal: s.conn.LocalAddr().String(), Group: s.portal.Group,
			Address: s.conn.RemoteAddr().String(), Local: s.local, Remote: s.peer, Since: s.since,
			BytesIn: s.bytesIn.Load(), BytesOut: s.bytesOut.Load(), Commands: s.commands.Load(),
			Outstanding: outstanding, Memory: s.memory.used.Load(),
			HeaderDigest: s.params.HeaderDigest, DataDigest: s.params.DataDigest,
		})
	}
	slices.SortFunc(list, func(a, b Session) int { return cmp.Compare(a.TSIH, b.TSIH) })
	return list
}

// DropSession ends a session at once; when it returns, its tasks have landed.
// Fails with fault.NotFound.
func (srv *Server) DropSession(tsih uint16) error {
	srv.mu.Lock()
	s := srv.sessions[tsih]
	srv.mu.Unlock()
	if s == nil {
		return fault.New(fault.NotFound, "session %d does not exist", tsih)
	}
	s.drop("dropped by the administrator")
	<-s.gone
	return nil
}

// Stats are the server's counters since its start.
type Stats struct {
	Sessions     int
	HalfOpen     int    // connections in login, with those held
	Held         int    // connections whose login is held
	FailedLogins uint64 // logins refused
	Refused      uint64 // connections closed because too many were in login
	Memory       int64  // bytes of data buffers held
	Waiting      int    // commands that wait for memory
}

// Stats returns the counters.
func (srv *Server) Stats() Stats {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return Stats{
		Sessions: len(srv.sessions), HalfOpen: srv.halfOpen + srv.held, Held: srv.held, FailedLogins: srv.failedLogins.Load(),
		Refused: srv.refused.Load(), Memory: srv.budget.used.Load(), Waiting: int(srv.budget.waiters.Load()),
	}
}
