package sim

import (
	"fmt"
	"runtime/debug"
	"slices"

	"steadfast/san/store/storetest"
)

// family is a kind of histories.
type family struct {
	name  string
	share uint64 // seeds of ten that are of this family
	run   func(h *history, ops int) error
}

// families are all there are.
var families = []family{
	{"crash", 6, (*history).run},
	{"corrupt", 2, (*history).corrupt},
	{"fail", 2, (*history).failing},
}

// familyOf returns the family that a seed is of.
func familyOf(seed uint64) string {
	at := seed % 10
	for _, f := range families {
		if at < f.share {
			return f.name
		}
		at -= f.share
	}
	return families[0].name
}

// outcome is what became of one seed.
type outcome struct {
	counts counts
	// failure is the error with the end of the trace, or "".
	failure string
}

// run is a request to run the history of one seed.
type run struct {
	seed   uint64
	family string
	system storetest.System
	ops    int               // at most so many operations; 0: all
	whole  bool              // put all of the trace into a failure
	live   func(line string) // sees the trace as it comes; may be nil
	lying  bool              // the drives keep nothing that they call durable
}

// do runs the history.
func (r run) do() (out outcome) {
	var h *history
	fail := func(err error) {
		if h == nil {
			h = &history{seed: r.seed}
		}
		out.counts, out.failure = h.counts, h.report(err, r.whole)
	}
	defer func() {
		if p := recover(); p != nil {
			fail(fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
		}
	}()
	if !slices.ContainsFunc(families, func(f family) bool { return f.name == r.family }) {
		fail(fmt.Errorf("there is no family %q", r.family))
		return out
	}
	h, err := newHistory(r.seed, r.system, r.family, r.live)
	if err != nil {
		fail(err)
		return out
	}
	if r.lying {
		h.world.Lie()
	}
	for _, f := range families {
		if f.name == r.family {
			err = f.run(h, r.ops)
		}
	}
	if err != nil {
		fail(err)
		return out
	}
	return outcome{counts: h.counts}
}
