package sim

import (
	"testing"

	"steadfast/san/store/storetest"
)

// TestJudge runs histories on a store of a few lines: sound, it passes them;
// with any flaw, some seed must fail. A judge that cannot fail proves nothing.
func TestJudge(t *testing.T) {
	register()
	t.Run("sound", func(t *testing.T) {
		t.Parallel()
		seeds := uint64(5)
		if testing.Short() {
			seeds = 1
		}
		for seed := range seeds {
			if out := (run{seed: seed + 1, family: "crash", system: toySystem(soundToy)}).do(); out.failure != "" {
				t.Fatal(out.failure)
			}
		}
	})
	for _, f := range []flaw{
		neverDurable, flushesNot, skipsDamage, tornSnapshot, lateAnswer, trimsTooMuch, forgetsRename, sharesClone,
		missesTrims, saysAll, losesBase, reusesLSNs,
	} {
		t.Run(string(f), func(t *testing.T) {
			t.Parallel()
			mustFail(t, run{family: "crash", system: toySystem(f)})
		})
	}
}

// TestLyingDrives puts the real store on drives that acknowledge durable
// writes and flushes without doing them. It must be seen to lose data.
func TestLyingDrives(t *testing.T) {
	t.Parallel()
	mustFail(t, run{family: "crash", system: storetest.Real(), lying: true})
}

// mustFail runs seeds until one fails.
func mustFail(t *testing.T, r run) {
	t.Helper()
	for seed := range uint64(40) {
		r.seed = seed + 1
		if out := r.do(); out.failure != "" {
			t.Logf("seed %d found it", r.seed)
			return
		}
	}
	t.Error("no seed found it")
}
