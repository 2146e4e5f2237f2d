package target

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/san/target/targettest"
)

// handedRig is a rig with a target behind an alias that another process holds:
// here, a listener of the test's.
func handedRig(t *testing.T) (*rig, net.Listener) {
	r := newRig(t, Config{})
	if err := r.srv.AddTarget(Target{Name: aliasTarget, Groups: []uint16{aliasTag}, Access: []Access{{Initiator: testInitiator}}}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return r, l
}

// connect makes a connection to the listener, and returns both ends.
func connect(t *testing.T, l net.Listener) (*targettest.Client, net.Conn) {
	t.Helper()
	c, err := targettest.Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c, conn
}

// TestAdopt: a connection that is handed over is one of the alias: discovery
// tells the address it came to, and it ends with the group.
func TestAdopt(t *testing.T) {
	r, l := handedRig(t)
	r.srv.AdmitLogins(aliasTag)
	finder, conn := connect(t, l)
	if err := r.srv.Adopt(conn, aliasTag); err != nil {
		t.Fatal(err)
	}
	if err := <-logIn(finder, "InitiatorName="+testInitiator+"\nSessionType=Discovery\n"); err != nil {
		t.Fatal(err)
	}
	h := finder.Request(iscsi.OpTextReq)
	h.SetTargetTag(iscsi.NoTag)
	r.send(finder, h, []byte("SendTargets=All\x00"))
	_, text := r.expect(finder, iscsi.OpTextResp)
	want := fmt.Sprintf("TargetName=%s\x00TargetAddress=%v,%d\x00", aliasTarget, l.Addr(), aliasTag)
	if string(text) != want {
		t.Errorf("SendTargets: %q; want %q", text, want)
	}
	c, conn := connect(t, l)
	if err := r.srv.Adopt(conn, aliasTag); err != nil {
		t.Fatal(err)
	}
	if err := <-logIn(c, aliasNames); err != nil {
		t.Fatal(err)
	}
	r.alive(c)
	if got := r.srv.Connections(aliasTag); len(got) != 2 || got[0].Local.String() != l.Addr().String() {
		t.Errorf("connections %v", got)
	}
	r.srv.DropPortalGroup(aliasTag)
	// There is no gate and no tickle: the end itself must be heard.
	if _, _, err := c.Recv(); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("after the group went: %v", err)
	}
}

// TestAdoptRefused: only a group that was admitted takes connections, and what is
// refused stays the caller's.
func TestAdoptRefused(t *testing.T) {
	r, l := handedRig(t)
	_, conn := connect(t, l)
	refuse := func(want fault.Kind, group uint16) {
		t.Helper()
		if err := r.srv.Adopt(conn, group); !fault.Is(err, want) {
			t.Errorf("group %d: %v; want %v", group, err, want)
		}
	}
	if r.srv.Admits(aliasTag) {
		t.Error("a group that nobody has told of is admitted")
	}
	refuse(fault.Fenced, aliasTag)
	r.srv.AdmitLogins(aliasTag)
	if !r.srv.Admits(aliasTag) {
		t.Error("not admitted")
	}
	r.srv.Silence(aliasTag)
	if r.srv.Admits(aliasTag) {
		t.Error("admitted after it was silenced")
	}
	refuse(fault.Fenced, aliasTag)
	refuse(fault.Invalid, 0)
	one, _ := net.Pipe()
	if err := r.srv.Adopt(one, 1); !fault.Is(err, fault.Invalid) {
		t.Errorf("a pipe: %v", err)
	}
	if s := r.srv.Stats(); s.HalfOpen != 0 {
		t.Errorf("left behind: %+v", s)
	}
	// It was not touched: it goes on elsewhere.
	r.srv.AdmitLogins(aliasTag)
	if err := r.srv.Adopt(conn, aliasTag); err != nil {
		t.Error(err)
	}
}
