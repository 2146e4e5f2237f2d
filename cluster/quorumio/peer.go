package quorumio

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"time"

	"steadfast/cluster/identity"
	"steadfast/fault"
	"steadfast/internal/wirebuf"
)

// Times of an outgoing connection.
const (
	dialTime   = time.Second
	writeTime  = 2 * time.Second
	aliveTime  = time.Second // after which something is said when there is nothing to say
	backoffMin = 50 * time.Millisecond
	backoffMax = time.Second
	// slowestBytesPerSecond is the least that a way between members must carry.
	slowestBytesPerSecond = 1 << 20
)

// outgoing is a message on its way.
type outgoing struct {
	payload  []byte
	snapshot bool
}

// peer is the connection to another member, made when there is something to say
// and again when it ends.
type peer struct {
	t     *transport
	id    uint64
	queue chan outgoing
	// queued is how many bytes wait in queue, a little late.
	queued atomic.Int64
	ctx    context.Context
	stop   context.CancelFunc
}

func newPeer(t *transport, id uint64) *peer {
	p := &peer{t: t, id: id, queue: make(chan outgoing, queueFrames)}
	p.ctx, p.stop = context.WithCancel(t.ctx)
	return p
}

// run connects, sends, and backs off when that fails, until the peer is stopped.
func (p *peer) run() {
	defer p.t.tasks.Done()
	defer p.stop()
	pause, last := backoffMin, ""
	for try := 0; ; try++ {
		began := time.Now()
		err := p.connection(try)
		if p.ctx.Err() != nil {
			return
		}
		if time.Since(began) > 2*backoffMax {
			pause = backoffMin // it was up for a while
		}
		if err != nil && err.Error() != last { // the same again and again says nothing new
			last = err.Error()
			p.t.log.Info("no connection to a member", "member", p.t.name(p.id), "id", p.id, "err", err)
		}
		p.lost()
		select {
		case <-time.After(pause):
		case <-p.ctx.Done():
			return
		}
		pause = min(2*pause, backoffMax)
	}
}

// lost drops what waits: raft sends what is still needed, of the state as it is
// then.
func (p *peer) lost() {
	snapshot := false
	for {
		select {
		case o := <-p.queue:
			p.queued.Add(-int64(len(o.payload)))
			snapshot = snapshot || o.snapshot
			continue
		default:
		}
		break
	}
	p.t.deliver(unreachable{id: p.id, snapshot: snapshot})
}

// connection makes one connection and sends on it until it ends.
func (p *peer) connection(try int) error {
	addresses := p.t.addresses(p.id)
	if len(addresses) == 0 {
		return fault.New(fault.NotFound, "nobody knows where member %d is", p.id)
	}
	conn, raw, err := p.t.dial(p.ctx, addresses[try%len(addresses)], p.id)
	if err != nil {
		return err
	}
	defer p.t.drop(raw)
	if err := p.t.greet(raw, conn, p.id); err != nil {
		return err
	}
	dead := make(chan struct{})
	p.t.tasks.Add(1)
	go func() { // nothing is to come: what does ends the connection
		defer p.t.tasks.Done()
		defer close(dead)
		_, _ = conn.Read(make([]byte, 1))
	}()
	p.t.log.Info("connected to a member", "member", p.t.name(p.id), "id", p.id)
	return p.pump(raw, conn, dead)
}

// pump sends what is queued, together what waits together.
func (p *peer) pump(raw net.Conn, w io.Writer, dead <-chan struct{}) error {
	b := bufio.NewWriterSize(w, 64<<10)
	alive := time.NewTicker(aliveTime)
	defer alive.Stop()
	for {
		var o outgoing
		kind := frameRaft
		select {
		case o = <-p.queue:
		default:
			if err := b.Flush(); err != nil {
				return err
			}
			select {
			case o = <-p.queue:
			case <-alive.C:
				kind = frameAlive
			case <-dead:
				return fault.New(fault.Unreachable, "the peer has closed the connection")
			case <-p.ctx.Done():
				return nil
			}
		}
		p.queued.Add(-int64(len(o.payload)))
		// A snapshot may be large, and the way slow.
		patience := writeTime + time.Duration(len(o.payload))*time.Second/slowestBytesPerSecond
		if err := raw.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		err := writeFrame(b, kind, o.payload)
		if err == nil && o.snapshot {
			err = b.Flush()
		}
		if o.snapshot {
			// Written is not received; if it was not, the next append is refused and
			// raft sends another.
			p.t.deliver(snapshotSent{id: p.id, failed: err != nil})
		}
		if err != nil {
			return err
		}
	}
}

// dial connects to a member. Who has the number, and the name and key that the
// state has for it, is the member; nobody else will do. The caller drops raw.
func (t *transport) dial(ctx context.Context, address string, id uint64) (*tls.Conn, net.Conn, error) {
	raw, err := dialTCP(ctx, address)
	if err != nil {
		return nil, nil, err
	}
	if !t.open(raw) {
		return nil, nil, errEnded
	}
	conn, err := t.shake(ctx, raw, address, id, identity.ProtoPeer)
	if err != nil {
		t.drop(raw)
		return nil, nil, err
	}
	return conn, raw, nil
}

func dialTCP(ctx context.Context, address string) (*wirebuf.Conn, error) {
	d := net.Dialer{Timeout: dialTime, Control: tune}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return wirebuf.New(c.(*net.TCPConn)), nil
}

// shake has both ends prove who they are.
func (t *transport) shake(ctx context.Context, raw net.Conn, address string, id uint64, proto string) (*tls.Conn, error) {
	conn := tls.Client(raw, t.id.Client(proto, func(p identity.Peer) error {
		if p.ID != id {
			return fault.New(fault.Denied, "at %s is %s, number %d, not %d", address, p.Name, p.ID, id)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		// Of a later state raft has told us, or the peer itself, by its certificate.
		return standing(t.roll, p, true)
	}))
	if err := raw.SetDeadline(time.Now().Add(writeTime)); err != nil {
		return nil, err
	}
	return conn, conn.HandshakeContext(ctx)
}

// greet exchanges hellos.
func (t *transport) greet(raw net.Conn, conn *tls.Conn, id uint64) error {
	if err := raw.SetDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	t.mu.Lock()
	h := hello{To: id, Boot: t.boot, Address: t.address}
	t.mu.Unlock()
	if err := writeHello(conn, frameHello, h); err != nil {
		return err
	}
	answer, err := readHello(conn, frameWelcome)
	switch {
	case err != nil:
		return err
	case answer.Refused != "":
		return fault.New(fault.Denied, "member %d refuses: %s", id, answer.Refused)
	}
	return raw.SetDeadline(time.Time{})
}
