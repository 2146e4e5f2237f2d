package reserve

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// world runs the commands of a scenario file on one state. Nexuses are
// written as one letter, the initiator port, with the target port's tag
// behind it unless it is 1: "a", "b", "a2".
type world struct {
	State
}

func parseNexus(s string) Nexus {
	n := Nexus{s[:1], Port{"t", 1}}
	if len(s) > 1 {
		fmt.Sscanf(s[1:], "%d", &n.Port.Tag)
	}
	return n
}

func (n Nexus) short() string {
	if n.Port.Tag <= 1 {
		return n.Initiator
	}
	return fmt.Sprintf("%s%d", n.Initiator, n.Port.Tag)
}

var actions = map[string]Action{
	"register": Register, "reserve": Reserve, "release": Release, "clear": Clear, "preempt": Preempt,
	"preempt-abort": PreemptAbort, "register-ignore": RegisterIgnore, "register-move": RegisterAndMove,
}

var types = map[string]Type{"we": 1, "ea": 3, "wero": 5, "earo": 6, "wear": 7, "eaar": 8}

func (w *world) run(t *testing.T, d *datadriven.TestData) string {
	if d.Cmd == "reset" {
		w.State = State{}
		return ""
	}
	if d.Cmd == "access" {
		var b strings.Builder
		for _, a := range d.CmdArgs {
			got := w.Access(parseNexus(a.Key))
			fmt.Fprintf(&b, "%s read=%v write=%v\n", a.Key, got.Read, got.Write)
		}
		return b.String()
	}
	action, ok := actions[d.Cmd]
	if !ok {
		t.Fatalf("%s: unknown command %s", d.Pos, d.Cmd)
	}
	r := Request{Action: action, Ports: []Port{{"t", 1}, {"t", 2}}}
	var from string
	d.ScanArgs(t, "from", &from)
	for _, a := range d.CmdArgs {
		v := ""
		if len(a.Vals) > 0 {
			v = a.Vals[0]
		}
		switch a.Key {
		case "from":
		case "key":
			fmt.Sscanf(v, "%d", &r.Key)
		case "new":
			fmt.Sscanf(v, "%d", &r.ActionKey)
		case "type":
			r.Type = types[v]
		case "scope":
			fmt.Sscanf(v, "%d", &r.Scope)
		case "persist":
			r.Persist = true
		case "all-ports":
			r.AllPorts = true
		case "also":
			r.Specified, r.Also = true, a.Vals
		case "to":
			r.To = parseNexus(v)
		case "unregister":
			r.Unregister = true
		default:
			t.Fatalf("%s: unknown argument %s", d.Pos, a.Key)
		}
	}
	next, e := Decide(w.State, parseNexus(from), r)
	w.State = next
	return w.describe(e)
}

func (w *world) describe(e Effects) string {
	var b strings.Builder
	names := []string{"done", "conflict", "invalid-release", "invalid-field", "invalid-cdb", "no-resources"}
	fmt.Fprintf(&b, "%s changed=%v\n", names[e.Verdict], e.Changed)
	attentions := []string{"reservations-preempted", "reservations-released", "registrations-preempted"}
	for _, n := range e.Notices {
		fmt.Fprintf(&b, "attention %s: %s\n", n.To.short(), attentions[n.What])
	}
	for _, n := range e.Abort {
		fmt.Fprintf(&b, "abort %s\n", n.short())
	}
	fmt.Fprintf(&b, "generation=%d persist=%v type=%s", w.Generation, w.Persist, w.Type)
	if w.Type != 0 && !w.Type.AllRegistrants() {
		fmt.Fprintf(&b, " holder=%s", w.Holder.short())
	}
	for _, r := range w.Registrations {
		fmt.Fprintf(&b, " %s:%d", r.Nexus.short(), r.Key)
	}
	b.WriteByte('\n')
	return b.String()
}

func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		w := new(world)
		datadriven.RunTest(t, path, w.run)
	})
}

// genRequest draws a request that is as often right as wrong.
func genRequest(t *rapid.T) (Nexus, Request) {
	nexus := rapid.Custom(func(t *rapid.T) Nexus {
		return Nexus{rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "initiator"), Port{"t", rapid.Uint16Range(1, 2).Draw(t, "port")}}
	})
	r := Request{
		Action:     Action(rapid.IntRange(0, 8).Draw(t, "action")),
		Type:       rapid.SampledFrom([]Type{1, 3, 5, 6, 7, 8, 2}).Draw(t, "type"),
		Key:        rapid.Uint64Range(0, 3).Draw(t, "key"),
		ActionKey:  rapid.Uint64Range(0, 3).Draw(t, "new"),
		Persist:    rapid.Bool().Draw(t, "persist"),
		AllPorts:   rapid.IntRange(0, 3).Draw(t, "all") == 0,
		Unregister: rapid.Bool().Draw(t, "unregister"),
		To:         nexus.Draw(t, "to"),
		Ports:      []Port{{"t", 1}, {"t", 2}},
	}
	if rapid.IntRange(0, 5).Draw(t, "specified") == 0 {
		r.Specified, r.Also = true, []string{"c"}
	}
	return nexus.Draw(t, "from"), r
}

// TestInvariants checks what must hold whatever is asked: a state is never
// changed in place, a refusal changes nothing, a holder is registered, only
// registrants are told, and what is written down reads back the same.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s State
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			from, r := genRequest(t)
			before := s
			before.Registrations = slices.Clone(s.Registrations)
			next, e := Decide(s, from, r)
			if diff := cmp.Diff(before, s); diff != "" {
				t.Fatalf("%+v changed its argument:\n%s", r, diff)
			}
			if e.Verdict != Done || !e.Changed {
				if diff := cmp.Diff(s, next); diff != "" {
					t.Fatalf("%+v: verdict %d, changed %v, yet:\n%s", r, e.Verdict, e.Changed, diff)
				}
			}
			if err := next.Check(); err != nil {
				t.Fatalf("%+v led to %+v: %v", r, next, err)
			}
			for _, n := range e.Notices {
				if n.To == from || !s.Registered(n.To) {
					t.Fatalf("%+v from %v: notice for %v", r, from, n.To)
				}
			}
			for _, g := range s.Registrations {
				if g.Nexus != from && !next.Registered(g.Nexus) && r.Action != Register && r.Action != RegisterIgnore &&
					!slices.ContainsFunc(e.Notices, func(n Notice) bool { return n.To == g.Nexus }) {
					t.Fatalf("%+v from %v: %v lost its registration untold", r, from, g.Nexus)
				}
			}
			checkStored(t, next)
			s = next
		}
	})
}

// checkStored writes s down and reads it back.
func checkStored(t *rapid.T, s State) {
	b, err := Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(b)
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	s.Generation, s.Persist = 0, true
	if len(s.Registrations) == 0 {
		s.Registrations = nil
	}
	if diff := cmp.Diff(s, got); diff != "" {
		t.Fatalf("read back differs:\n%s", diff)
	}
}

func TestRegistrationsBounded(t *testing.T) {
	var s State
	for i := range RegistrationsMax {
		var e Effects
		s, e = Decide(s, Nexus{fmt.Sprint(i), Port{"t", 1}}, Request{ActionKey: 1})
		if e.Verdict != Done {
			t.Fatalf("registration %d: verdict %d", i, e.Verdict)
		}
	}
	if _, e := Decide(s, Nexus{"more", Port{"t", 1}}, Request{ActionKey: 1}); e.Verdict != NoResources {
		t.Fatalf("verdict %d, want NoResources", e.Verdict)
	}
}

func FuzzDecode(f *testing.F) {
	s, _ := Decide(State{}, Nexus{"a", Port{"t", 1}}, Request{ActionKey: 7})
	s, _ = Decide(s, Nexus{"a", Port{"t", 1}}, Request{Action: Reserve, Key: 7, Type: 3})
	b, _ := Encode(s)
	f.Add(b)
	f.Add([]byte{1, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Decode(b)
		if err != nil {
			return
		}
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
	})
}
