package target

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/san/target/targettest"
	"steadfast/scsi"
)

// TestReinstatement logs in twice with one name and ISID: the old session's
// write lands before the new session begins.
func TestReinstatement(t *testing.T) {
	r := newRig(t, Config{})
	entered, release := make(chan struct{}, 1), make(chan struct{})
	r.disk.Gate = func(*scsi.Task) {
		entered <- struct{}{}
		<-release
	}
	old, _ := r.login("")
	r.send(old, old.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...), pattern(512, 1))
	<-entered
	done := make(chan error, 1)
	c := r.dial()
	go func() {
		status, _, err := c.Login(testNames)
		if err == nil && status != iscsi.LoginSuccess {
			err = fault.New(fault.Internal, "%v", status)
		}
		done <- err
	}()
	r.expectEnd(old)
	select {
	case err := <-done:
		t.Fatalf("logged in before the old session's write landed: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := len(r.srv.Sessions()); n != 1 {
		t.Errorf("%d sessions", n)
	}
	r.alive(c)
	// Another ISID is another session.
	c2 := r.dial()
	c2.ISID[5] = 2
	if status, _, err := c2.Login(testNames); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	r.alive(c)
	r.alive(c2)

	// A second connection, and the connection again, are refused cleanly.
	for _, tc := range []struct {
		tsih, cid uint16
		want      iscsi.LoginStatus
	}{
		{c.TSIH, 1, iscsi.LoginTooManyConnections},
		{c.TSIH, 0, iscsi.LoginCannotInclude},
		{4711, 0, iscsi.LoginNoSession},
		{c2.TSIH, 0, iscsi.LoginNoSession}, // another ISID's
	} {
		x := r.dial()
		x.TSIH, x.CID = tc.tsih, tc.cid
		if status, _, err := x.Login(testNames); err != nil || status != tc.want {
			t.Errorf("tsih %d cid %d: %v, %v", tc.tsih, tc.cid, status, err)
		}
		r.expectEnd(x)
	}
	r.alive(c)
}

func TestLogout(t *testing.T) {
	r := newRig(t, Config{})
	for _, tc := range []struct {
		reason uint8
		cid    uint16
		want   uint8
	}{
		{iscsi.LogoutRecovery, 0, iscsi.LogoutNoRecovery},
		{iscsi.LogoutCloseConnection, 9, iscsi.LogoutCIDNotFound},
		{iscsi.LogoutCloseConnection, 0, iscsi.LogoutDone},
		{iscsi.LogoutCloseSession, 0, iscsi.LogoutDone},
	} {
		c, _ := r.login("")
		h := c.Request(iscsi.OpLogoutReq)
		h.SetLogoutReason(tc.reason)
		h.SetCID(tc.cid)
		r.send(c, h, nil)
		a, _ := r.expect(c, iscsi.OpLogoutResp)
		if a.Response() != tc.want {
			t.Errorf("%+v: response %d", tc, a.Response())
		}
		if tc.want == iscsi.LogoutDone {
			r.expectEnd(c)
		} else {
			r.alive(c)
		}
	}
	// With a write that waits for its data: it is ended, and the logout done.
	c, _ := r.login("")
	r.send(c, c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 1024, targettest.Write10(0, 2)...), nil)
	r.expect(c, iscsi.OpR2T)
	r.send(c, c.Request(iscsi.OpLogoutReq), nil)
	r.expect(c, iscsi.OpLogoutResp)
	r.expectEnd(c)
}

func TestPings(t *testing.T) {
	r := newRig(t, Config{Times: Times{NopInterval: 10 * time.Second, NopTimeout: 20 * time.Second}})
	c, _ := r.login("")
	r.alive(c)
	s := r.session(c)
	s.tick(time.Second) // heard something since
	s.tick(9 * time.Second)
	s.tick(time.Second)
	a, _ := r.expect(c, iscsi.OpNopIn)
	if a.InitiatorTag() != iscsi.NoTag || a.TargetTag() == iscsi.NoTag {
		t.Fatalf("ping %x", a)
	}
	h := c.Request(iscsi.OpNopOut)
	h.SetImmediate()
	c.CmdSN--
	h.SetInitiatorTag(iscsi.NoTag)
	h.SetTargetTag(a.TargetTag())
	r.send(c, h, nil)
	r.alive(c)
	s.tick(time.Second)
	s.tick(10 * time.Second)
	r.expect(c, iscsi.OpNopIn)
	s.tick(19 * time.Second)
	r.alive(c) // any PDU proves life
	s.tick(time.Second)
	s.tick(10 * time.Second)
	r.expect(c, iscsi.OpNopIn)
	s.tick(20 * time.Second)
	r.expectEnd(c)
	<-s.gone
}

func TestRejects(t *testing.T) {
	r := newRig(t, Config{})
	got := make(chan int, 1)
	r.disk.Gate = func(t *scsi.Task) { got <- len(t.CDB) }
	c, _ := r.login("")
	for _, tc := range []struct {
		op   iscsi.Opcode
		want iscsi.RejectReason
	}{
		{iscsi.OpSNACK, iscsi.RejectSNACK},
		{iscsi.OpLoginReq, iscsi.RejectProtocolError},
		{0x1c, iscsi.RejectNotSupported},
		{iscsi.OpDataIn, iscsi.RejectNotSupported},
	} {
		var h iscsi.Header
		h.SetOpcode(tc.op)
		h.SetFlags(iscsi.FlagFinal)
		r.send(c, h, []byte("data"))
		a, data := r.expect(c, iscsi.OpReject)
		h.SetDataLength(4)
		if iscsi.RejectReason(a.Response()) != tc.want || a.InitiatorTag() != iscsi.NoTag {
			t.Errorf("%v: reason %#x", tc.op, a.Response())
		}
		if diff := cmp.Diff(h[:], data); diff != "" {
			t.Error(diff)
		}
	}
	// An additional header nobody can read.
	h := c.Command(iscsi.FlagFinal, 0, 0)
	if err := c.Send(h, []byte{0, 9, 1, 0}, nil); err != nil {
		t.Fatal(err)
	}
	r.expect(c, iscsi.OpReject)
	// An extended CDB reaches the logical unit whole.
	h = c.Command(iscsi.FlagFinal|iscsi.FlagRead, 512, targettest.Read10(0, 1)...)
	if err := c.Send(h, iscsi.AppendAHS(nil, iscsi.AHS{ExtendedCDB: make([]byte, 16)}), nil); err != nil {
		t.Fatal(err)
	}
	r.expect(c, iscsi.OpDataIn)
	if n := <-got; n != 32 {
		t.Errorf("CDB of %d bytes", n)
	}
}

func TestAdministration(t *testing.T) {
	r := newRig(t, Config{Times: Times{Logout: 5 * time.Second}})
	if err := r.srv.AddTarget(Target{Name: testTarget}); !fault.Is(err, fault.Exists) {
		t.Errorf("again: %v", err)
	}
	for _, bad := range []Target{
		{Name: "x"},
		{Name: "iqn.2026-11.test:b", Groups: []uint16{0}},
		{Name: "iqn.2026-11.test:b", Access: []Access{{Initiator: "x"}}},
		{Name: "iqn.2026-11.test:b", Access: []Access{{Initiator: testInitiator, Auth: iscsi.Auth{In: &iscsi.Credentials{Name: "n"}}}}},
	} {
		if err := r.srv.AddTarget(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	c, _ := r.login("InitiatorAlias=a host\nHeaderDigest=CRC32C\n")
	r.alive(c)
	list := r.srv.Sessions()
	if len(list) != 1 || list[0].Initiator != testInitiator || list[0].Target != testTarget || list[0].InitiatorAlias != "a host" ||
		list[0].Commands != 1 || !list[0].HeaderDigest || list[0].DataDigest || list[0].Group != 1 || list[0].BytesIn == 0 {
		t.Errorf("%+v", list)
	}
	if err := r.srv.DropSession(4711); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := r.srv.DropSession(list[0].TSIH); err != nil {
		t.Error(err)
	}
	r.expectEnd(c)

	// Withdrawn access ends the session; others stay.
	c, _ = r.login("")
	if err := r.srv.SetAccess(testTarget, []Access{{Initiator: testInitiator}, {Initiator: "iqn.2026-11.test:j"}}); err != nil {
		t.Fatal(err)
	}
	r.alive(c)
	if err := r.srv.SetAccess(testTarget, []Access{{Initiator: "iqn.2026-11.test:j"}}); err != nil {
		t.Fatal(err)
	}
	r.expectEnd(c)
	if status, _, _ := r.dial().Login(testNames); status != iscsi.LoginForbidden {
		t.Errorf("after withdrawal: %v", status)
	}
	if err := r.srv.SetAccess("iqn.2026-11.test:none", nil); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := r.srv.SetAccess(testTarget, []Access{{Initiator: AnyInitiator}}); err != nil {
		t.Fatal(err)
	}

	// Removing a target asks its initiators to log out first.
	c, _ = r.login("")
	removed := make(chan error)
	go func() { removed <- r.srv.RemoveTarget(context.Background(), testTarget) }()
	a, _ := r.expect(c, iscsi.OpAsync)
	if a.AsyncEvent() != iscsi.AsyncLogout || a.AsyncParameter(3) != 5 {
		t.Errorf("event %d, %d s", a.AsyncEvent(), a.AsyncParameter(3))
	}
	r.send(c, c.Request(iscsi.OpLogoutReq), nil)
	r.expect(c, iscsi.OpLogoutResp)
	if err := <-removed; err != nil {
		t.Error(err)
	}
	if status, _, _ := r.dial().Login(testNames); status != iscsi.LoginNotFound {
		t.Errorf("after removal: %v", status)
	}
	if err := r.srv.RemoveTarget(context.Background(), testTarget); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestPortals(t *testing.T) {
	r := newRig(t, Config{})
	for _, bad := range []Portal{
		{Address: "127.0.0.1:0"},
		{Address: "nonsense", Group: 1},
		{Address: "host.example:1", Group: 1},
		{Address: "127.0.0.1:http", Group: 1},
		{Address: ":0", Group: 9, Alias: true},
		{Address: "[fe80::1%lo]:0", Group: 9, Alias: true},
		{Address: "127.0.0.2:0", Group: 1, Alias: true},
	} {
		if _, err := r.srv.Listen(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := r.srv.Listen(Portal{Address: r.addr, Group: 1}); !fault.Is(err, fault.Busy) {
		t.Errorf("taken address: %v", err)
	}
	six, err := r.srv.Listen(Portal{Address: "[::1]:0", Group: 2})
	if err != nil {
		t.Skipf("no IPv6: %v", err)
	}
	if err := r.srv.AddTarget(Target{Name: "iqn.2026-11.test:two", Groups: []uint16{2}, Access: []Access{{Initiator: testInitiator}}}); err != nil {
		t.Fatal(err)
	}
	if err := r.srv.AddTarget(Target{Name: "iqn.2026-11.test:secret", Access: []Access{{Initiator: "iqn.2026-11.test:j"}}}); err != nil {
		t.Fatal(err)
	}
	// Discovery tells of what the initiator may reach, with all portals.
	d := r.dial()
	if status, _, err := d.Login("InitiatorName=" + testInitiator + "\nSessionType=Discovery\n"); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	ask := func(c *targettest.Client, text string) string {
		t.Helper()
		h := c.Request(iscsi.OpTextReq)
		h.SetTargetTag(iscsi.NoTag)
		r.send(c, h, []byte(text+"\x00"))
		var got strings.Builder
		for {
			a, data := r.expect(c, iscsi.OpTextResp)
			got.Write(data)
			if a.Final() {
				break
			}
			h = c.Request(iscsi.OpTextReq)
			h.SetTargetTag(a.TargetTag())
			r.send(c, h, nil)
		}
		return strings.ReplaceAll(got.String(), "\x00", "\n")
	}
	want := "TargetName=" + testTarget + "\nTargetAddress=" + r.addr + ",1\nTargetAddress=" + six.String() + ",2\n" +
		"TargetName=iqn.2026-11.test:two\nTargetAddress=" + six.String() + ",2\n"
	if diff := cmp.Diff(want, ask(d, "SendTargets=All")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff("TargetName=iqn.2026-11.test:two\nTargetAddress="+six.String()+",2\n", ask(d, "SendTargets=iqn.2026-11.test:two")); diff != "" {
		t.Error(diff)
	}
	if got := ask(d, "SendTargets=iqn.2026-11.test:secret"); got != "" {
		t.Errorf("a target that is not ours: %q", got)
	}
	// The same in pieces.
	d2 := r.dial()
	d2.ISID[4] = 7
	if status, _, err := d2.Login("InitiatorName=" + testInitiator + "\nSessionType=Discovery\nMaxRecvDataSegmentLength=512\n"); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	for i := range 20 {
		if err := r.srv.AddTarget(Target{Name: "iqn.2026-11.test:many" + string(rune('a'+i)), Access: []Access{{Initiator: testInitiator}}}); err != nil {
			t.Fatal(err)
		}
	}
	if got := ask(d2, "SendTargets=All"); strings.Count(got, "TargetName=") != 22 {
		t.Errorf("%q", got)
	}
	// SCSI has no place in a discovery session.
	r.send(d, d.Command(iscsi.FlagFinal, 0, 0), nil)
	r.expect(d, iscsi.OpReject)
	// In a normal session: the own target only.
	c, _ := r.login("")
	own := "TargetName=" + testTarget + "\nTargetAddress=" + r.addr + ",1\nTargetAddress=" + six.String() + ",2\n"
	for _, q := range []string{"SendTargets=", "SendTargets=" + testTarget} {
		if diff := cmp.Diff(own, ask(c, q)); diff != "" {
			t.Error(q, diff)
		}
	}
	for q, want := range map[string]string{
		"SendTargets=iqn.2026-11.test:two": "SendTargets=Reject\n", "SendTargets=All": "SendTargets=Reject\n",
		"sENDtARGETS=All": "sENDtARGETS=NotUnderstood\n", "MaxBurstLength=512": "MaxBurstLength=Reject\n",
		"MaxRecvDataSegmentLength=1024": "",
	} {
		if got := ask(c, q); got != want {
			t.Errorf("%s: %q", q, got)
		}
	}
	// The target of group 2 is not behind portal 1.
	x := r.dial()
	if status, _, _ := x.Login("InitiatorName=" + testInitiator + "\nTargetName=iqn.2026-11.test:two\n"); status != iscsi.LoginNotFound {
		t.Errorf("wrong group: %v", status)
	}
	// A portal can go while its sessions stay.
	if err := r.srv.Unlisten("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	if _, err := targettest.Dial(r.addr); err == nil {
		t.Error("the portal is still open")
	}
	if err := r.srv.Unlisten("127.0.0.1:0"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	r.alive(c)
}

// TestShutdown asks, waits for those who follow, and drops the rest.
func TestShutdown(t *testing.T) {
	r := newRig(t, Config{Times: Times{Logout: 3 * time.Second}})
	c, _ := r.login("")
	half := r.dial() // in login
	deaf := r.dial()
	deaf.ISID[5] = 9
	if status, _, err := deaf.Login(testNames); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	closed := make(chan struct{})
	go func() { r.srv.Close(ctx); close(closed) }()
	r.expect(c, iscsi.OpAsync)
	r.send(c, c.Request(iscsi.OpLogoutReq), nil)
	r.expect(c, iscsi.OpLogoutResp)
	r.expectEnd(half)
	select {
	case <-closed:
		t.Error("closed with a session left")
	default:
	}
	cancel()
	<-closed
	r.expectEnd(deaf)
	if _, err := r.srv.Listen(Portal{Address: "127.0.0.1:0", Group: 1}); !fault.Is(err, fault.Canceled) {
		t.Error(err)
	}
}
