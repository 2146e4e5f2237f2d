// Package initiatortest has a target for tests of an initiator: a RAM disk that
// can drop, delay, reset and lie at every step of the protocol, and that judges
// what it is sent. It keeps the two promises that an initiator stands on, and
// no other: a login ends the session of the same nexus and its tasks before it
// completes, and PREEMPT AND ABORT ends the tasks of whom it preempts. Until
// then a write of a session that is gone may land at any time, late.
package initiatortest

import (
	"crypto/rand"
	"fmt"
	mrand "math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"steadfast/iscsi"
	"steadfast/scsi"
)

// Name is the target's name.
const Name = "iqn.2026-11.test:double"

// Step is a place in the protocol where a fault may strike.
type Step uint8

// The steps.
const (
	Accept Step = iota
	LoginFirst
	LoginLast
	Command  // a command was received, nothing done
	Data     // a Data-Out was received
	R2T      // about to be sent, and so on
	DataIn   //
	Response //
	Ping     // the answer to one
	Farewell // the answer to a logout
	Steps    // how many there are
)

// Fault is what goes wrong.
type Fault uint8

// The faults. Those before Statuses are of the wire, those from Statuses on
// are a command's, and strike at Command only.
const (
	None           Fault = iota
	Drop                 // close the connection
	Reset                // the same, by RST
	Delay                // go on after a moment
	Silence              // receive, and never answer again
	Torn                 // half of the PDU, then close
	Garbage              // random bytes
	BadOpcode            // a PDU that is none
	WrongTag             // of no task
	WrongStatSN          // an old one
	Twice                // the PDU two times
	WrongOffset          // of data, or of what is asked for
	TooLong              // a data segment beyond all bounds
	WrongResidual        // some is said to be missing
	WrongDataSN          //
	WithAHS              // an additional header that no target sends
	BadDigest            // of the header if there are such, else as BadOpcode
	RejectIt             // a Reject of the last PDU received
	AskLogout            // an asynchronous message before it, and so on
	DropSession          //
	DropConnection       //
	Attention            //
	Odd                  // a login status of a target in trouble
	Late                 // a write is taken and lands when it likes; the connection ends
	Statuses             // how many those are; the rest are a command's
	Busy           = iota - 1
	TaskSetFull    //
	UnitAttention  //
	BecomingReady  //
	Transition     //
	AbortedCommand // after it was done, or not
	TaskAborted    // the same
	TargetFailure  // the same, by a SCSI response
	NoUnit         //
	Expelled       // unit attention: registrations preempted
	Faults         // how many there are
)

// Options make a target.
type Options struct {
	Size   int
	Groups []uint16 // portal group tags, one listener each; nil: one, of tag 1
	Params iscsi.Params
	Auth   iscsi.Auth
	// Strike is asked at each step what goes wrong there; nil: nothing. It may
	// be called by several goroutines.
	Strike func(group uint16, s Step) Fault
	Seed   uint64
}

// Target is a running double.
type Target struct {
	o         Options
	listeners map[uint16]net.Listener
	tasks     sync.WaitGroup

	mu       sync.Mutex
	rng      *mrand.Rand
	disk     []byte
	sessions map[uint16]*session // of the one initiator there is, by group
	conns    map[net.Conn]bool
	open     map[*write]bool // writes that were received and can still have an effect unasked
	onceSeen map[string]bool // COMPARE AND WRITEs that may have been performed
	faults   []string        // what the initiator did wrong
	states   map[uint16]scsi.AccessState
	refuse   map[uint16]bool // groups whose logins fail
	keys     map[uint16]uint64
	holder   uint16
	held     uint8 // type of the reservation
	gen      uint32
	noAll    bool // no ALL_TG_PT
	closed   bool
	tsih     uint16

	Commands, Writes, Logins atomic.Int64
	Preempts, Resets         atomic.Int64
}

// write is a write that was received, until it can have no effect any more.
type write struct {
	s     *session
	off   int
	n     int
	apply func() // changes the disk; under mu
	late  bool
}

// session is one nexus's session, and outlives its connection.
type session struct {
	t     *Target
	group uint16
	gone  bool // reinstated, or fenced: nothing of it lands any more
}

// DefaultParams are the values the double agrees to by itself.
func DefaultParams() iscsi.Params {
	p := iscsi.DefaultParams()
	p.InitialR2T = false
	p.MaxBurstLength, p.FirstBurstLength, p.MaxRecvLength = 16<<10, 8<<10, 4<<10
	p.DefaultTime2Wait, p.DefaultTime2Retain = 0, 0
	p.MaxOutstandingR2T = 2
	return p
}

// New starts a target on loopback.
func New(o Options) (*Target, error) {
	if o.Groups == nil {
		o.Groups = []uint16{1}
	}
	if o.Params == (iscsi.Params{}) {
		o.Params = DefaultParams()
	}
	t := &Target{
		o: o, disk: make([]byte, o.Size), rng: mrand.New(mrand.NewPCG(o.Seed, 1)),
		listeners: make(map[uint16]net.Listener), sessions: make(map[uint16]*session),
		conns: make(map[net.Conn]bool), open: make(map[*write]bool), onceSeen: make(map[string]bool),
		states: make(map[uint16]scsi.AccessState), refuse: make(map[uint16]bool), keys: make(map[uint16]uint64),
	}
	for _, g := range o.Groups {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Close()
			return nil, err
		}
		t.listeners[g] = l
		t.tasks.Go(func() { t.accept(l, g) })
	}
	return t, nil
}

// Addr returns a group's address.
func (t *Target) Addr(group uint16) string { return t.listeners[group].Addr().String() }

// Addrs returns all addresses.
func (t *Target) Addrs() (all []string) {
	for _, g := range t.o.Groups {
		all = append(all, t.Addr(g))
	}
	return all
}

// Close ends everything.
func (t *Target) Close() {
	t.mu.Lock()
	t.closed = true
	for _, l := range t.listeners {
		_ = l.Close()
	}
	for c := range t.conns {
		_ = c.Close()
	}
	for w := range t.open {
		delete(t.open, w)
	}
	t.mu.Unlock()
	t.tasks.Wait()
}

// SetAccess changes a group's access state.
func (t *Target) SetAccess(group uint16, s scsi.AccessState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.states[group] = s
}

// Cut ends a group's connection, and with refuse has its logins fail until
// Mend.
func (t *Target) Cut(group uint16, refuse bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refuse[group] = refuse
	for c := range t.conns {
		if c.LocalAddr().String() == t.Addr(group) {
			_ = c.Close()
		}
	}
}

// Refuse has a group's logins fail until Mend.
func (t *Target) Refuse(group uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refuse[group] = true
}

// Mend lets logins of a group in again.
func (t *Target) Mend(group uint16) { t.Cut(group, false) }

// ForgetAllPorts has the target refuse ALL_TG_PT.
func (t *Target) ForgetAllPorts() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noAll = true
}

// Resize changes the size, in bytes; it grows.
func (t *Target) Resize(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.disk = append(t.disk, make([]byte, n-len(t.disk))...)
}

// Peek returns a copy of what the disk holds.
func (t *Target) Peek(off, n int) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.disk[off:off+n]...)
}

// Poke changes the disk, as another initiator would.
func (t *Target) Poke(off int, p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	copy(t.disk[off:], p)
}

// SetKey registers another initiator's key under a group that does not exist.
func (t *Target) SetKey(as uint16, key uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys[as] = key
}

// Keys returns the registrations by group.
func (t *Target) Keys() map[uint16]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := make(map[uint16]uint64)
	for g, k := range t.keys {
		m[g] = k
	}
	return m
}

// Faults returns what the initiator did wrong.
func (t *Target) Faults() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.faults...)
}

// accuse notes what the initiator did wrong. Under mu.
func (t *Target) accuse(format string, args ...any) {
	if len(t.faults) < 20 {
		t.faults = append(t.faults, fmt.Sprintf(format, args...))
	}
}

func (t *Target) chance(n int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rng.IntN(n) == 0
}

func (t *Target) strike(group uint16, s Step) Fault {
	if t.o.Strike == nil {
		return None
	}
	return t.o.Strike(group, s)
}

func (t *Target) accept(l net.Listener, group uint16) {
	for {
		sock, err := l.Accept()
		if err != nil {
			return
		}
		t.mu.Lock()
		if t.closed {
			t.mu.Unlock()
			_ = sock.Close()
			return
		}
		t.conns[sock] = true
		t.mu.Unlock()
		t.tasks.Go(func() {
			c := &conn{t: t, sock: sock, group: group, tasks: make(map[uint32]*task)}
			c.serve()
			_ = sock.Close()
			t.mu.Lock()
			delete(t.conns, sock)
			c.end()
			t.mu.Unlock()
		})
	}
}

// policy admits everyone who proves what Auth asks.
type policy struct{ c *conn }

func (p policy) Admit(id iscsi.Identity) (iscsi.Auth, iscsi.LoginStatus) {
	if !id.Discovery && id.TargetName != Name {
		return iscsi.Auth{}, iscsi.LoginNotFound
	}
	return p.c.t.o.Auth, iscsi.LoginSuccess
}

// Enter reinstates: what is left of the nexus's last session ends now, before
// the login completes; some of it lands first.
func (p policy) Enter(id iscsi.Identity, _ iscsi.Params) (uint16, iscsi.LoginStatus) {
	t := p.c.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if id.Discovery {
		return 1, iscsi.LoginSuccess
	}
	if old := t.sessions[p.c.group]; old != nil {
		t.endSession(old)
	}
	p.c.s = &session{t: t, group: p.c.group}
	t.sessions[p.c.group] = p.c.s
	t.Logins.Add(1)
	t.tsih++
	return max(1, t.tsih), iscsi.LoginSuccess
}

func (policy) Random(p []byte) { _, _ = rand.Read(p) }

// endSession ends a session's tasks: each lands now, or never. Under mu.
func (t *Target) endSession(s *session) {
	for w := range t.open {
		if w.s != s {
			continue
		}
		if w.apply != nil && t.rng.IntN(2) == 0 {
			w.apply()
		}
		delete(t.open, w)
	}
	s.gone = true
}

// begin notes a write that was received, and accuses the initiator if another
// that overlaps it is not over. Under mu.
func (t *Target) begin(s *session, off, n int) *write {
	for w := range t.open {
		if off < w.off+w.n && w.off < off+n {
			t.accuse("write of %d bytes at %d by group %d, while one of %d at %d by group %d can still land (late: %v)",
				n, off, s.group, w.n, w.off, w.s.group, w.late)
		}
	}
	w := &write{s: s, off: off, n: n}
	t.open[w] = true
	return w
}

// lateMax bounds how late a write lands.
const lateMax = 60 * time.Millisecond

// leave makes w one that lands when it likes, if its session is not
// reinstated before.
func (t *Target) leave(w *write, apply func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || w.s.gone {
		delete(t.open, w)
		return
	}
	w.late, w.apply = true, apply
	wait := time.Duration(t.rng.Int64N(int64(lateMax)))
	t.tasks.Go(func() {
		time.Sleep(wait) // not to synchronise: this is how late it is
		t.mu.Lock()
		defer t.mu.Unlock()
		// It stays open: the initiator cannot know that it landed.
		if t.open[w] && w.apply != nil {
			w.apply()
			w.apply = nil
		}
	})
}
