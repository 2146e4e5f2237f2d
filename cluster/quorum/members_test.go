package quorum

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"steadfast/fault"
)

// mark makes a fingerprint of a word.
func mark(s string) Fingerprint {
	h := sha256.Sum256([]byte(s))
	return Fingerprint(hex.EncodeToString(h[:]))
}

type fataler interface{ Fatal(...any) }

// founded returns a cluster of node a, in its first life.
func founded(t fataler) *State {
	s, err := Found(Record{Name: "a", Role: RoleNode, Address: "a:1", Key: mark("a")})
	if err == nil {
		err = s.Apply(1, Command{Kind: KindBoot, By: Incarnation{"a", 1}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// crowded returns a cluster of nodes a and b and an open token, with a group.
func crowded(t fataler) *State {
	s := founded(t)
	for _, c := range []Command{
		{Kind: KindInvite, Revision: 1, Change: &Change{Token: mark("t"), Role: RoleNode, Expires: 10}},
		{Kind: KindJoin, Revision: 2, Change: &Change{Name: "b", ID: 2, Address: "b:1", Key: mark("b"), Token: mark("t")}},
		{Kind: KindInvite, Revision: 3, Change: &Change{Token: mark("u"), Role: RoleWitness, Expires: 10}},
		{Kind: KindCreate, Group: "g"},
	} {
		c.By = Incarnation{"a", 1}
		if err := s.Apply(2, c); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// playRoll plays "found a", "recover a" and commands of the membership such as
// "join 2 by a1 name=b id=2 address=b:1 key=kb token=t now=5".
func playRoll(out *strings.Builder, s *State, index uint64, f []string) *State {
	var err error
	switch f[0] {
	case "found":
		s, err = Found(Record{Name: Member(f[1]), Role: RoleNode, Address: f[1] + ":1", Key: mark("k" + f[1])})
	case "recover":
		err = s.Recover(Member(f[1]))
	default:
		err = s.Apply(index, readChange(f))
	}
	if err != nil {
		fmt.Fprintf(out, "%v: %v\n", fault.KindOf(err), err)
		return s
	}
	fmt.Fprintf(out, "revision %d:", s.Roll.Revision)
	for _, m := range s.Roll.Sorted() {
		fmt.Fprintf(out, " %s %d %s at %s", m.Name, m.ID, m.Role, m.Address)
		if m.Voter {
			out.WriteString(" votes")
		}
		out.WriteString(",")
	}
	fmt.Fprintf(out, " %d tokens\n", len(s.Roll.Tokens))
	return s
}

func readChange(f []string) Command {
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			panic(err)
		}
		return n
	}
	x := &Change{}
	c := Command{Kind: Kind(f[0]), Revision: Revision(number(f[1])), By: incarnation(f[3]), Change: x}
	for _, pair := range f[4:] {
		key, value, _ := strings.Cut(pair, "=")
		switch key {
		case "name":
			x.Name = Member(value)
		case "id":
			x.ID = uint64(number(value))
		case "address":
			x.Address = value
		case "key":
			x.Key = mark(value)
		case "token":
			x.Token = mark(value)
		case "role":
			x.Role = Role(value)
		case "expires":
			x.Expires = number(value)
		case "now":
			x.Now = number(value)
		default:
			panic(pair)
		}
	}
	return c
}

// drawChange draws a change that fits s more often than not.
func drawChange(t *rapid.T, s *State) *Change {
	name := rapid.SampledFrom([]Member{"a", "b", "c", "Bad name"}).Draw(t, "name")
	c := &Change{
		Name: name, Address: rapid.SampledFrom([]string{"a:1", "b:1", "c:1", "d:1", "[::1]:4", "none"}).Draw(t, "address"),
		Key: mark(string(name) + rapid.SampledFrom([]string{"", "2"}).Draw(t, "key")), Token: mark(rapid.SampledFrom([]string{"t", "u"}).Draw(t, "token")),
		Role: rapid.SampledFrom([]Role{RoleNode, RoleNode, RoleWitness, RoleHost, "king"}).Draw(t, "role"),
		Now:  rapid.Int64Range(0, 5).Draw(t, "now"), Expires: rapid.Int64Range(0, 20).Draw(t, "expires"),
		ID: s.Roll.LastID + 1,
	}
	if m := s.Roll.Members[name]; m != nil && rapid.Bool().Draw(t, "its number") {
		c.ID = m.ID
	}
	return c
}

// checkRoll holds what must be so of the membership after each command that was
// not refused.
func checkRoll(t *rapid.T, before, after *State, c Command) {
	b, a := before.Roll, after.Roll
	if !c.Kind.OfRoll() {
		if diff := cmp.Diff(b, a); diff != "" {
			t.Fatalf("%s changed the membership:\n%s", c.Kind, diff)
		}
		if len(b.Members) > 0 && b.Members[c.By.Member] == nil {
			t.Fatalf("%s by %s, which is not a member", c.Kind, c.By.Member)
		}
	} else if a.Revision != b.Revision+1 || c.Revision != b.Revision {
		t.Fatalf("%s for revision %d made %d of %d", c.Kind, c.Revision, a.Revision, b.Revision)
	}
	if err := a.check(); err != nil {
		t.Fatal(err)
	}
	for _, m := range a.Members {
		if old := b.ByID(m.ID); old == nil && (m.ID <= b.LastID || b.Tokens[m.Token] == nil || a.Tokens[m.Token] != nil || m.Voter) {
			t.Fatalf("%s brought in %+v", c.Kind, m)
		} else if old != nil && (old.Name != m.Name || old.Key != m.Key || old.Role != m.Role || old.Voter && !m.Voter) {
			t.Fatalf("%s made %+v of %+v", c.Kind, m, old)
		}
	}
	voters := 0
	for _, m := range a.Members {
		if m.Voter {
			voters++
		}
	}
	if len(b.Members) > 0 && voters == 0 {
		t.Fatalf("%s left nobody that votes", c.Kind)
	}
	if len(a.Members) == 0 {
		return
	}
	for _, g := range after.Group {
		for _, e := range g.Set {
			if m := a.Members[e.Member]; m == nil || m.Role != RoleNode {
				t.Fatalf("after %s %s is in a set: %+v", c.Kind, e.Member, m)
			}
		}
	}
}

// TestForms holds names, addresses and fingerprints to their forms.
func TestForms(t *testing.T) {
	for a, want := range map[string]bool{
		"h:1": true, "10.0.0.1:65535": true, "[::1]:7": true, "a.b-c:80": true,
		"": false, ":1": false, "h": false, "h:": false, "h:0": false, "h:65536": false, "h:x": false, "::1:7": false, "[]:7": false, "a b:1": false, "h/x:1": false,
	} {
		if got := validAddress(a); got != want {
			t.Errorf("address %q: %t, want %t", a, got, want)
		}
	}
	for m, want := range map[Member]bool{"a": true, "node-1.x": true, "7": true, "": false, "-a": false, "A": false, "a_b": false, Member(strings.Repeat("a", 64)): false} {
		if got := m.Valid(); got != want {
			t.Errorf("name %q: %t, want %t", m, got, want)
		}
	}
	for _, f := range []Fingerprint{"", mark("x")[1:], Fingerprint(strings.ToUpper(string(mark("x"))))} {
		if f.valid() {
			t.Errorf("fingerprint %q is taken", f)
		}
	}
}

// TestDecodeRoll refuses snapshots whose membership cannot be.
func TestDecodeRoll(t *testing.T) {
	for name, spoil := range map[string]func(*State){
		"no members":   func(s *State) { s.Roll.Members = nil },
		"no tokens":    func(s *State) { s.Roll.Tokens = nil },
		"another name": func(s *State) { s.Roll.Members["z"] = s.Roll.Members["a"] },
		"number":       func(s *State) { s.Roll.LastID = 1 },
		"twice":        func(s *State) { r := *s.Roll.Members["b"]; r.ID = 1; s.Roll.Members["b"] = &r },
		"nothing":      func(s *State) { s.Roll.Members["b"] = nil },
		"token":        func(s *State) { s.Roll.Tokens["x"] = &Token{Hash: "x", Role: RoleNode} },
	} {
		s := crowded(t)
		spoil(s)
		p, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeState(p); !fault.Is(err, fault.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTokensBounded fills the tokens; those that expired make room.
func TestTokensBounded(t *testing.T) {
	s := founded(t)
	invite := func(i int, now int64) error {
		return s.Apply(5, Command{
			Kind: KindInvite, Revision: s.Roll.Revision, By: Incarnation{"a", 1},
			Change: &Change{Token: mark(fmt.Sprint(i)), Role: RoleNode, Expires: now + 10, Now: now},
		})
	}
	for i := range TokensMax {
		if err := invite(i, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := invite(TokensMax, 0); !fault.Is(err, fault.Limit) {
		t.Errorf("one more: %v", err)
	}
	if err := invite(TokensMax, 10); err != nil || len(s.Roll.Tokens) != 1 {
		t.Errorf("after their time: %v, %v", err, slices.Collect(maps.Keys(s.Roll.Tokens)))
	}
}
