package netswitch

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"steadfast/fault"
)

// Times of an Uplink that is not let in: it tries again after attachPauseMin, and each time
// after twice as long, up to attachPauseMax.
const (
	attachPauseMin = 50 * time.Millisecond
	attachPauseMax = time.Second
)

// UplinkOptions say where an Uplink attaches.
type UplinkOptions struct {
	// Socket is the switch's unix socket, or else TCP its address.
	Socket, TCP string
	Hello       Hello
	// Log takes what is worth telling; nil for nothing.
	Log *slog.Logger
}

// UplinkState is how an Uplink does.
type UplinkState struct {
	Attached bool
	// MTU is the switch's as it said last, in bytes; 0 if it never did.
	MTU int
	// Attachments counts how often it was let in.
	Attachments uint64
	// Up are frames to the switch, Down those to the wire; Dropped went neither way, for want
	// of a switch or of a wire.
	Up, Down, Dropped uint64
	// Err is why it is not attached, as the last attempt had it.
	Err error
}

// Uplink attaches a machine's network card to a switch, for as long as it is open: a switch
// that ends is attached to again when it is back. Its methods may be called by several
// goroutines.
type Uplink struct {
	o      UplinkOptions
	log    *slog.Logger
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	up, down, dropped, attachments atomic.Uint64
	link                           atomic.Pointer[link] // to the switch, if it is attached
	writing                        sync.Mutex           // is held by who writes to the link
	joint                          joint

	mu  sync.Mutex
	mtu int
	err error
}

// NewUplink attaches to a switch; it does not wait for that. Close is to follow. Fails with
// fault.Invalid.
func NewUplink(o UplinkOptions) (*Uplink, error) {
	if (o.Socket == "") == (o.TCP == "") {
		return nil, fault.New(fault.Invalid, "an uplink attaches at a switch's socket, or over TCP")
	}
	if err := o.Hello.check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	u := &Uplink{o: o, log: o.Log, cancel: cancel}
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	u.log = u.log.With(slog.String("port", o.Hello.Port))
	u.tasks.Go(func() { u.run(ctx) })
	return u, nil
}

// run attaches, and does so again each time that the switch has ended.
func (u *Uplink) run(ctx context.Context) {
	pause := attachPauseMin
	for {
		network, address := "unixpacket", u.o.Socket
		if address == "" {
			network, address = "tcp", u.o.TCP
		}
		l, c, mtu, err := attach(ctx, network, address, u.o.Hello)
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close() // nobody knew of it
			}
			return
		}
		if err == nil {
			pause = attachPauseMin
			u.note(mtu, nil)
			u.attachments.Add(1)
			u.log.Info("attached to the switch")
			err = u.attached(ctx, l)
		}
		if ctx.Err() != nil {
			return
		}
		u.note(0, err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, attachPauseMax)
	}
}

// note keeps how an attempt went, and tells people when that is new.
func (u *Uplink) note(mtu int, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err != nil && (u.err == nil || u.err.Error() != err.Error()) {
		u.log.Warn("not attached to the switch; trying again until it is back", slog.Any("error", err))
	}
	u.err = err
	if mtu != 0 {
		u.mtu = mtu
	}
}

// attached brings frames from the switch to the wire until the switch has ended, and says how.
func (u *Uplink) attached(ctx context.Context, l link) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	u.link.Store(&l)
	defer func() {
		u.link.Store(nil)
		_ = l.Close() // it has ended
	}()
	b := make([]byte, messageMax+1)
	for {
		n, err := l.read(b)
		if errors.Is(err, io.EOF) {
			return fault.New(fault.Unreachable, "the switch has ended")
		}
		if err != nil {
			return fault.Wrap(fault.Unreachable, err, "the switch has ended")
		}
		// A machine that takes frames slowly has this wait, and so its own port's queue at
		// the switch fill.
		if n > messageMax || !u.joint.down(b[:n]) {
			u.dropped.Add(1)
			continue
		}
		u.down.Add(1)
	}
}

// Join carries frames between the switch and a machine at the other end of wire, whose reads
// and writes are one frame each: vmm.Process.Wires has such. It returns when either ends, and
// closes wire: nil if the machine's end was closed, or the Uplink. One wire is joined at a
// time; a second one takes the place of the first.
func (u *Uplink) Join(wire net.Conn) error { return u.joint.join(wire, u.Send) }

// Send sends a frame to the switch beside the machine's own: an announcement
// (bridge.Announcement) that the machine is here now. It waits for the switch to take it;
// without a switch it is dropped.
func (u *Uplink) Send(frame []byte) {
	l := u.link.Load()
	if l == nil || len(frame) > messageMax {
		u.dropped.Add(1)
		return
	}
	u.writing.Lock()
	err := (*l).write(frame)
	u.writing.Unlock()
	if err != nil {
		u.dropped.Add(1) // it has ended, which run notices
		return
	}
	u.up.Add(1)
}

// State tells how it does.
func (u *Uplink) State() UplinkState {
	u.mu.Lock()
	defer u.mu.Unlock()
	return UplinkState{
		Attached: u.link.Load() != nil, MTU: u.mtu, Attachments: u.attachments.Load(),
		Up: u.up.Load(), Down: u.down.Load(), Dropped: u.dropped.Load(), Err: u.err,
	}
}

// Close detaches, ends what is joined, and returns when nothing of it runs.
func (u *Uplink) Close() error {
	u.joint.close()
	u.cancel()
	u.tasks.Wait()
	u.joint.tasks.Wait()
	return nil
}
