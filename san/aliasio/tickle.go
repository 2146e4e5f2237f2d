package aliasio

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/fault"
	"steadfast/san/alias"
)

// tickler sends whole IP packets: through the gate, unlike a packet socket.
type tickler struct{ fd4, fd6 int }

// openTickler opens the raw sockets. They receive nothing: IPPROTO_RAW is for
// sending only. The gate drops a FIN without the mark.
func openTickler(o Options) (t tickler, err error) {
	t = tickler{-1, -1}
	const kind = unix.SOCK_RAW | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	mark := func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(o.MarkClean)) }
	err = inside(o.Namespace, func() error {
		if t.fd4, err = unix.Socket(unix.AF_INET, kind, unix.IPPROTO_RAW); err != nil {
			t.fd4 = -1
			return err
		}
		t.fd6, err = unix.Socket(unix.AF_INET6, kind, unix.IPPROTO_RAW)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			t.fd6 = -1 // a kernel without IPv6 has no such alias either
			return mark(t.fd4)
		}
		if err != nil {
			t.fd6 = -1
			return err
		}
		return errors.Join(mark(t.fd4), mark(t.fd6))
	})
	return t, explain(err, "open a raw socket")
}

func (t tickler) close() error {
	var errs []error
	for _, fd := range [2]int{t.fd4, t.fd6} {
		if fd > 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// send sends the n-th tickle of a session.
func (t tickler) send(s Session, try int) error {
	from, to := s.Alias, s.Client
	if from.Addr().Is4() {
		packet := alias.Tickle4(from.Addr().As4(), to.Addr().As4(), from.Port(), to.Port(), try)
		return unix.Sendto(t.fd4, packet, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: to.Addr().As4()})
	}
	packet := alias.Tickle6(from.Addr().As16(), to.Addr().As16(), from.Port(), to.Port(), try)
	return unix.Sendto(t.fd6, packet, unix.MSG_DONTWAIT, &unix.SockaddrInet6{Addr: to.Addr().As16()})
}

// Tickle makes the clients of sessions give up connections that the alias's
// former owner had. The aliases must be held here. It sends as often as
// Options.Tickle says, and returns after that or with ctx. A session that has
// come back with the same ports is not disturbed: its kernel answers as TCP
// does, and ours knows the connection.
//
// It returns the first failure, after having tried for all: one unreachable
// client is no reason to leave the others waiting. Fenced means that the gate is
// shut.
func (h *Holder) Tickle(ctx context.Context, sessions []Session) error {
	for _, s := range sessions {
		if !s.Alias.IsValid() || !s.Client.IsValid() || s.Alias.Addr().Is4() != s.Client.Addr().Is4() {
			return fault.New(fault.Invalid, "no session: %v with %v", s.Alias, s.Client)
		}
	}
	var first error
	start := time.Now()
	for try, at := range h.options.Tickle {
		if wait := time.Until(start.Add(at)); wait > 0 {
			select {
			case <-ctx.Done():
				return errors.Join(first, fault.Wrap(fault.Canceled, ctx.Err(), "tickle"))
			case <-time.After(wait):
			}
		}
		if err := h.tickleAll(sessions, try); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// tickleAll sends one tickle to each session whose alias is held.
func (h *Holder) tickleAll(sessions []Session, try int) error {
	var first error
	for _, s := range sessions {
		if err := h.tickleOne(s, try); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// tickleOne holds the lock for one packet: Refresh of other aliases goes in between.
func (h *Holder) tickleOne(s Session, try int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := h.find(s.Alias.Addr()); err != nil {
		return err
	}
	err := h.tickler.send(s, try)
	if errors.Is(err, unix.EPERM) {
		return fault.New(fault.Fenced, "tickle %v: the gate of %v is shut: hold it first (%w)", s.Client, s.Alias.Addr(), err)
	}
	return explain(err, "tickle "+s.Client.String())
}
