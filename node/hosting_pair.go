package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/identity"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/host"
	"steadfast/compute/lockstep"
	"steadfast/fault"
)

// Times of the links between a machine's two hosts.
const (
	// loggingTime is how long a host's logging link may take to connect before its management
	// link carries the log as well.
	loggingTime = time.Second
	// loggingRetry is between two attempts to listen at it.
	loggingRetry = 5 * time.Second
)

// dialPair is host.Options.Dial: the log goes over the other host's logging link, if it has one
// that answers, and all else as between any members.
func (l *loggingLink) dialPair(ctx context.Context, to string, link lockstep.Link) (net.Conn, error) {
	c := l.c
	var failed error
	if address := loggingOf(c.member.State(), to); link == lockstep.Logging && address != "" {
		try, cancel := context.WithTimeout(ctx, loggingTime)
		conn, err := c.member.DialAt(try, quorum.Member(to), address, host.ProtoLockstep)
		cancel()
		if err == nil {
			return conn, nil
		}
		failed = err
	}
	conn, err := c.member.Dial(ctx, quorum.Member(to), host.ProtoLockstep)
	if err != nil {
		return nil, err // not a nil *tls.Conn in a net.Conn
	}
	if failed != nil {
		l.n.log.Warn("the logging link does not answer; the log goes over the management link", "host", to, "error", failed)
	}
	return conn, nil
}

// loggingOf is where a host listens for logs; empty: where it listens for all.
func loggingOf(state *quorum.State, name string) string {
	v, _ := inventory.Read(state.Inventory.Entries) // what cannot be read is not used
	if h := v.Hosts[name]; h != nil && h.Links.Logging != h.Links.Management {
		return h.Links.Logging
	}
	return ""
}

// servePair answers host.ProtoLockstep.
func (n *Node) servePair(conn *tls.Conn, from identity.Peer) {
	h, err := n.hosted()
	if err != nil {
		return // it is closed, which tells enough
	}
	h.Accept(conn, string(from.Name))
}

// loggingLink has a host listen at its logging link, for as long as the inventory says that it
// has one.
type loggingLink struct {
	n     *Node
	c     *cluster
	wakes chan struct{} // has room for one
}

func (l *loggingLink) wake() {
	select {
	case l.wakes <- struct{}{}:
	default: // it looks at the newest
	}
}

func (l *loggingLink) run(ctx context.Context) {
	listens, told := "", ""
	for {
		var retry <-chan time.Time
		want := loggingOf(l.c.member.State(), string(l.c.member.Self().Member))
		if want != listens && listens != "" {
			l.c.member.Unlisten(listens)
			listens = ""
		}
		if want != "" && want != listens {
			err := l.c.member.Listen(want)
			if err == nil {
				listens, told = want, ""
			} else {
				retry = time.After(loggingRetry)
				if told != want && !fault.Is(err, fault.Canceled) {
					told = want
					l.n.events.publish(&steadfastv1.Event{
						Severity: severityWarning, Kind: "logging-link",
						Text: fmt.Sprintf("this host cannot listen at its logging link %s, and takes logs at its management link: %v; give it another: \"steadfast host set %s --logging ADDRESS\"", want, err, l.c.member.Self().Member),
					})
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-l.wakes:
		case <-retry:
		}
	}
}
