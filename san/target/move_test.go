package target

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/iscsi"
	"steadfast/san/target/targettest"
	"steadfast/scsi"
)

// rest reads what still comes to a client, until the connection ends, and
// returns how many bytes that were.
func (r *rig) rest(c *targettest.Client) int {
	r.t.Helper()
	_ = c.Conn.SetReadDeadline(time.Now().Add(patience))
	n, err := io.Copy(io.Discard, c.Conn)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		r.t.Fatal("the connection stays")
	}
	return int(n)
}

// eventLog keeps what Config.Sessions was told.
type eventLog struct {
	mu   sync.Mutex
	list []SessionEvent
}

func (l *eventLog) note(e SessionEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, e)
}

func (l *eventLog) all() []SessionEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list)
}

// TestSilence ends a session whose write is blocked in a volume that was lost:
// the error that the volume returns, and everything else, stays here.
func TestSilence(t *testing.T) {
	var marked atomic.Int32
	var events eventLog
	r := newRig(t, Config{Closing: func(net.Conn) { marked.Add(1) }, Sessions: events.note})
	alias := r.withAlias()
	entered, release := make(chan struct{}, 8), make(chan struct{})
	r.disk.Gate = func(task *scsi.Task) {
		entered <- struct{}{}
		<-release
		if task.CDB[0] == 0x28 {
			// No such block: a CHECK CONDITION, as of a volume that was lost.
			copy(task.CDB[2:], []byte{0xff, 0xff, 0xff, 0xff})
		}
	}
	c, _ := r.loginTo(alias, aliasNames)
	r.send(c, c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...), pattern(512, 1))
	r.send(c, c.Command(iscsi.FlagFinal|iscsi.FlagRead, 512, targettest.Read10(0, 1)...), nil)
	<-entered
	<-entered
	own, _ := r.login("")
	half := r.dialTo(alias)
	until(t, "all are there", func() bool { return len(r.srv.Connections(aliasTag)) == 2 })

	r.srv.Silence(aliasTag) // with tasks that do not land
	held := r.dialTo(alias)
	done := logIn(held, aliasNames)
	until(t, "a new login is held", func() bool { return r.srv.Stats().Held == 1 })
	dropped := make(chan struct{})
	go func() { r.srv.DropPortalGroup(aliasTag); close(dropped) }()
	if n := r.rest(half); n != 0 {
		t.Errorf("%d bytes to a connection in login", n)
	}
	if err := <-done; err == nil {
		t.Error("answered")
	}
	select {
	case <-dropped:
		t.Fatal("dropped with tasks that have not landed")
	case <-time.After(30 * time.Millisecond):
	}
	close(release)
	<-dropped
	if n := r.rest(c); n != 0 {
		t.Errorf("%d bytes after the silence", n)
	}
	if got := r.srv.Connections(aliasTag); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if marked.Load() != 0 {
		t.Error("the end of a silent connection is let through")
	}
	r.alive(own)
	checkEvents(t, events.all(), c)
}

// checkEvents expects a session's beginning and end, with its endpoints.
func checkEvents(t *testing.T, list []SessionEvent, c *targettest.Client) {
	t.Helper()
	list = slices.DeleteFunc(list, func(e SessionEvent) bool { return e.Group != aliasTag })
	if len(list) != 2 {
		t.Fatalf("%+v", list)
	}
	for i, e := range list {
		want := SessionEvent{
			Begun: i == 0, TSIH: c.TSIH, Group: aliasTag, Initiator: testInitiator, Target: aliasTarget,
			Local: addrPortOf(c.Conn.RemoteAddr()), Remote: addrPortOf(c.Conn.LocalAddr()),
		}
		if e != want {
			t.Errorf("%+v, want %+v", e, want)
		}
	}
}

// TestSilenceUnderLoad silences a group while answers stream: from its return
// on, the sockets get nothing, and a peer that takes nothing delays nobody.
func TestSilenceUnderLoad(t *testing.T) {
	for range 5 {
		r := newRig(t, Config{})
		alias := r.withAlias()
		var list [4]*session
		for i := range list {
			c := r.dialTo(alias)
			c.ISID[5] = byte(i)
			if err := <-logIn(c, aliasNames); err != nil {
				t.Fatal(err)
			}
			list[i] = r.session(c)
			go readForever(c, i > 0)
		}
		until(t, "one is stuck and the others read", func() bool {
			list[0].mu.Lock()
			defer list[0].mu.Unlock()
			return list[0].sending && list[1].bytesOut.Load() > 1<<20
		})
		began := time.Now()
		r.srv.Silence(aliasTag)
		took := time.Since(began)
		var sent [len(list)]uint64
		for i, s := range list {
			sent[i] = s.bytesOut.Load()
		}
		r.srv.DropPortalGroup(aliasTag)
		for i, s := range list {
			if n := s.bytesOut.Load() - sent[i]; n != 0 {
				t.Errorf("session %d: %d bytes after the silence", i, n)
			}
		}
		if took > 20*time.Second { // of a peer that is waited for it would not end
			t.Errorf("silence took %v", took)
		}
	}
}

// readForever reads with 16 commands outstanding until the connection ends, or
// sends them and takes no answer.
func readForever(c *targettest.Client, listens bool) {
	for range 16 {
		if c.Send(c.Command(iscsi.FlagFinal|iscsi.FlagRead, 1<<20, targettest.Read10(0, 2048)...), nil, nil) != nil {
			return
		}
	}
	for listens {
		h, _, err := c.Recv()
		if err == nil && h.Flags()&iscsi.FlagStatus != 0 {
			err = c.Send(c.Command(iscsi.FlagFinal|iscsi.FlagRead, 1<<20, targettest.Read10(0, 2048)...), nil, nil)
		}
		if err != nil {
			return
		}
	}
}

// TestSilenceAmongLogins silences a group while initiators log in: no session
// is left, and none begins.
func TestSilenceAmongLogins(t *testing.T) {
	var events eventLog
	r := newRig(t, Config{Sessions: events.note, Times: Times{LoginHold: 50 * time.Millisecond}})
	alias := r.withAlias()
	for range 20 {
		r.srv.AdmitLogins(aliasTag)
		var ends []<-chan error
		for i := range 16 {
			c := r.dialTo(alias)
			c.ISID[5] = byte(i)
			ends = append(ends, logIn(c, aliasNames))
		}
		time.Sleep(time.Millisecond)
		r.srv.DropPortalGroup(aliasTag)
		if n := r.srv.Stats().Sessions; n != 0 {
			t.Fatalf("%d sessions", n)
		}
		for _, end := range ends {
			<-end
		}
		if n := r.srv.Stats().Sessions; n != 0 {
			t.Fatalf("%d sessions later", n)
		}
	}
	balance := 0
	for _, e := range events.all() {
		if e.Begun {
			balance++
		} else {
			balance--
		}
	}
	if balance != 0 {
		t.Errorf("%d sessions without an end", balance)
	}
}

// TestMoveDrains moves a group with a write that waits for its data and one
// that runs: both are answered, what comes meanwhile is not begun, and the
// announcement is the last word.
func TestMoveDrains(t *testing.T) {
	marked := make(chan net.Conn, 8)
	r := newRig(t, Config{Closing: func(c net.Conn) { marked <- c }})
	alias := r.withAlias()
	entered, release := make(chan struct{}, 8), make(chan struct{})
	r.disk.Gate = func(*scsi.Task) {
		entered <- struct{}{}
		<-release
	}
	c, _ := r.loginTo(alias, aliasNames+"InitialR2T=Yes\nImmediateData=No\nDefaultTime2Wait=5\nDefaultTime2Retain=5\n")
	r.send(c, c.Command(iscsi.FlagFinal|iscsi.FlagRead, 512, targettest.Read10(0, 1)...), nil)
	<-entered
	w := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(8, 1)...)
	r.send(c, w, nil)
	r2t, _ := r.expect(c, iscsi.OpR2T)

	moved := make(chan struct{})
	go func() { r.srv.AnnounceMove(context.Background(), aliasTag); close(moved) }()
	s := r.session(c)
	until(t, "it drains", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.draining })
	late := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(16, 1)...)
	r.send(c, late, nil)
	ping := c.Request(iscsi.OpNopOut)
	ping.SetImmediate()
	c.CmdSN--
	ping.SetTargetTag(iscsi.NoTag)
	r.send(c, ping, nil)
	r.expect(c, iscsi.OpNopIn) // it is still there
	r.send(c, c.DataOut(w.InitiatorTag(), r2t.TargetTag(), 0, 0, true), pattern(512, 3))
	<-entered
	select {
	case <-moved:
		t.Fatal("moved with commands that run")
	case <-time.After(30 * time.Millisecond):
	}
	close(release)
	answers := map[uint32]bool{}
	for len(answers) < 2 {
		h, _, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		answers[h.InitiatorTag()] = true
	}
	if answers[late.InitiatorTag()] {
		t.Error("a command that came meanwhile was answered")
	}
	a, _ := r.expect(c, iscsi.OpAsync)
	if a.AsyncEvent() != iscsi.AsyncDropSession || a.AsyncParameter(2) != 0 || a.AsyncParameter(3) != 0 {
		t.Errorf("event %d, parameters %d %d", a.AsyncEvent(), a.AsyncParameter(2), a.AsyncParameter(3))
	}
	if n := r.rest(c); n != 0 {
		t.Errorf("%d bytes after the announcement", n)
	}
	c.Close()
	<-moved
	if conn := <-marked; conn.RemoteAddr().String() != c.Conn.LocalAddr().String() {
		t.Errorf("marked: %v", conn.RemoteAddr())
	}
	if n := r.disk.Landed.Load(); n != 1 {
		t.Errorf("%d writes landed", n)
	}
}

// TestMovePrepared leaves connections open and mute, until the group is dropped.
func TestMovePrepared(t *testing.T) {
	var marked atomic.Int32
	r := newRig(t, Config{Closing: func(net.Conn) { marked.Add(1) }})
	alias := r.withAlias()
	c, _ := r.loginTo(alias, aliasNames)
	r.srv.PrepareMove(context.Background(), aliasTag)
	r.expect(c, iscsi.OpAsync)
	ping := c.Request(iscsi.OpNopOut)
	ping.SetImmediate()
	ping.SetTargetTag(iscsi.NoTag)
	r.send(c, ping, nil)
	r.send(c, c.Command(iscsi.FlagFinal, 0, 0), nil)
	_ = c.Conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	var timeout net.Error
	if n, err := c.Conn.Read(make([]byte, 1)); n != 0 || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("%d bytes, %v", n, err)
	}
	r.srv.DropPortalGroup(aliasTag)
	if n := r.rest(c); n != 0 || marked.Load() != 0 {
		t.Errorf("%d bytes, %d ends let through", n, marked.Load())
	}
}

// TestMoveRunsOut moves a group whose command does not end: the initiator is
// told all the same when the time is over, and gets no answer later.
func TestMoveRunsOut(t *testing.T) {
	r := newRig(t, Config{})
	alias := r.withAlias()
	release := make(chan struct{})
	r.disk.Gate = func(*scsi.Task) { <-release }
	c, _ := r.loginTo(alias, aliasNames)
	r.send(c, c.Command(iscsi.FlagFinal|iscsi.FlagRead, 512, targettest.Read10(0, 1)...), nil)
	until(t, "it runs", func() bool { return r.disk.Begun.Load() == 1 })
	held := r.dialTo(alias)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	r.srv.AnnounceMove(ctx, aliasTag)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	a, _ := r.expect(c, iscsi.OpAsync)
	if a.AsyncEvent() != iscsi.AsyncDropSession {
		t.Errorf("event %d", a.AsyncEvent())
	}
	if n := r.rest(c) + r.rest(held); n != 0 {
		t.Errorf("%d bytes more", n)
	}
	close(release)
	r.srv.DropPortalGroup(aliasTag)
	if n := r.srv.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions", n)
	}
}

// returner is an initiator that does as libiscsi does: it keeps several commands
// outstanding, comes back when its connection ends, and sends again what was not
// answered.
type returner struct {
	id       int
	portal   func() string
	answered atomic.Int64
	announced,
	returns int
}

func (p *returner) run(stop <-chan struct{}) error {
	pending := 0 // commands not answered when the connection ended
	for {
		c, err := targettest.Dial(p.portal())
		if err != nil {
			if errors.Is(err, unix.ECONNRESET) {
				continue // dropped before Dial had looked at it
			}
			return err
		}
		c.ISID[5] = byte(p.id)
		if err := <-logIn(c, aliasNames); err != nil {
			c.Close()
			continue // the portal moved under the login
		}
		p.returns++
		var stopped bool
		pending, stopped, err = p.serve(c, pending, stop)
		c.Close()
		if err != nil || stopped {
			return err
		}
	}
}

// serve writes until it is stopped, or the connection ends: then it returns how
// many writes were not answered.
func (p *returner) serve(c *targettest.Client, again int, stop <-chan struct{}) (pending int, stopped bool, err error) {
	const depth = 8
	var broken error
	for broken == nil && !stopped || pending > 0 {
		select {
		case <-stop:
			stopped = true
		default:
		}
		for pending+again < depth && !stopped {
			again++
		}
		for ; again > 0 && broken == nil; again-- {
			h := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 4096, targettest.Write10(p.id*64+int(c.ITT%8)*8, 8)...)
			broken = c.Send(h, nil, pattern(4096, byte(p.id)))
			pending++
		}
		if pending == 0 {
			break
		}
		h, _, err := c.Recv()
		switch {
		case err != nil:
			return pending + again, false, nil
		case h.Opcode() == iscsi.OpAsync:
			p.announced++
		case h.Opcode() == iscsi.OpSCSIResponse && h.SCSIStatus() == 0:
			pending--
			p.answered.Add(1)
		default:
			return 0, false, fmt.Errorf("%v, status %#x", h.Opcode(), h.SCSIStatus())
		}
	}
	return pending, stopped, nil
}

// TestMoveUnderLoad moves a group to and fro between two servers of one disk,
// under writes: each command that was executed was answered, and no initiator
// sees an error.
func TestMoveUnderLoad(t *testing.T) {
	t.Run("told", func(t *testing.T) { moveUnderLoad(t, (*Server).PrepareMove) })
	t.Run("ended", func(t *testing.T) { moveUnderLoad(t, (*Server).AnnounceMove) })
}

func moveUnderLoad(t *testing.T, move func(*Server, context.Context, uint16)) {
	// There is no gate here: who comes back to the old node waits there.
	cfg := Config{Times: Times{LoginHold: 20 * time.Millisecond}}
	nodes := [2]*rig{newRig(t, cfg), newRig(t, cfg)}
	at := [2]string{nodes[0].withAlias(), nodes[1].withAlias()}
	nodes[1].srv.HoldLogins(aliasTag)
	for _, n := range nodes {
		n.disk.Slow.Store(true)
	}
	var owner atomic.Int32
	list := make([]returner, 6)
	stop, ends := make(chan struct{}), make(chan error, len(list))
	for i := range list {
		p := &list[i]
		p.id, p.portal = i, func() string { return at[owner.Load()] }
		go func() { ends <- p.run(stop) }()
	}
	const moves = 10
	for n := range moves {
		from, to := nodes[n%2], nodes[1-n%2]
		before := from.disk.Landed.Load()
		until(t, "they write", func() bool { return from.srv.Stats().Sessions == len(list) && from.disk.Landed.Load() > before+50 })
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		move(from.srv, ctx, aliasTag)
		if ctx.Err() != nil {
			t.Fatal("a move took too long")
		}
		cancel()
		owner.Store(int32(1 - n%2))
		from.srv.DropPortalGroup(aliasTag)
		to.srv.AdmitLogins(aliasTag)
	}
	until(t, "all are back", func() bool { return nodes[moves%2].srv.Stats().Sessions == len(list) })
	close(stop)
	for range list {
		if err := <-ends; err != nil {
			t.Error(err)
		}
	}
	answered := int64(0)
	for i := range list {
		p := &list[i]
		answered += p.answered.Load()
		if p.returns != moves+1 || p.announced != moves {
			t.Errorf("initiator %d came %d times, and was told %d times", i, p.returns, p.announced)
		}
	}
	if landed := nodes[0].disk.Landed.Load() + nodes[1].disk.Landed.Load(); landed != answered {
		t.Errorf("%d writes landed, %d were answered", landed, answered)
	}
}

// TestNothingBegins ends a session while its reader has commands in its buffer:
// none of them begins any more.
func TestNothingBegins(t *testing.T) {
	r := newRig(t, Config{})
	c, _ := r.login("")
	r.alive(c)
	s, begun, in := r.session(c), r.disk.Begun.Load(), r.session(c).bytesIn.Load()
	// The reader waits for the lock with the first of them, and not yet after the
	// answer that the initiator has seen.
	until(t, "the answer is done with", func() bool {
		s.mu.Lock()
		if s.sending {
			s.mu.Unlock()
			return false
		}
		return true
	})
	release := sync.OnceFunc(s.mu.Unlock)
	defer release()
	var wire []byte
	for range 100 {
		h := c.Command(iscsi.FlagFinal, 0, 0)
		wire = append(wire, h[:]...)
	}
	if _, err := c.Conn.Write(wire); err != nil {
		t.Fatal(err)
	}
	until(t, "all is read", func() bool { return s.bytesIn.Load() == in+uint64(len(wire)) })
	s.close("test")
	release()
	<-s.gone
	if n := r.disk.Begun.Load() - begun; n > 1 {
		t.Errorf("%d commands began", n)
	}
}
