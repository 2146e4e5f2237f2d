package host

import (
	"context"
	"log/slog"
	"net"
	"time"

	"steadfast/block"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/compute/initiator"
	"steadfast/compute/lockstep"
	"steadfast/fault"
	"steadfast/iscsi"
)

// Member is this host's part in the quorum: quorumio.Member is one.
type Member interface {
	quorumio.Editor
	// Watch calls f with the present state and each new one, or the newest of several, until
	// stop.
	Watch(f func(*quorum.State)) (stop func())
}

// Volume is one volume of a machine, on a nexus of its own: initiator.Disk is one.
type Volume interface {
	block.Device
	// The reservations; see initiator.Disk for what they do and how they fail.
	Register(ctx context.Context, key uint64) error
	Reserve(ctx context.Context, kind uint8) error
	PreemptAbort(ctx context.Context, kind uint8, victim uint64) error
	ReadKeys(ctx context.Context) ([]uint64, error)
	ReadReservation(ctx context.Context) (initiator.Reservation, error)
	// State tells of the paths.
	State() initiator.State
	// Close ends what waits (fault.Canceled), and may be called while that does. What was
	// sent may land still.
	Close() error
}

// At names a volume.
type At struct{ Group, Volume string }

// OpenFunc opens a volume on a new nexus of this ISID. Fails with fault.Unreachable or fault.Busy for
// what may be tried again, and else for good.
type OpenFunc func(ctx context.Context, at At, isid iscsi.ISID) (Volume, error)

// Initiators opens volumes by iSCSI. find says how each is reached: all of a Config but its
// ISID.
func Initiators(find func(ctx context.Context, at At) (initiator.Config, error)) OpenFunc {
	return func(ctx context.Context, at At, isid iscsi.ISID) (Volume, error) {
		cfg, err := find(ctx, at)
		if err != nil {
			return nil, err
		}
		cfg.ISID = isid
		d, err := initiator.Open(ctx, cfg)
		if err != nil {
			return nil, err // not a nil *Disk in a Volume
		}
		return d, nil
	}
}

// Wire is where a network card is attached: netswitch.Uplink and Tap and usernet.Network are such.
type Wire interface {
	// Join carries frames between the network and a socket whose reads and writes are one
	// frame each, until either ends.
	Join(wire net.Conn) error
	Close() error
}

// Attachment is a network card's place on its network.
type Attachment struct {
	Wire Wire
	MTU  uint16 // 0 for 1500
}

// Event is something that people are told.
type Event struct {
	// Type is a stable name, Machine the one that it is about, or empty.
	Type, Machine string
	// Trouble tells that somebody should look.
	Trouble bool
	Text    string
}

// Types of events.
const (
	EventHostUp   = "host-up"   // a life of this host has begun
	EventHostOver = "host-over" // it was declared lost, and its machines were ended
	EventWaits    = "machine-waits"
	EventStarted  = "machine-started"
	EventAgain    = "machine-restarted" // its guest restarts, or was reset
	EventEnded    = "machine-ended"
	EventFenced   = "machine-fenced" // another host has taken it over
	EventFull     = "machine-paused"
	EventRoom     = "machine-resumed"
	EventConsole  = "machine-console"
	EventNetwork  = "machine-network"
	// Of a machine on two hosts.
	EventProtected   = "machine-protected"
	EventUnprotected = "machine-unprotected"
	EventDiverged    = "machine-diverged"
	EventTookOver    = "machine-took-over"
)

// Options are what a host is made with.
type Options struct {
	// Name is this host's in the inventory.
	Name   string
	Member Member
	// Boot is the number of the member's life, which the names of this host's lives begin
	// with: who has heard of a later one knows that this is over.
	Boot quorum.Boot
	// Program and Build say what this program is; Memory (bytes) and CPUs are for machines.
	Program, Build string
	Memory         uint64
	CPUs           int
	// Box names what this host shares with whatever dies with it; empty: it is not known.
	Box string
	// Private are networks that live in this process, and end with it.
	Private []string
	// Open opens volumes.
	Open OpenFunc
	// Attach attaches a network card of a machine, for as long as it runs.
	Attach func(ctx context.Context, machine string, card int, n inventory.Net) (Attachment, error)
	// Dial connects to another host's Accept, by ProtoLockstep, for one of a pair's links. Both ends
	// have proven then who they are. nil: no machine of this host has a secondary.
	Dial func(ctx context.Context, host string, link lockstep.Link) (net.Conn, error)
	// Consoles is a folder for the machines' console logs, NAME.log; Temp one for what they
	// boot from, which nobody else sees, and nothing is left in.
	Consoles, Temp string
	// Kept is a folder for the state and the log of machines that were found to be others than
	// the other ones of their pairs; empty: nothing is kept.
	Kept string
	Log  *slog.Logger // nil: nothing
	// Event is told what happens; it must not wait. nil: nobody.
	Event func(Event)
	Times Times
}

// Times are the host's clocks. A zero field takes its default.
type Times struct {
	// Check is how often a lock is looked at, default 1 s.
	Check time.Duration
	// Grace is how long a guest has to power off once its button was pressed, default 60 s;
	// Force how long its process has to end it then, default 5 s.
	Grace, Force time.Duration
	// Press is how often the button is pressed until then, default 5 s: a guest that begins
	// takes a press in before it has anybody who would act on it.
	Press time.Duration
	// Drain is how long what a machine that ended has asked of its disks, and then giving its
	// lock back, may take, default 10 s.
	Drain time.Duration
	// Try is how long one attempt to open a volume may take, default 10 s; Retry the pause
	// before the next attempt at anything, default 1 s.
	Try, Retry time.Duration
	// Pair is how long the beginning of a pair may take until both processes have their links,
	// default 20 s; Links how long a secondary waits for its own, default 1 min.
	Pair, Links time.Duration
	// Edit is how long the quorum may take to decide, default 5 s.
	Edit time.Duration
	// Repeat is how often people are told of the same thing that a machine does again and
	// again, default 1 min.
	Repeat time.Duration
}

func (t *Times) setDefaults() {
	for _, d := range []struct {
		p *time.Duration
		v time.Duration
	}{
		{&t.Check, time.Second},
		{&t.Grace, time.Minute},
		{&t.Force, 5 * time.Second},
		{&t.Press, 5 * time.Second},
		{&t.Drain, 10 * time.Second},
		{&t.Try, 10 * time.Second},
		{&t.Retry, time.Second},
		{&t.Pair, 20 * time.Second},
		{&t.Links, time.Minute},
		{&t.Edit, 5 * time.Second},
		{&t.Repeat, time.Minute},
	} {
		if *d.p <= 0 {
			*d.p = d.v
		}
	}
}

func (o *Options) check() error {
	if o.Name == "" || o.Member == nil || o.Boot == 0 || o.Open == nil || o.Consoles == "" || o.Temp == "" {
		return fault.New(fault.Invalid, "a host needs a name, a member of the quorum and its life, a way to volumes, and folders for consoles and for what machines boot from")
	}
	o.Times.setDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Event == nil {
		o.Event = func(Event) {}
	}
	if o.Dial == nil {
		o.Dial = func(_ context.Context, host string, _ lockstep.Link) (net.Conn, error) {
			return nil, fault.New(fault.Invalid, "this host has no way to the host %s", host)
		}
	}
	if o.Attach == nil {
		o.Attach = func(_ context.Context, _ string, _ int, n inventory.Net) (Attachment, error) {
			return Attachment{}, fault.New(fault.NotFound, "this host has no network %q; name it in the host's configuration", n.Network)
		}
	}
	return nil
}
