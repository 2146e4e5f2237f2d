package ha

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"io"
	"time"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

// Of a mirror link's beginning.
const (
	helloVersion  = 1
	helloBytesMax = 4096
	helloTime     = 5 * time.Second
	dialTime      = 2 * time.Second
)

// Pauses between attempts to connect.
const (
	redialMin = 20 * time.Millisecond
	redialMax = time.Second
)

// hello is what either side of a mirror link says first: two bytes of length,
// big-endian, and JSON.
type hello struct {
	Version int         `json:"version"`
	Group   string      `json:"group"`
	Boot    quorum.Boot `json:"boot"`
	Refused string      `json:"refused,omitempty"`
}

func writeHello(w io.Writer, h hello) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

func readHello(r io.Reader) (h hello, err error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return h, err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > helloBytesMax {
		return h, fault.New(fault.Invalid, "a hello of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return h, err
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fault.Wrap(fault.Invalid, err, "a hello")
	}
	if h.Version != helloVersion {
		return h, fault.New(fault.Invalid, "the other node speaks version %d of the mirror link, this one %d: bring both to the same release", h.Version, helloVersion)
	}
	return h, nil
}

// serveMirror answers who dialled.
func (gs *Groups) serveMirror(conn *tls.Conn, from quorum.Member) error {
	if err := conn.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return err
	}
	h, err := readHello(conn)
	if err != nil {
		return err
	}
	answer := hello{Version: helloVersion, Group: h.Group, Boot: gs.cfg.Member.Self().Boot}
	g, err := gs.Group(h.Group)
	if err == nil && g.Spec().Other(gs.cfg.Member.Self().Member) != from {
		err = fault.New(fault.Denied, "%s has no part in group %q", from, h.Group)
	}
	if err == nil && g.mirrored() == nil {
		err = fault.New(fault.Busy, "group %q is not open here yet", h.Group)
	}
	if err != nil {
		answer.Refused = err.Error()
	}
	if err := writeHello(conn, answer); err != nil || answer.Refused != "" {
		return err
	}
	return g.attach(conn, quorum.Incarnation{Member: from, Boot: h.Boot})
}

// dialOn keeps a connection to the other node for as long as the group is here.
// Of the two it is the one whose name comes first that dials.
func (g *Group) dialOn() {
	pause, last := redialMin, ""
	for g.ctx.Err() == nil {
		began := time.Now()
		err := g.dial()
		if time.Since(began) > redialMax {
			pause = redialMin // it stood for a while
		}
		if err != nil && g.ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			g.cfg.Log.Info("no mirror link", "group", g.name, "error", err)
		}
		select {
		case <-g.ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, redialMax)
	}
}

// dial makes one connection, if it is this node that dials, and returns when it
// has ended.
func (g *Group) dial() error {
	me := g.cfg.Member.Self()
	other := g.Spec().Other(me.Member)
	if other == "" || other < me.Member || g.mirrored() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(g.ctx, dialTime)
	defer cancel()
	conn, err := g.cfg.Member.Dial(ctx, other, ProtoMirror)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // it has ended, or is given up
	if err := conn.SetDeadline(time.Now().Add(helloTime)); err != nil {
		return err
	}
	if err := writeHello(conn, hello{Version: helloVersion, Group: g.name, Boot: me.Boot}); err != nil {
		return err
	}
	h, err := readHello(conn)
	if err != nil {
		return err
	}
	if h.Refused != "" {
		return fault.New(fault.Denied, "%s refuses: %s", other, h.Refused)
	}
	return g.attach(conn, quorum.Incarnation{Member: other, Boot: h.Boot})
}

// attach gives the mirror a connection, and returns when it has ended.
func (g *Group) attach(conn *tls.Conn, peer quorum.Incarnation) error {
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	m := g.mirrored()
	if m == nil {
		return fault.New(fault.Busy, "the group is closing")
	}
	defer g.history.linked(conn)()
	return m.Attach(conn, peer)
}
