package pair

import (
	"maps"
	"slices"
	"testing"

	"steadfast/san/mirror"
)

// mutantSeeds is within how many seeds each broken rule must be noticed.
const mutantSeeds = 3000

// TestMutants breaks one rule at a time, and holds that a judge notices.
func TestMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("short: this takes half a minute")
	}
	names := append(slices.Collect(maps.Keys(mirror.Mutations())),
		"no-revision", // commands count at any revision: who succeeds need not be the first
		"same-boot")   // a restarted member counts as in sync
	slices.Sort(names)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(mutantSeeds) {
				if out := Run(seed+1, name); out.Failure != "" {
					t.Logf("seed %d: %s", seed+1, out.Failure)
					return
				}
			}
			t.Errorf("nobody noticed within %d seeds", mutantSeeds)
		})
	}
}
