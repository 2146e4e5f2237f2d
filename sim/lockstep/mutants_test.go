package lockstep

import (
	"maps"
	"slices"
	"testing"

	"steadfast/compute/lockstep"
	"steadfast/compute/vmlock"
)

// mutantSeeds is within how many seeds each broken rule must be noticed.
const mutantSeeds = 1000

// mutants are all rules that can be broken, by name.
func mutants() map[string]mutant {
	all := map[string]mutant{}
	for name, f := range lockstep.Flaws() {
		all[name] = mutant{core: f}
	}
	for name, f := range vmlock.Flaws() {
		all[name] = mutant{lock: f}
	}
	for _, name := range drivers {
		all[name] = mutant{driver: name}
	}
	return all
}

// TestMutants breaks one rule at a time, and holds that a judge notices.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("short: this takes half a minute")
	}
	all := mutants()
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(mutantSeeds) {
				if out := Run(seed+1, all[name], false); out.Failure != "" {
					t.Logf("%s: seed %d: %s", name, seed+1, out.Failure)
					return
				}
			}
			t.Errorf("nobody noticed within %d seeds", mutantSeeds)
		})
	}
}
