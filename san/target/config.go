package target

import (
	"log/slog"
	"net"
	"time"

	"steadfast/fault"
	"steadfast/iscsi"
)

// AnyInitiator as an Access's initiator name admits every initiator. It is
// for trials on a loopback portal.
const AnyInitiator = "*"

// Access admits one initiator to a target.
type Access struct {
	Initiator string // iSCSI name, or AnyInitiator
	Auth      iscsi.Auth
}

// Target is one iSCSI target as initiators see it. A target without access
// entries admits nobody.
type Target struct {
	Name  string
	Alias string
	// Groups are the portal group tags it is reachable through. Empty: those of
	// the node's own portals. What is behind an alias portal moves with it, so a
	// target is only there when it lists the alias portal's group.
	Groups []uint16
	Access []Access
}

// Portal is one address to listen on. Portals of one group carry the same tag,
// which is never zero. The tag is the relative target port identifier and part
// of the target port's name (iqn,t,0x1001): reservations go by it, so an alias
// portal has the same tag on every node that it moves between.
type Portal struct {
	Address string // host:port; an empty host means every address
	Group   uint16
	// Alias says that the address moves between nodes: it need not be on this
	// machine, and may be one of those that a portal on every address covers.
	// A group has either alias portals or the node's own. Its logins are held
	// from the start: see Server.HoldLogins.
	Alias bool
}

// Limits bound what initiators can make the server hold. A zero field takes
// its default.
type Limits struct {
	MaxRecvDataSegmentLength int   // bytes, default 262144
	FirstBurstLength         int   // bytes, default 262144
	MaxBurstLength           int   // bytes, default 1 MiB, at most 16 MiB - 1
	MaxOutstandingR2T        int   // per command, default 4
	MaxTransferLength        int   // bytes of one command's data, default 16 MiB
	QueueDepth               int   // commands of one session, default 128
	Immediate                int   // immediate commands of one session, default 16
	Sessions                 int   // in all, default 4096, at most 65535
	SessionsPerAddress       int   // of initiators at one address, default half of Sessions
	DiscoverySessions        int   // in all, default 256
	Memory                   int64 // bytes of data buffers in all, default 1 GiB
	SessionMemory            int64 // bytes of data buffers of one session, default 64 MiB
	HalfOpen                 int   // connections in login, in all, default 2048
	HalfOpenPerAddress       int   // connections in login from one address, held ones too, default 256
	HeldLogins               int   // connections whose login is held, in all, default 2048; they do not count as HalfOpen
}

// Times are the server's clocks. A zero field takes its default; NopInterval
// below zero turns pings off.
type Times struct {
	Login       time.Duration // for a whole login, default 15 s
	NopInterval time.Duration // silence before a ping, or a discovery session's end, default 30 s
	NopTimeout  time.Duration // unanswered ping before the session ends, default 5 min
	// WriteStall is how long a peer may take no byte of what is sent to it
	// before the session ends, default 60 s. While the server is short of
	// memory a byte is not enough, and the data it was asked for must come as
	// well: see session.stalls. A peer that is gone is noticed earlier, by TCP.
	WriteStall time.Duration
	// Logout is how long an initiator is given to follow a logout request
	// before its session is dropped, default 3 s.
	Logout time.Duration
	// LoginHold is how long one login is held before its connection is closed
	// without an answer, default 10 s: less than what initiators give a login
	// (open-iscsi 15 s), so that it is us who end it, and they come back at once.
	LoginHold time.Duration
}

// Config is what a Server starts with.
type Config struct {
	// Discovery is what an initiator must prove for a discovery session.
	Discovery iscsi.Auth
	Limits    Limits
	Times     Times
	Log       *slog.Logger // nil: slog.Default()
	// Closing, if set, is called with a connection that the server is about to
	// end, while its socket is still open: so that the gate of an alias lets the
	// FIN through (aliasio.Holder.Clean). Not for connections that end in
	// silence, see Server.Silence. It must not block.
	Closing func(net.Conn)
	// Sessions, if set, is told of sessions that begin and end; one session's
	// events come in order, those of different sessions at the same time. No lock is held.
	//
	// A session begins when its initiator has proven itself, and the last
	// response of the login waits for this call: an owner that keeps a table of
	// endpoints to tickle after a takeover can have the session in it before
	// the initiator may count on it. A session has ended when its tasks have
	// landed; DropPortalGroup and the like return after this call, so they must
	// not be called from it.
	Sessions func(SessionEvent)
	// Connections is told of each connection to an alias portal, from its first
	// moment to its end: an owner keeps a table of them, to tickle after a
	// takeover whoever was only about to log in, too.
	Connections func(ConnectionEvent)

	// stopped leaves the sessions' clocks to tests.
	stopped bool
}

// maxSessions is how many session handles there are: 16 bits, and not zero.
const maxSessions = 1<<16 - 1

func (l *Limits) setDefaults() {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&l.MaxRecvDataSegmentLength, 262144)
	def(&l.FirstBurstLength, 262144)
	def(&l.MaxBurstLength, 1<<20)
	def(&l.MaxOutstandingR2T, 4)
	def(&l.MaxTransferLength, 16<<20)
	def(&l.QueueDepth, 128)
	def(&l.Immediate, 16)
	def(&l.Sessions, 4096)
	l.Sessions = min(l.Sessions, maxSessions)
	def(&l.SessionsPerAddress, max(1, l.Sessions/2))
	def(&l.DiscoverySessions, 256)
	def(&l.HalfOpen, 2048)
	def(&l.HalfOpenPerAddress, 256)
	def(&l.HeldLogins, 2048)
	if l.Memory <= 0 {
		l.Memory = 1 << 30
	}
	if l.SessionMemory <= 0 {
		l.SessionMemory = 64 << 20
	}
	l.MaxBurstLength = min(l.MaxBurstLength, iscsi.MaxSegmentLength)
	l.MaxRecvDataSegmentLength = min(l.MaxRecvDataSegmentLength, iscsi.MaxSegmentLength)
	l.FirstBurstLength = min(l.FirstBurstLength, l.MaxBurstLength)
	l.MaxOutstandingR2T = min(l.MaxOutstandingR2T, maxR2T)
}

func (t *Times) setDefaults() {
	def := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	def(&t.Login, 15*time.Second)
	def(&t.NopInterval, 30*time.Second)
	def(&t.NopTimeout, 5*time.Minute)
	def(&t.WriteStall, time.Minute)
	def(&t.Logout, 3*time.Second)
	def(&t.LoginHold, 10*time.Second)
}

// own returns the values the target agrees to in a login.
func (l Limits) own() iscsi.Params {
	p := iscsi.DefaultParams()
	p.InitialR2T = false
	p.MaxBurstLength = l.MaxBurstLength
	p.FirstBurstLength = l.FirstBurstLength
	p.MaxOutstandingR2T = l.MaxOutstandingR2T
	p.MaxRecvLength = l.MaxRecvDataSegmentLength
	p.DefaultTime2Retain = 0 // level 0 retains nothing of a lost connection
	p.DefaultTime2Wait = 0   // nor is anything to be waited for: the longer of both sides' counts
	return p
}

// target is a configured target in the server's form.
type target struct {
	Target
	groups map[uint16]bool
	access map[string]iscsi.Auth // by normalised name
}

// newTarget checks and normalises t. Fails with fault.Invalid.
func newTarget(t Target) (*target, error) {
	name, err := iscsi.NormalizeName(t.Name)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "target")
	}
	n := &target{Target: t, groups: make(map[uint16]bool)}
	n.Name = name
	for _, g := range t.Groups {
		if g == 0 {
			return nil, fault.New(fault.Invalid, "target %s: portal group tag 0 is reserved", name)
		}
		n.groups[g] = true
	}
	n.access, err = accessMap(name, t.Access)
	return n, err
}

func accessMap(target string, list []Access) (map[string]iscsi.Auth, error) {
	m := make(map[string]iscsi.Auth, len(list))
	for _, a := range list {
		name := a.Initiator
		if name != AnyInitiator {
			var err error
			if name, err = iscsi.NormalizeName(name); err != nil {
				return nil, fault.Wrap(fault.Invalid, err, "initiator of target "+target)
			}
		}
		if _, twice := m[name]; twice {
			return nil, fault.New(fault.Invalid, "target %s lists initiator %s twice", target, name)
		}
		if err := a.Auth.Check(); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "initiator "+name)
		}
		m[name] = a.Auth
	}
	return m, nil
}

// admits returns what initiator must prove, and whether it is admitted at all.
func (t *target) admits(initiator string) (iscsi.Auth, bool) {
	if a, ok := t.access[initiator]; ok {
		return a, true
	}
	a, ok := t.access[AnyInitiator]
	return a, ok
}

// reachable reports whether the target is offered through a portal.
func (t *target) reachable(p Portal) bool {
	if len(t.groups) == 0 {
		return !p.Alias
	}
	return t.groups[p.Group]
}
