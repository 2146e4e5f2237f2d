package ha

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"steadfast/fault"
	"steadfast/san/target"
)

// TestFencedWaits: who comes by a node's own portal hears that the unit is not
// served any more when the unit is on standby, and soon in any case; nobody else
// waits.
func TestFencedWaits(t *testing.T) {
	srv, err := target.New(target.Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close(context.Background())
	fenced := fault.New(fault.Fenced, "served elsewhere")
	const given = 20 * time.Millisecond
	for _, c := range []struct {
		name      string
		multipath bool
		given     time.Duration // 0: never
		err       error
		want      time.Duration
	}{
		{"one path", false, given, fenced, 0},
		{"several paths", true, given, fenced, given},
		{"several paths, and nothing happens", true, 0, fenced, givenTime},
		{"another error", true, given, fault.New(fault.Full, "full"), 0},
		{"none", true, given, nil, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			g := &Group{cfg: &Config{Targets: srv}, ctx: ctx}
			u := &unit{s: &service{g: g, spec: &Spec{Multipath: c.multipath}, given: make(chan struct{})}}
			if c.given > 0 {
				time.AfterFunc(c.given, func() { close(u.s.given) })
			}
			began := time.Now()
			if err := u.fenced(c.err); !errors.Is(err, c.err) {
				t.Errorf("%s: %v", c.name, err)
			}
			if took := time.Since(began); took != c.want {
				t.Errorf("%s: after %v, want %v", c.name, took, c.want)
			}
		})
	}
}
