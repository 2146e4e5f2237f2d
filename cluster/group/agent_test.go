package group

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"steadfast/cluster/quorum"
)

// scene is two agents and a quorum that a script moves about.
type scene struct {
	state  *quorum.State
	now    map[string]Instant
	agents map[string]*Agent
	boots  map[string]quorum.Boot
	mail   []letter
	late   []quorum.Command
	out    strings.Builder
}

type letter struct {
	from, to quorum.Incarnation
	message  Message
}

func (s *scene) step(name string, in Input) {
	a := s.agents[name]
	for _, e := range a.Step(s.now[name], in) {
		switch e := e.(type) {
		case Propose:
			fmt.Fprintf(&s.out, "%s proposes %s at revision %d\n", name, e.Kind, e.Revision)
			s.late = append(s.late, e.Command)
		case Send:
			s.mail = append(s.mail, letter{a.cfg.Me, e.To, e.Message})
		}
	}
}

// play does one line of a script.
func (s *scene) play(f []string) {
	switch f[0] {
	case "start": // a life begins
		s.boots[f[1]]++
		cfg := Config{
			Me: quorum.Incarnation{Member: quorum.Member(f[1]), Boot: s.boots[f[1]]}, Group: "g",
			Lease: time.Second, Renew: 100 * time.Millisecond, Silence: 400 * time.Millisecond, Drift: 1000, Revive: 3 * time.Second, Retry: 200 * time.Millisecond,
		}
		s.agents[f[1]] = New(cfg, s.now[f[1]])
		s.step(f[1], Tick{})
	case "create":
		s.late = append(s.late, quorum.Command{Kind: quorum.KindCreate, Group: "g", By: s.agents[f[1]].cfg.Me})
	case "decide": // what was proposed is decided; who is named learns of it
		next := s.state.Clone()
		for _, c := range s.late {
			if err := next.Apply(next.Index+1, c); err != nil {
				fmt.Fprintf(&s.out, "refused: %v\n", err)
			}
		}
		s.state, s.late = next, nil
		for _, name := range f[1:] {
			s.step(name, Decided{s.state})
		}
	case "lose": // what was proposed is lost
		s.late = nil
	case "deliver":
		mail := s.mail
		s.mail = nil
		for _, m := range mail {
			to := s.agents[string(m.to.Member)]
			if to.cfg.Me == m.to {
				s.step(string(m.to.Member), Received{m.from, m.message})
			}
		}
	case "cut":
		s.mail = nil
	case "pass": // time, for everyone or for one
		d, err := time.ParseDuration(f[1])
		if err != nil {
			panic(err)
		}
		for name := range s.now {
			if len(f) < 3 || f[2] == name {
				s.now[name] = s.now[name].Add(d)
			}
		}
	case "tick":
		for _, name := range f[1:] {
			s.step(name, Tick{})
		}
	case "synced", "died", "heard":
		b, _ := strconv.ParseUint(f[2][1:], 10, 64)
		who := quorum.Incarnation{Member: quorum.Member(f[2][:1]), Boot: quorum.Boot(b)}
		s.step(f[1], map[string]Input{"synced": Synced{who}, "died": Died{who}, "heard": Heard{who}}[f[0]])
	case "move":
		s.step(f[1], Move{})
	case "drained":
		s.step(f[1], Drained{})
	case "broken":
		s.step(f[1], Broken{})
	case "show":
		for _, name := range f[1:] {
			a := s.agents[name]
			at := a.Standing()
			fmt.Fprintf(&s.out, "%s: %s, epoch %d, others %d, serving %t, may read %t\n", name, []string{"out", "entry", "owner"}[at.Role], at.Epoch, len(at.Others), at.Serving, a.MayRead(s.now[name], 0))
		}
	default:
		fmt.Fprintf(&s.out, "what is %q?\n", f[0])
	}
}

// TestScenarios plays scripts: the timeline is the test.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &scene{state: quorum.NewState(), now: map[string]Instant{"a": 0, "b": 0}, agents: map[string]*Agent{}, boots: map[string]quorum.Boot{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.out.Reset()
			for line := range strings.Lines(d.Input) {
				if f := strings.Fields(line); len(f) > 0 {
					s.play(f)
				}
			}
			return s.out.String()
		})
	})
}
