package ha

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"steadfast/fault"
	"steadfast/san/lun"
	"steadfast/san/store"
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

// TestGrownInEitherOrder: a volume that grows is seen to once the spec says so and this node's
// copy has grown, whichever comes first, and not before.
func TestGrownInEitherOrder(t *testing.T) {
	a := newAlone(t, 1)
	for i, first := range []string{"the spec", "the copy"} {
		v := a.spec.Volumes[i]
		here, ok := a.store.Volume(v.Number)
		if !ok {
			t.Fatal("there is no copy")
		}
		resized := 0
		u := &unit{s: &service{g: a.Group}, here: here, v: v, told: v.Size, watchers: map[int]func(lun.Event){}}
		u.Watch(func(e lun.Event) {
			if e == lun.Resized {
				resized++
			}
		})
		larger := v
		larger.Size *= 2
		grow := func() {
			if _, err := a.pool.ChangeVolume(v.Name, store.VolumeChange{Size: &larger.Size}); err != nil {
				t.Fatal(err)
			}
		}
		if first == "the copy" {
			grow()
		} else {
			u.follow(larger)
		}
		if resized != 0 || u.size() != v.Size {
			t.Errorf("after %s alone: told %d times, size %d", first, resized, u.size())
		}
		if first == "the spec" {
			grow()
		}
		u.follow(larger)
		u.follow(larger)
		if resized != 1 || u.size() != larger.Size {
			t.Errorf("after %s first: told %d times, size %d", first, resized, u.size())
		}
	}
}
