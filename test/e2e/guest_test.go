package main

import (
	"context"
	"strings"
	"testing"

	"steadfast/test/testbed"
)

// away counts what the guest asks to be done to the node.
type away struct {
	testbed.Server
	did []string
}

func (a *away) Stop() error                 { a.did = append(a.did, "stop"); return nil }
func (a *away) Kill() error                 { a.did = append(a.did, "kill"); return nil }
func (a *away) Start(context.Context) error { a.did = append(a.did, "start"); return nil }

// TestListen reads a console in which the guest's lines stand among others.
func TestListen(t *testing.T) {
	server := &away{}
	r := &run{ctx: context.Background(), server: server}
	lines := 0
	console := "[ 1.0] boot\r\nGUEST ok discovery\r\n\x1b[0mGUEST ok login\nGUEST fail fio: exit 1\n"
	ended, err := r.listen(strings.NewReader(console), func() { lines++ })
	if err != nil || ended {
		t.Fatalf("ended=%v err=%v: a guest that stops talking has not ended", ended, err)
	}
	if r.passed != 2 || r.failed != 1 {
		t.Errorf("%d passed, %d failed; want 2 and 1", r.passed, r.failed)
	}
	if lines != 3 {
		t.Errorf("heard %d lines of the guest, want 3", lines)
	}
	if ended, _ = r.listen(strings.NewReader("GUEST end\n"), func() {}); !ended {
		t.Error("the end was not noticed")
	}
}

// TestOutage gives up at once when the run is interrupted.
func TestOutage(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	server := &away{}
	r := &run{ctx: ctx, server: server}
	if err := r.outage("kill 10"); err == nil {
		t.Error("the outage went on after the run's end")
	}
	if len(server.did) != 1 || server.did[0] != "kill" {
		t.Errorf("did %v, want a kill", server.did)
	}
}
