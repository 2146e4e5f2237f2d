package target

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/san/target/targettest"
	"steadfast/scsi"
)

// lines counts the log lines that contain text.
func (r *rig) lines(text string) int { return strings.Count(r.log.String(), text) }

// tickOut makes a session's seconds pass until it is closed. What its sender
// still gets rid of takes real time: hence the pause, and the count.
func (r *rig) tickOut(s *session) {
	r.t.Helper()
	for range 1000 {
		s.tick(time.Second)
		select {
		case <-s.dying:
			<-s.gone
			return
		case <-time.After(time.Millisecond):
		}
	}
	r.t.Fatal("the session lives on")
}

// pass makes seconds pass for a session that sends nothing.
func (r *rig) pass(s *session, seconds int) {
	for range seconds {
		s.mu.Lock()
		s.waitSent()
		s.mu.Unlock()
		s.tick(time.Second)
	}
}

// stuff writes PDUs until the target takes no more.
func stuff(c *targettest.Client, pdu func() (iscsi.Header, []byte)) (sent int) {
	for {
		c.Conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		h, data := pdu()
		if c.Send(h, nil, data) != nil {
			return sent
		}
		sent += len(h) + len(data)
	}
}

// TestSlowReader asks for more than it reads: its memory and window are
// bounded, others are served, and it is given up in time.
func TestSlowReader(t *testing.T) {
	r := newRig(t, Config{Limits: Limits{SessionMemory: 1 << 20, Memory: 8 << 20}, Times: Times{WriteStall: 5 * time.Second}})
	slow, _ := r.login("MaxRecvDataSegmentLength=262144\n")
	other := r.dial()
	other.ISID[5]++
	if status, _, err := other.Login(testNames); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	s := r.session(slow)
	for range 64 {
		r.send(slow, slow.Command(iscsi.FlagFinal|iscsi.FlagRead, 256<<10, targettest.Read10(0, 512)...), nil)
	}
	// A ping that the reader takes proves that all commands were seen; its
	// answer waits behind data nobody reads.
	for seen := false; !seen; {
		seen = s.commands.Load() == 64
		r.alive(other)
	}
	if m := r.srv.Stats().Memory; m > 1<<20 {
		t.Errorf("%d bytes held for a session with a share of 1 MiB", m)
	}
	s.mu.Lock()
	if open := int(s.window() - s.expCmdSN + 1); open+s.outstanding > 128 {
		t.Errorf("window of %d beside %d commands", open, s.outstanding)
	}
	s.mu.Unlock()
	r.alive(other)
	r.tickOut(s)
	r.alive(other)
	if n := r.lines("moves no data"); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

// TestDeafPinger sends what has answers, and never reads one.
func TestDeafPinger(t *testing.T) {
	r := newRig(t, Config{Times: Times{WriteStall: 5 * time.Second}})
	c, _ := r.login("")
	s := r.session(c)
	sent := stuff(c, func() (iscsi.Header, []byte) {
		h := c.Request(iscsi.OpNopOut)
		h.SetImmediate()
		c.CmdSN--
		h.SetTargetTag(iscsi.NoTag)
		return h, make([]byte, 4096)
	})
	s.mu.Lock()
	held := s.out.bytes + s.spare.bytes
	s.mu.Unlock()
	// Besides what waits, the kernel's socket buffers take some megabytes.
	// Each of the two batches ends with the answers to one buffer of input.
	if held > 2*(backlogMax+inputSize) {
		t.Errorf("%d bytes of answers wait, of %d asked", held, sent)
	}
	r.tickOut(s)
}

// TestSilentWriter announces writes, gets all of the server's memory for them,
// and sends nothing. Who waits for memory gets it in time.
func TestSilentWriter(t *testing.T) {
	r := newRig(t, Config{Limits: Limits{Memory: 1 << 20}, Times: Times{WriteStall: 5 * time.Second}})
	mute, _ := r.login("")
	for range 4 {
		r.send(mute, mute.Command(iscsi.FlagFinal|iscsi.FlagWrite, 256<<10, targettest.Write10(0, 512)...), nil)
		r.expect(mute, iscsi.OpR2T)
	}
	other := r.dial()
	other.ISID[5]++
	if status, _, err := other.Login(testNames); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	h := other.Command(iscsi.FlagFinal|iscsi.FlagRead, 4096, targettest.Read10(0, 8)...)
	r.send(other, h, nil)
	r.alive(other) // TEST UNIT READY needs no memory, and overtakes
	if r.srv.Stats().Waiting != 1 {
		t.Fatal("the read does not wait")
	}
	// A victim is not taken for a culprit.
	s, victim := r.session(mute), r.session(other)
	r.pass(victim, 10)
	r.tickOut(s)
	r.expect(other, iscsi.OpDataIn)
	r.alive(other)
	// Without anybody waiting, a writer may take its time.
	h = other.Command(iscsi.FlagFinal|iscsi.FlagWrite, 4096, targettest.Write10(0, 8)...)
	r.send(other, h, nil)
	a, _ := r.expect(other, iscsi.OpR2T)
	r.pass(victim, 10)
	r.send(other, other.DataOut(h.InitiatorTag(), a.TargetTag(), 0, 0, true), pattern(4096, 3))
	if status, _ := r.expectStatus(other, h.InitiatorTag()); status != 0 {
		t.Errorf("status %#x", status)
	}
}

// TestShares lets one session ask for more than its share: another, within
// its own, does not wait behind it.
func TestShares(t *testing.T) {
	r := newRig(t, Config{Limits: Limits{SessionMemory: 64 << 10}})
	greedy, _ := r.login("")
	for range 8 {
		r.send(greedy, greedy.Command(iscsi.FlagFinal|iscsi.FlagWrite, 64<<10, targettest.Write10(0, 128)...), nil)
	}
	first, _ := r.expect(greedy, iscsi.OpR2T)
	other := r.dial()
	other.ISID[5]++
	if status, _, err := other.Login(testNames); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	h := other.Command(iscsi.FlagFinal|iscsi.FlagRead, 4096, targettest.Read10(0, 8)...)
	r.send(other, h, nil)
	r.expect(other, iscsi.OpDataIn)
	r.alive(other)
	if other.MaxCmdSN-other.ExpCmdSN < 100 {
		t.Errorf("window %d of a session that did nothing", other.MaxCmdSN-other.ExpCmdSN+1)
	}
	// The rest comes one by one, in order; none is dropped.
	for i := range 8 {
		a := first
		if i > 0 {
			a, _ = r.expect(greedy, iscsi.OpR2T)
		}
		if want := first.InitiatorTag() + uint32(i); a.InitiatorTag() != want {
			t.Fatalf("R2T for %d, not %d", a.InitiatorTag(), want)
		}
		r.send(greedy, greedy.DataOut(a.InitiatorTag(), a.TargetTag(), 0, 0, true), pattern(64<<10, byte(i)))
		if status, _ := r.expectStatus(greedy, a.InitiatorTag()); status != 0 {
			t.Errorf("status %#x", status)
		}
	}
	r.alive(greedy)
	if greedy.MaxCmdSN-greedy.ExpCmdSN < 100 {
		t.Errorf("the window stays at %d", greedy.MaxCmdSN-greedy.ExpCmdSN+1)
	}
}

// TestMemoryPressure runs sessions whose commands need many times the memory
// there is. Every command is answered, with the right data.
func TestMemoryPressure(t *testing.T) {
	const clients, rounds, depth, limit = 4, 6, 8, 256 << 10
	r := newRig(t, Config{Limits: Limits{Memory: limit, SessionMemory: limit / 2, FirstBurstLength: 16 << 10}})
	r.disk.Slow.Store(true)
	var wg sync.WaitGroup
	for i := range clients {
		c := r.dial()
		c.ISID[5] = byte(i + 1)
		if status, _, err := c.Login(testNames + "InitialR2T=No\nImmediateData=Yes\nFirstBurstLength=16384\nMaxRecvDataSegmentLength=262144\n"); err != nil || status != 0 {
			t.Fatal(status, err)
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			for round := range rounds {
				if err := burst(c, i*2000, depth, byte(round+i)); err != nil {
					t.Errorf("client %d round %d: %v", i, round, err)
					return
				}
			}
		}()
	}
	wg.Wait()
	// An answer is seen before its sender is done with what it held.
	until(t, "nothing is held", func() bool { return r.srv.Stats().Memory == 0 })
}

// burst writes depth pieces of 96 KiB at once, by all kinds of data-out, then
// reads them at once.
func burst(c *targettest.Client, lba, depth int, seed byte) error {
	const n = 96 << 10
	base := c.ITT
	data := make(map[uint32][]byte)
	write := func(tag uint32) error {
		i := int(tag - base)
		h := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, n, targettest.Write10(lba+i*n/512, n/512)...)
		h.SetInitiatorTag(tag)
		return c.Send(h, nil, data[tag][:i%3*8192])
	}
	for i := range depth {
		tag := base + uint32(i)
		data[tag] = pattern(n, seed+byte(i))
		if err := write(tag); err != nil {
			return err
		}
	}
	for done := 0; done < depth; {
		r, _, err := c.Recv()
		switch {
		case err != nil:
			return err
		case r.Opcode() == iscsi.OpR2T:
			off, end := int(r.BufferOffset()), int(r.BufferOffset()+r.DesiredLength())
			if err := c.Send(c.DataOut(r.InitiatorTag(), r.TargetTag(), 0, off, true), nil, data[r.InitiatorTag()][off:end]); err != nil {
				return err
			}
		case r.Opcode() == iscsi.OpSCSIResponse && r.SCSIStatus() == 0:
			done++
		case r.Opcode() == iscsi.OpSCSIResponse && r.SCSIStatus() == uint8(scsi.BusyStatus):
			if err := write(r.InitiatorTag()); err != nil {
				return err
			}
		default:
			return fmt.Errorf("write: %v %x", r.Opcode(), r)
		}
	}
	reads := make(map[uint32]uint32) // read's tag to write's
	for i := range depth {
		h := c.Command(iscsi.FlagFinal|iscsi.FlagRead, n, targettest.Read10(lba+i*n/512, n/512)...)
		reads[h.InitiatorTag()] = base + uint32(i)
		if err := c.Send(h, nil, nil); err != nil {
			return err
		}
	}
	for range depth {
		r, got, err := c.Recv()
		if err != nil {
			return err
		}
		if r.Opcode() != iscsi.OpDataIn || !bytes.Equal(got, data[reads[r.InitiatorTag()]]) {
			return fmt.Errorf("read: %v with %d bytes", r.Opcode(), len(got))
		}
	}
	return nil
}

// TestHalfOpen holds connections open without a login, or with one that never
// ends: they end on time, are counted, and logged once.
func TestHalfOpen(t *testing.T) {
	r := newRig(t, Config{Times: Times{Login: 150 * time.Millisecond}})
	var cs []*targettest.Client
	for range 8 {
		cs = append(cs, r.dial())
	}
	// Some begin: half a header, a header without its text, a login that asks
	// for no next stage.
	cs[0].Conn.Write(make([]byte, 20))
	var h iscsi.Header
	h.SetOpcode(iscsi.OpLoginReq)
	h.SetDataLength(100)
	cs[1].Conn.Write(h[:])
	if _, _, err := cs[2].LoginStep(iscsi.StageOperational, 0, false, testNames); err != nil {
		t.Fatal(err)
	}
	for _, c := range cs {
		r.expectEnd(c)
	}
	if s := r.srv.Stats(); s.HalfOpen != 0 || s.Sessions != 0 {
		t.Errorf("%+v", s)
	}
	if n := r.lines("login broken off"); n != 1 {
		t.Errorf("logged %d times: %s", n, r.log)
	}
}

func TestLoginFlood(t *testing.T) {
	r := newRig(t, Config{Limits: Limits{HalfOpenPerAddress: 4}})
	var held []*targettest.Client
	for range 4 {
		c := r.dial()
		if _, _, err := c.LoginStep(iscsi.StageOperational, 0, false, testNames); err != nil {
			t.Fatal(err) // it is certainly in login
		}
		held = append(held, c)
	}
	for range 16 {
		r.expectEnd(r.dial())
	}
	if s := r.srv.Stats(); s.Refused != 16 || s.HalfOpen != 4 {
		t.Errorf("%+v", s)
	}
	if n := r.lines("connection refused"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	// Whoever was let in still is.
	if status, _, err := held[0].LoginStep(iscsi.StageOperational, iscsi.StageFullFeature, true, ""); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	for _, c := range held[1:] {
		c.Close()
	}
	// Logins that are refused, each under another name: one line.
	for i := range 40 {
		c := r.dial()
		status, _, err := c.Login(fmt.Sprintf("InitiatorName=iqn.2026-11.test:n%d\nTargetName=%s\n", i, testTarget))
		if err == nil && status != iscsi.LoginForbidden {
			t.Fatal(status)
		}
		r.expectEnd(c)
	}
	if n := r.lines("login refused"); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

func TestManySessions(t *testing.T) {
	r := newRig(t, Config{Limits: Limits{SessionsPerAddress: 4, DiscoverySessions: 2}, Times: Times{NopInterval: 10 * time.Second}})
	discovery := "InitiatorName=" + testInitiator + "\nSessionType=Discovery\n"
	open := func(isid byte, text string) (*targettest.Client, iscsi.LoginStatus) {
		t.Helper()
		c := r.dial()
		c.ISID[5] = isid
		status, _, err := c.Login(text)
		if err != nil {
			t.Fatal(err)
		}
		return c, status
	}
	idle, _ := open(1, discovery)
	open(2, discovery)
	if _, status := open(3, discovery); status != iscsi.LoginOutOfResources {
		t.Errorf("third discovery session: %v", status)
	}
	open(4, testNames)
	c, _ := open(5, testNames)
	if _, status := open(6, testNames); status != iscsi.LoginOutOfResources {
		t.Errorf("fifth session: %v", status)
	}
	// A discovery session that asks nothing gives its place up.
	s := r.session(idle)
	s.tick(time.Second)
	s.tick(10 * time.Second)
	r.expectEnd(idle)
	<-s.gone
	if _, status := open(6, testNames); status != iscsi.LoginSuccess {
		t.Errorf("after one left: %v", status)
	}
	// To come again is no more than to be there.
	if _, status := open(5, testNames); status != iscsi.LoginSuccess {
		t.Errorf("reinstatement at the limit: %v", status)
	}
	r.expectEnd(c)
}

// TestOversized sends lengths beyond every bound.
func TestOversized(t *testing.T) {
	r := newRig(t, Config{})
	var h iscsi.Header
	h.SetOpcode(iscsi.OpLoginReq)
	h.SetStages(true, false, iscsi.StageOperational, iscsi.StageFullFeature)
	for name, edit := range map[string]func(*iscsi.Header){
		"login text":   func(h *iscsi.Header) { h.SetDataLength(8193) },
		"login header": func(h *iscsi.Header) { h.SetAHSLength(4) },
		"not a login":  func(h *iscsi.Header) { h.SetOpcode(iscsi.OpSCSICommand) },
	} {
		c, bad := r.dial(), h
		edit(&bad)
		c.Conn.Write(bad[:])
		r.expectEnd(c)
		if s := r.srv.Stats(); s.Sessions != 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	// Login text without end, in pieces.
	c := r.dial()
	for i := 0; ; i++ {
		h.SetStages(false, true, iscsi.StageOperational, 0)
		h.SetISID(c.ISID)
		if err := c.Send(h, nil, bytes.Repeat([]byte("X"), 8192)); err != nil {
			t.Fatal(err)
		}
		a, _, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if a.LoginStatus() == iscsi.LoginInitiatorError {
			break
		}
		if i > 64<<10/8192 {
			t.Fatal("more text taken than the limit")
		}
	}
	r.expectEnd(c)
	// The same in the full feature phase costs the exchange, not the session.
	c, _ = r.login("")
	tag := iscsi.NoTag
	for range 64<<10/8192 + 1 {
		h := c.Request(iscsi.OpTextReq)
		h.SetFlags(iscsi.FlagContinue)
		h.SetTargetTag(tag)
		r.send(c, h, bytes.Repeat([]byte("X"), 8192))
		a, _, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if tag = a.TargetTag(); a.Opcode() == iscsi.OpReject {
			break
		}
	}
	r.alive(c)
	// The longest additional header there can be, of nonsense.
	bad := c.Command(iscsi.FlagFinal, 0, 0)
	if err := c.Send(bad, bytes.Repeat([]byte{0xff}, 1020), nil); err != nil {
		t.Fatal(err)
	}
	r.expect(c, iscsi.OpReject)
	r.alive(c)
	// A data segment of 16 MiB is not waited for.
	big := c.Request(iscsi.OpNopOut)
	big.SetDataLength(iscsi.MaxSegmentLength)
	c.Conn.Write(big[:])
	r.expectEnd(c)
}

// TestTrickle sends the first part of a PDU and then nothing: what the target
// holds for it is that part, not its receive buffer.
func TestTrickle(t *testing.T) {
	for name, n := range map[string]int{"header": 20, "data": iscsi.HeaderSize + 9000, "direct": iscsi.HeaderSize + 100<<10} {
		server, client := socketPair(t)
		raw, err := server.(*net.UnixConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		seen, total := make(chan struct{}), 0
		in := newInput(raw, func() {}, func(got int) {
			if total += got; total == n {
				close(seen)
			}
		})
		done := make(chan error)
		go func() {
			err := in.need(iscsi.HeaderSize)
			if err == nil {
				in.next(iscsi.HeaderSize)
				_, err = in.segment(make([]byte, n+1000))
			}
			done <- err
		}()
		if _, err := client.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		<-seen
		server.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // by then it waits
		if err := <-done; err == nil {
			t.Errorf("%s: read to an end that never came", name)
		}
		if len(in.buf) > directMin {
			t.Errorf("%s: %d bytes kept", name, len(in.buf))
		}
		in.release()
		client.Close()
		server.Close()
	}
}

// TestTagInUse begins a second write under the tag of one that awaits data.
func TestTagInUse(t *testing.T) {
	r := newRig(t, Config{})
	c, _ := r.login("")
	h := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...)
	r.send(c, h, nil)
	a, _ := r.expect(c, iscsi.OpR2T)
	twin := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(1, 1)...)
	twin.SetInitiatorTag(h.InitiatorTag())
	r.send(c, twin, nil)
	if j, _ := r.expect(c, iscsi.OpReject); iscsi.RejectReason(j.Response()) != iscsi.RejectTaskInProgress {
		t.Errorf("reason %#x", j.Response())
	}
	r.send(c, c.DataOut(h.InitiatorTag(), a.TargetTag(), 0, 0, true), pattern(512, 8))
	if status, _ := r.expectStatus(c, h.InitiatorTag()); status != 0 {
		t.Errorf("status %#x", status)
	}
	r.alive(c)
}

// TestEarlyFlood sends requests before their turn until their data is too
// much; what they held is given back.
func TestEarlyFlood(t *testing.T) {
	r := newRig(t, Config{})
	c, _ := r.login("")
	c.CmdSN++ // the one that never comes
	for range earlyMax/(128<<10) + 1 {
		r.send(c, c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 128<<10, targettest.Write10(0, 256)...), pattern(128<<10, 1))
	}
	r.expectEnd(c)
	if r.disk.Begun.Load() != 0 {
		t.Error("a request ran before its turn")
	}
}

// TestDigestFlood sends broken data again and again: one line, and a session
// that lives.
func TestDigestFlood(t *testing.T) {
	r := newRig(t, Config{})
	c, _ := r.login("DataDigest=CRC32C\n")
	for range 50 {
		c.SpoilData = true
		h := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...)
		r.send(c, h, pattern(512, 1))
		r.expect(c, iscsi.OpReject)
		if status, _ := r.expectStatus(c, h.InitiatorTag()); status != 2 {
			t.Fatalf("status %#x", status)
		}
	}
	r.alive(c)
	if n := r.lines("data digest error"); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

// TestStuckPredecessor logs in while the old session's write hangs: the login
// is refused in time, and another one succeeds later.
func TestStuckPredecessor(t *testing.T) {
	r := newRig(t, Config{Times: Times{Login: 100 * time.Millisecond}})
	entered, release := make(chan struct{}, 1), make(chan struct{})
	r.disk.Gate = func(*scsi.Task) {
		entered <- struct{}{}
		<-release
	}
	old, _ := r.login("")
	r.send(old, old.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...), pattern(512, 1))
	<-entered
	s := r.session(old)
	again := r.dial()
	status, _, err := again.Login(testNames)
	if err == nil && status != iscsi.LoginUnavailable {
		t.Errorf("login beside a write that hangs: %v", status)
	}
	r.expectEnd(again)
	if h := r.srv.Stats().HalfOpen; h != 0 {
		t.Errorf("%d logins wait", h)
	}
	close(release)
	<-s.gone
	c, _ := r.login("")
	r.alive(c)
}

// TestDropTells sees the asynchronous message of a session that is dropped.
func TestDropTells(t *testing.T) {
	r := newRig(t, Config{})
	c, _ := r.login("")
	r.alive(c) // the login is over for the target too
	s := r.session(c)
	s.mu.Lock()
	s.waitSent()
	s.mu.Unlock()
	if err := r.srv.DropSession(c.TSIH); err != nil {
		t.Fatal(err)
	}
	a, _ := r.expect(c, iscsi.OpAsync)
	if a.AsyncEvent() != iscsi.AsyncDropSession {
		t.Errorf("event %d", a.AsyncEvent())
	}
	r.expectEnd(c)
	if err := r.srv.DropSession(c.TSIH); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

// TestPortalAddress has what SendTargets says of portals on every address.
func TestPortalAddress(t *testing.T) {
	at := func(s string) net.Addr {
		a, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, tc := range []struct{ bound, local, want string }{
		{"192.0.2.1:3260", "192.0.2.9:3260", "192.0.2.1:3260"},
		{"0.0.0.0:3261", "192.0.2.9:3260", "192.0.2.9:3261"},
		{"0.0.0.0:3261", "[2001:db8::1]:3260", ""},
		{"[::]:3261", "[2001:db8::1]:3260", "[2001:db8::1]:3261"},
		{"[::]:3261", "192.0.2.9:3260", "192.0.2.9:3261"},
		{"[::]:3261", "[fe80::1%lo]:3260", "[fe80::1]:3261"},
	} {
		if got := portalAddress(at(tc.bound), at(tc.local)); got != tc.want {
			t.Errorf("portal %s for %s: %q, want %q", tc.bound, tc.local, got, tc.want)
		}
	}
}

// TestLogsBounds floods the log from many addresses and with many causes.
func TestLogsBounds(t *testing.T) {
	r := newRig(t, Config{})
	for i := range 1000 {
		r.srv.logs.warn("flood", "one cause", fmt.Sprint("address ", i))
	}
	if n := r.lines("msg=flood"); n != addressesPerCause {
		t.Errorf("%d lines", n)
	}
	for i := range 2 * causesMax {
		r.srv.logs.warn("many", fmt.Sprint("cause ", i), "address")
	}
	if n := r.lines("msg=many"); n > causesMax {
		t.Errorf("%d lines", n)
	}
	r.srv.logs.mu.Lock()
	r.srv.logs.since = time.Now().Add(-logEvery)
	r.srv.logs.mu.Unlock()
	r.srv.logs.warn("flood", "one cause", "address 0")
	if r.lines("left out") != 1 || r.lines("msg=flood") != addressesPerCause+1 {
		t.Error("the next minute does not begin anew")
	}
}
