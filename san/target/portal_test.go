package target

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"steadfast/fault"
	"steadfast/internal/netnstest"
	"steadfast/iscsi"
	"steadfast/san/target/targettest"
	"steadfast/scsi"
)

const (
	aliasTag    = 4097
	aliasTarget = "iqn.2026-11.test:group"
)

// listen opens a portal.
func (r *rig) listen(p Portal) string {
	r.t.Helper()
	at, err := r.srv.Listen(p)
	if err != nil {
		r.t.Fatal(err)
	}
	return at.String()
}

// withAlias adds a target behind the alias tag, and listens for it on an
// address of loopback that is not the node's own. The logins are admitted.
func (r *rig) withAlias() string {
	r.t.Helper()
	if err := r.srv.AddTarget(Target{Name: aliasTarget, Groups: []uint16{aliasTag}, Access: []Access{{Initiator: testInitiator}}}); err != nil {
		r.t.Fatal(err)
	}
	at := r.listen(Portal{Address: "127.0.0.9:0", Group: aliasTag, Alias: true})
	r.srv.AdmitLogins(aliasTag)
	return at
}

// dialTo connects to an address.
func (r *rig) dialTo(address string) *targettest.Client {
	r.t.Helper()
	c, err := targettest.Dial(address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

const aliasNames = "InitiatorName=" + testInitiator + "\nTargetName=" + aliasTarget + "\n"

// loginTo logs in to a target at an address.
func (r *rig) loginTo(address, names string) (*targettest.Client, string) {
	r.t.Helper()
	c := r.dialTo(address)
	status, text, err := c.Login(names)
	if err != nil || status != iscsi.LoginSuccess {
		r.t.Fatalf("login at %s: %v, %v", address, status, err)
	}
	return c, text
}

// discover returns what SendTargets=All says at an address, on one line.
func (r *rig) discover(address string) string {
	r.t.Helper()
	c, _ := r.loginTo(address, "InitiatorName="+testInitiator+"\nSessionType=Discovery\n")
	defer c.Close()
	h := c.Request(iscsi.OpTextReq)
	h.SetTargetTag(iscsi.NoTag)
	r.send(c, h, []byte("SendTargets=All\x00"))
	_, data := r.expect(c, iscsi.OpTextResp)
	return strings.TrimSpace(strings.ReplaceAll(string(data), "\x00", " "))
}

// groupAt logs in at an address and returns the group that the login says.
func (r *rig) groupAt(address string) string {
	r.t.Helper()
	c, text := r.loginTo(address, "InitiatorName="+testInitiator+"\nTargetName=iqn.2026-11.test:both\n")
	defer c.Close()
	for line := range strings.Lines(text) {
		if tag, ok := strings.CutPrefix(strings.TrimSpace(line), "TargetPortalGroupTag="); ok {
			return tag
		}
	}
	r.t.Fatalf("no group in %q", text)
	return ""
}

// TestAliasBesideWildcard opens an alias portal before, after and without one
// on every address of the same port: connections to the alias are the alias
// portal's, and the port is the server's alone.
func TestAliasBesideWildcard(t *testing.T) {
	for _, alias := range []string{"127.0.0.9", "::1"} {
		for _, wildcard := range []string{"", "0.0.0.0", "::"} {
			t.Run(alias+" "+wildcard, func(t *testing.T) { aliasBesideWildcard(t, alias, wildcard) })
		}
	}
}

func aliasBesideWildcard(t *testing.T, alias, wildcard string) {
	r := newRig(t, Config{})
	both := Target{Name: "iqn.2026-11.test:both", Groups: []uint16{2, aliasTag}, Access: []Access{{Initiator: testInitiator}}}
	if err := r.srv.AddTarget(both); err != nil {
		t.Fatal(err)
	}
	first := r.listen(Portal{Address: net.JoinHostPort(wildcard, "0"), Group: 2})
	_, port, _ := net.SplitHostPort(first)
	every, one, own := net.JoinHostPort(wildcard, port), net.JoinHostPort(alias, port), net.JoinHostPort("127.0.0.1", port)
	expect := func(when, aliasGroup string) {
		t.Helper()
		if got := r.groupAt(one); got != aliasGroup {
			t.Errorf("%s: the alias answers as group %s", when, got)
		}
		if got := r.groupAt(own); got != "2" {
			t.Errorf("%s: the node's address answers as group %s", when, got)
		}
	}
	expect("no alias", "2")
	if at := r.listen(Portal{Address: one, Group: aliasTag, Alias: true}); at != one {
		t.Errorf("bound to %s, not %s", at, one)
	}
	if _, err := r.srv.Listen(Portal{Address: one, Group: aliasTag, Alias: true}); !fault.Is(err, fault.Exists) {
		t.Errorf("twice: %v", err)
	}
	r.srv.AdmitLogins(aliasTag)
	expect("alias second", strconv.Itoa(aliasTag))

	// The wildcard goes: the alias has its own socket now.
	if err := r.srv.Unlisten(net.JoinHostPort(wildcard, "0")); err != nil {
		t.Fatal(err)
	}
	if got := r.groupAt(one); got != strconv.Itoa(aliasTag) {
		t.Errorf("alias alone: group %s", got)
	}
	if _, err := targettest.Dial(own); err == nil {
		t.Error("the node's address is still served")
	}
	// It comes back, although the alias is there.
	r.listen(Portal{Address: every, Group: 2})
	expect("alias first", strconv.Itoa(aliasTag))

	// The alias goes: its address is the node's.
	if err := r.srv.Unlisten(one); err != nil {
		t.Fatal(err)
	}
	expect("alias gone", "2")
}

// TestPortOfAnother finds ports in use: by another program's sockets, with
// SO_REUSEPORT or not, a portal does not open, and an alias portal that is there
// survives the attempt.
func TestPortOfAnother(t *testing.T) {
	r := newRig(t, Config{})
	other := newRig(t, Config{})
	taken := other.listen(Portal{Address: "127.0.0.9:0", Group: aliasTag, Alias: true})
	_, port, _ := net.SplitHostPort(taken)
	for _, p := range []Portal{
		{Address: ":" + port, Group: 1}, {Address: taken, Group: aliasTag, Alias: true}, {Address: taken, Group: 1},
	} {
		if _, err := r.srv.Listen(p); !fault.Is(err, fault.Busy) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	// An alias of the same port is possible, and stays when the wildcard fails.
	mine := r.listen(Portal{Address: "127.0.0.8:" + port, Group: aliasTag, Alias: true})
	r.srv.AdmitLogins(aliasTag)
	if _, err := r.srv.Listen(Portal{Address: ":" + port, Group: 1}); !fault.Is(err, fault.Busy) {
		t.Errorf("beside an alias of ours: %v", err)
	}
	r.loginTo(mine, "InitiatorName="+testInitiator+"\nSessionType=Discovery\n")
	// What the server has nobody joins.
	r.listen(Portal{Address: ":0", Group: 3})
	for _, p := range r.srv.ownPortals() {
		if l, err := reusing(p.bound.String()); err == nil {
			_ = l.Close()
			t.Errorf("another socket at %s", p.bound)
		}
	}
	if l, err := reusing(mine); err == nil {
		_ = l.Close()
		t.Errorf("another socket at %s", mine)
	}
}

// reusing listens with SO_REUSEPORT.
func reusing(address string) (net.Listener, error) {
	config := net.ListenConfig{Control: reusePort}
	return config.Listen(context.Background(), "tcp", address)
}

// TestDiscoveryAtAlias asks the alias portal and the node's own: each tells of
// itself only.
func TestDiscoveryAtAlias(t *testing.T) {
	r := newRig(t, Config{})
	alias := r.withAlias()
	r.listen(Portal{Address: "127.0.0.8:0", Group: aliasTag, Alias: true})
	both := Target{Name: "iqn.2026-11.test:path", Groups: []uint16{1, aliasTag}, Access: []Access{{Initiator: testInitiator}}}
	if err := r.srv.AddTarget(both); err != nil {
		t.Fatal(err)
	}
	path := " TargetName=iqn.2026-11.test:path TargetAddress="
	want := "TargetName=" + aliasTarget + " TargetAddress=" + alias + ",4097" + path + alias + ",4097"
	if diff := cmp.Diff(want, r.discover(alias)); diff != "" {
		t.Error("at the alias:", diff)
	}
	want = strings.TrimSpace(path+r.addr+",1") + " TargetName=" + testTarget + " TargetAddress=" + r.addr + ",1"
	if diff := cmp.Diff(want, r.discover(r.addr)); diff != "" {
		t.Error("at the node's own:", diff)
	}
	// What is not shown is not there: the node's own target does not move.
	for _, tc := range []struct{ at, name string }{{alias, testTarget}, {r.addr, aliasTarget}} {
		status, _, err := r.dialTo(tc.at).Login("InitiatorName=" + testInitiator + "\nTargetName=" + tc.name + "\n")
		if err != nil || status != iscsi.LoginNotFound {
			t.Errorf("%s at %s: %v, %v", tc.name, tc.at, status, err)
		}
	}
	// A normal session asks as well.
	c, _ := r.loginTo(alias, aliasNames)
	h := c.Request(iscsi.OpTextReq)
	h.SetTargetTag(iscsi.NoTag)
	r.send(c, h, []byte("SendTargets=\x00"))
	_, data := r.expect(c, iscsi.OpTextResp)
	want = "TargetName=" + aliasTarget + "\x00TargetAddress=" + alias + ",4097\x00"
	if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Error("in a session:", diff)
	}
}

// TestAliasNames finds the same names on two nodes: the portal group's tag, and
// the ports that reservations go by.
func TestAliasNames(t *testing.T) {
	var said [2]string
	var seen [2]scsi.Nexus
	for i := range seen {
		r := newRig(t, Config{})
		ports := make(chan scsi.Nexus, 1)
		r.disk.Deny = func(n scsi.Nexus) error { ports <- n; return nil }
		_, said[i] = r.loginTo(r.withAlias(), aliasNames)
		seen[i] = <-ports
	}
	want := scsi.Nexus{
		InitiatorName: testInitiator, InitiatorPort: testInitiator + ",i,0x800000010000",
		TargetName: aliasTarget, TargetPort: 0x1001,
	}
	if seen[0] != want || seen[1] != want {
		t.Errorf("%+v", seen)
	}
	if !strings.Contains(said[0], "TargetPortalGroupTag=4097") || said[0] != said[1] {
		t.Errorf("%q", said)
	}
}

// TestAliasArrives listens on addresses that are not there yet, in a namespace
// of its own; they come, and answer.
func TestAliasArrives(t *testing.T) {
	for _, wildcard := range []bool{false, true} {
		ns, sw := netnstest.New(t), netnstest.NewSwitch(t)
		r := newRig(t, Config{})
		var at []string
		portals := []Portal{
			{Address: "192.0.2.7:3260", Group: aliasTag, Alias: true}, {Address: "[2001:db8::7]:3260", Group: aliasTag, Alias: true},
		}
		if wildcard {
			portals = append([]Portal{{Address: ":3260", Group: 2}}, portals...)
		}
		for _, p := range portals {
			if err := ns.Do(func() error { _, err := r.srv.Listen(p); return err }); err != nil {
				t.Fatal(err)
			}
			if p.Alias {
				at = append(at, p.Address)
			}
		}
		r.srv.AdmitLogins(aliasTag)
		sw.Attach(t, ns, "eth0", netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("2001:db8::7/64"))
		for _, a := range at {
			var c *targettest.Client
			// IPv6 is there only when the kernel has noticed the link.
			until(t, "it is reached: "+a, func() bool {
				return ns.Do(func() (err error) { c, err = targettest.Dial(a); return err }) == nil
			})
			t.Cleanup(c.Close)
			if err := <-logIn(c, "InitiatorName="+testInitiator+"\nSessionType=Discovery\n"); err != nil {
				t.Errorf("%s, wildcard %v: %v", a, wildcard, err)
			}
		}
		for _, s := range r.srv.Sessions() {
			if s.Group != aliasTag || s.Local.String() != s.Portal || s.Remote.String() != s.Address {
				t.Errorf("wildcard %v: %+v", wildcard, s)
			}
		}
	}
}

// TestHeldTool runs libiscsi's iscsi-ls against an alias portal whose logins
// are admitted after a second: it is as if the network were slow.
func TestHeldTool(t *testing.T) {
	tool, err := exec.LookPath("iscsi-ls")
	if err != nil {
		t.Skip("SKIP: iscsi-ls is not here")
	}
	r := newRig(t, Config{})
	alias := r.withAlias()
	r.srv.HoldLogins(aliasTag)
	const wait = time.Second
	began := time.Now()
	time.AfterFunc(wait, func() { r.srv.AdmitLogins(aliasTag) })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	//nolint:gosec // The tool is the one that is installed.
	out, err := exec.CommandContext(ctx, tool, "-i", testInitiator, "-s", "iscsi://"+alias).CombinedOutput()
	if took := time.Since(began); err != nil || took < wait || took > wait+wait/2 || !strings.Contains(string(out), aliasTarget) ||
		!strings.Contains(string(out), "Portal:"+alias+",4097") || !strings.Contains(string(out), "Lun:0") {
		t.Errorf("%v after %v: %s", err, took, out)
	}
}
