package main

import (
	"bytes"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/handed"
	"steadfast/node/handed/trial"
)

func newPair(t *testing.T) (*pair, *bytes.Buffer) {
	out := &bytes.Buffer{}
	a := &app{out: out, errs: out, getenv: func(string) string { return "" }}
	return &pair{site: site{a, t.TempDir()}, screen: newScreen(out), aliases: map[string]string{}}, out
}

// TestPlace: a cluster's addresses are chosen once, and one that is in use later is
// told with what it is.
func TestPlace(t *testing.T) {
	p, _ := newPair(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := p.place(400); err != nil {
		t.Fatal(err)
	}
	first := maps.Clone(p.members)
	if len(first) != 3 || first["a"] == first["b"] || first["b"] == first["w"] {
		t.Fatalf("members %v", first)
	}
	if err := p.place(410); err != nil || p.members["a"] != first["a"] {
		t.Errorf("again: %v, %v", p.members, err)
	}
	// Hosts come to what there is.
	p.vm = &guest{}
	if err := p.place(420); err != nil || len(p.members) != 9 || p.members["a"] != first["a"] || p.members["h1"] == p.members["h2"] || p.members["h3"] == p.members["h3.logging"] {
		t.Errorf("with hosts: %v, %v", p.members, err)
	}
	p.members["h2"] = l.Addr().String()
	if err := writeJSON(p.path(membersFile), p.members); err != nil {
		t.Fatal(err)
	}
	if err := p.place(400); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "member h2 of the cluster") {
		t.Errorf("in use: %v", err)
	}
	// Those that are not started may be elsewhere.
	p.vm = nil
	if err := p.place(400); err != nil || p.members["h2"] != l.Addr().String() {
		t.Errorf("without hosts: %v, %v", p.members, err)
	}
	first["b"] = l.Addr().String()
	if err := writeJSON(p.path(membersFile), first); err != nil {
		t.Fatal(err)
	}
	if err := p.place(400); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "member b of the cluster") {
		t.Errorf("in use: %v", err)
	}
	if err := writeJSON(p.path(membersFile), []string{"?"}); err != nil {
		t.Fatal(err)
	}
	if err := p.place(400); !fault.Is(err, fault.Corrupt) {
		t.Errorf("not readable: %v", err)
	}
}

// TestHoldAll: aliases are held as groups come and go; one that cannot be is said once.
func TestHoldAll(t *testing.T) {
	p, out := newPair(t)
	p.keeper = handed.NewKeeper(handed.Options{})
	defer p.keeper.Close()
	var err error
	if p.portal, err = p.keeper.Hold(netip.MustParseAddrPort("127.0.0.1:0"), upGroup); err != nil {
		t.Fatal(err)
	}
	group := func(name string, aliases ...string) *steadfastv1.Group {
		g := &steadfastv1.Group{Name: name}
		for _, a := range aliases {
			g.Aliases = append(g.Aliases, &steadfastv1.GroupAlias{Address: a})
		}
		return g
	}
	second := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), p.portal.Port())
	for range 2 {
		p.holdAll([]*steadfastv1.Group{group(upGroup, "127.0.0.1/8"), group("g2", "127.0.0.2/8", "192.0.2.1/24")})
	}
	if held := p.keeper.Held(); len(held) != 2 || held[second] != "g2" || held[p.portal] != upGroup {
		t.Errorf("held %v", held)
	}
	text := out.String()
	if strings.Count(text, `group "g2" is reached at `) != 1 || strings.Count(text, "192.0.2.1/24") != 1 {
		t.Errorf("said:\n%s", text)
	}
	p.holdAll(nil)
	if held := p.keeper.Held(); len(held) != 1 || held[p.portal] != upGroup {
		t.Errorf("held %v", held)
	}
}

// TestNewest: a node that was just started does not know the newest owner.
func TestNewest(t *testing.T) {
	old, now := &steadfastv1.Group{Epoch: 1, Owner: "a"}, &steadfastv1.Group{Epoch: 2, Owner: "b"}
	other := &steadfastv1.Group{Epoch: 2, Owner: "b"}
	for _, c := range []struct {
		seen []*steadfastv1.Group
		want *steadfastv1.Group
	}{
		{[]*steadfastv1.Group{nil, nil}, nil},
		{[]*steadfastv1.Group{old, nil}, old},
		{[]*steadfastv1.Group{old, now}, now},
		{[]*steadfastv1.Group{now, old}, now},
		{[]*steadfastv1.Group{other, now}, now}, // the owner's view
	} {
		if got := newest(c.seen); got != c.want {
			t.Errorf("%v: %v; want %v", c.seen, got, c.want)
		}
	}
}

// TestLines: what is wrong is not to be overlooked.
func TestLines(t *testing.T) {
	last, now := trial.Stats{Requests: 100}, trial.Stats{Requests: 500, Verified: 250, Longest: 1500 * time.Millisecond}
	if got, want := loadLine(last, now, 2*time.Second), "200 IO/s  verified 250  worst stall 1.50 s"; got != want {
		t.Errorf("%q; want %q", got, want)
	}
	now.Lost, now.Failed = 1, 2
	if got := loadLine(last, now, time.Second); !strings.HasSuffix(got, "  LOST 1  WRONG 0  ERRORS 2") {
		t.Errorf("%q", got)
	}
	for bytes, want := range map[int64]string{4 << 30: "4G", 1536 << 20: "1536M", 1<<40 | 1<<10: "1073741825K", 513: "513"} {
		if got := flagSize(bytes); got != want {
			t.Errorf("%d: %q; want %q", bytes, got, want)
		}
	}
}

// TestScreen: on a terminal the status is overwritten, and what is said stays.
func TestScreen(t *testing.T) {
	var out bytes.Buffer
	s := newScreen(&out)
	s.terminal = true
	s.status("one")
	s.status("two")
	s.say("said %d\n", 1)
	s.status("three")
	s.endStatus()
	if want := "one\r\x1b[Ktwo\r\x1b[Ksaid 1\nthree\n"; out.String() != want {
		t.Errorf("%q; want %q", out.String(), want)
	}
}

// TestLock: a lock is one process's, and one file's.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	f, err := lockFileIn(dir, lockFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockFileIn(dir, lockFile); !fault.Is(err, fault.Busy) {
		t.Errorf("twice: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err = lockFileIn(dir, lockFile); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if _, err := lockFileIn(filepath.Join(dir, "none"), lockFile); !fault.Is(err, fault.NotFound) {
		t.Errorf("no directory: %v", err)
	}
}
