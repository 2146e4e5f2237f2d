package initiator

import (
	"context"
	"log/slog"
	"net"
	"time"

	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/scsi"
)

// Config says which disk is opened, by whom and how.
type Config struct {
	// Initiator is our iSCSI name, ISID our part of the session's name. Both
	// must be the same whenever this host opens this disk, and of no other
	// disk of this host at the same target: a login ends the session of the
	// same name, which is what makes it safe to ask again (RFC 7143, 6.3.5).
	Initiator string
	ISID      iscsi.ISID
	Target    string
	LUN       int
	// Portals are host:port, one at least. Portals of one portal group are
	// ways to the same nexus, of which one is used; those of several groups
	// are paths, chosen among by ALUA states.
	Portals []string
	// Auth.In is what we prove by CHAP, Auth.Mutual what the target must.
	Auth iscsi.Auth
	// HeaderDigest and DataDigest demand CRC32C.
	HeaderDigest, DataDigest bool
	// QueueDepth bounds the commands that are sent and not answered, of one
	// path; default 128, at most 1024.
	QueueDepth int
	Times      Times
	Log        *slog.Logger // nil: slog.Default()
	// Dial connects to a portal; nil: TCP without delay.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// Times are the disk's clocks. A zero field takes its default.
type Times struct {
	// Connect bounds one attempt to connect, default 250 ms; the first ones after
	// a loss have less, and each eighth in a row has eight times as long, for
	// links that are slow.
	Connect time.Duration
	// Login bounds one login, default 2 s; the first one after a loss has less,
	// and each that took too long gives the next one twice as much, up to eight
	// times this: a portal may hold a login for a while.
	Login time.Duration
	// Retry is the pause between attempts, default and at most 250 ms. The
	// first attempt after a loss has none, and the next ones less.
	Retry time.Duration
	// Ping is how long a target with commands to answer may be silent before
	// it is asked whether it is there, default 1 s; PingIdle the same for one
	// that owes no answer, default 5 s. Dead is how long it may take to reply
	// before the connection is given up, default 1 s.
	Ping, PingIdle, Dead time.Duration
	// Command is how long a command may take before its session is
	// reinstated, and it is asked again, default 60 s: a target that holds a
	// command for its own reasons loses nothing by being asked again.
	Command time.Duration
	// Missing is how long a unit that is not there is waited for before it
	// is an error, default 60 s: a takeover may explain that much.
	Missing time.Duration
	// Logout is how long Close waits for the target's farewell, default 1 s.
	Logout time.Duration
	// Fence is how long a path may be down and hold up writes in doubt before
	// another path fences it, default 2 s. Only with a reservation.
	Fence time.Duration
}

func (t *Times) setDefaults() {
	def := func(p *time.Duration, v time.Duration) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&t.Connect, 250*time.Millisecond)
	def(&t.Login, 2*time.Second)
	def(&t.Retry, 250*time.Millisecond)
	t.Retry = min(t.Retry, 250*time.Millisecond)
	def(&t.Ping, time.Second)
	def(&t.PingIdle, 5*time.Second)
	def(&t.Dead, time.Second)
	def(&t.Command, time.Minute)
	def(&t.Missing, time.Minute)
	def(&t.Logout, time.Second)
	def(&t.Fence, 2*time.Second)
}

// depthMax bounds QueueDepth: a tag holds the number of a slot.
const depthMax = 1024

// check fills in defaults and refuses what can never be opened.
func (c *Config) check() error {
	var err error
	if c.Initiator, err = iscsi.NormalizeName(c.Initiator); err != nil {
		return fault.Wrap(fault.Invalid, err, "initiator name")
	}
	if c.Target, err = iscsi.NormalizeName(c.Target); err != nil {
		return fault.Wrap(fault.Invalid, err, "target name")
	}
	if err = c.Auth.Check(); err != nil {
		return err
	}
	switch {
	case len(c.Portals) == 0:
		return fault.New(fault.Invalid, "no portal to reach %s by", c.Target)
	case c.LUN < 0 || c.LUN > scsi.LUNMax:
		return fault.New(fault.Invalid, "LUN %d is not between 0 and %d", c.LUN, scsi.LUNMax)
	case c.ISID == iscsi.ISID{}:
		return fault.New(fault.Invalid, "no ISID: give each disk of this host one of its own that stays the same")
	}
	if c.QueueDepth <= 0 {
		c.QueueDepth = 128
	}
	c.QueueDepth = min(c.QueueDepth, depthMax)
	c.Times.setDefaults()
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Dial == nil {
		c.Dial = dial
	}
	return nil
}

// dial connects by TCP. Go's connections have no delay of small segments; the
// system's keep-alives are off, as we ask ourselves, and sooner.
func dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	return d.DialContext(ctx, "tcp", address)
}

// Limits of what we take and offer, in bytes.
const (
	segmentMax = 256 << 10 // of a PDU's data, as the login declares it
	burstMax   = 1 << 20
	firstMax   = 256 << 10
)

// offer returns the values we propose.
func (c *Config) offer() iscsi.Params {
	p := iscsi.DefaultParams()
	p.HeaderDigest, p.DataDigest = c.HeaderDigest, c.DataDigest
	p.InitialR2T = false
	p.MaxBurstLength, p.FirstBurstLength = burstMax, firstMax
	p.MaxOutstandingR2T = 8
	p.MaxRecvLength = segmentMax
	// A session is always reinstated by a new login, for which nothing is to
	// be waited for nor retained. RFC 7143, 6.3.5.
	p.DefaultTime2Wait, p.DefaultTime2Retain = 0, 0
	return p
}
