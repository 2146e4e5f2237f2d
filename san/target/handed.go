package target

import (
	"net"

	"steadfast/fault"
)

// An alias portal may be another process's: where a node may not take addresses
// (without root), the process that holds them accepts the connections and hands
// them over. The portal group then has no portal here, and each connection brings
// its own: the address that it came to.

// Admits reports whether a portal group was told to admit logins (AdmitLogins)
// and not to hold them since: whether connections that are handed over are taken.
func (srv *Server) Admits(group uint16) bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return !srv.closed && srv.admits(group)
}

// admits is Admits under srv.mu. Unlike a group with portals, one that was told
// nothing does not: nobody has said that it is served here.
func (srv *Server) admits(group uint16) bool {
	return srv.holds[group] != nil && !srv.isHeld(group)
}

// Adopt takes in a connection that another process accepted at an alias of a
// portal group; from then on it is as one that came in by an alias portal: held
// by HoldLogins, ended by Silence and DropPortalGroup, and told, in SendTargets,
// the address that it came to. Fails with fault.Fenced while the group is not
// admitted: who handed the connection over takes it to where it is; with
// fault.Limit when too many logins are under way, fault.Invalid for a
// connection without a descriptor, and fault.Canceled after Close. The
// connection is the caller's then.
func (srv *Server) Adopt(conn net.Conn, group uint16) error {
	local := conn.LocalAddr()
	p := &portal{
		listening: listening{Portal: Portal{Address: local.String(), Group: group, Alias: true}, bound: local},
		at:        addrPortOf(local),
	}
	if group == 0 || !p.at.IsValid() || p.at.Addr().IsUnspecified() {
		return fault.New(fault.Invalid, "no connection of an alias: %v in group %d", local, group)
	}
	s, err := srv.adopt(p, conn)
	if err != nil {
		return err
	}
	go srv.serve(s)
	return nil
}

// adopt enters the connection as one in login, and only then looks whether the
// group is admitted: so either Silence sees the connection, or this sees the hold.
func (srv *Server) adopt(p *portal, conn net.Conn) (*session, error) {
	s, err := srv.admitHalfOpen(p, conn)
	srv.mu.Lock()
	defer srv.mu.Unlock()
	switch {
	case srv.closed:
		err = fault.New(fault.Canceled, "the iSCSI server is closed")
	case !srv.admits(p.Group):
		err = fault.New(fault.Fenced, "portal group %d is not served here now", p.Group)
	case err != nil:
		err = fault.Wrap(fault.Limit, err, "a connection that was handed over")
	}
	if err != nil && s != nil {
		srv.leaveLogin(s)
		close(s.gone) // who has listed it waits for that
		srv.tasks.Done()
	}
	return s, err
}
