package pair

import (
	"maps"
	"os"
	"slices"
	"strconv"
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
	toys.mutants(t, mutantSeeds, names)
}

// unitsMutantSeeds is likewise for histories of device servers.
const unitsMutantSeeds = 1000

// TestUnitsMutants does so with device servers on real pools.
func TestUnitsMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("short: this takes minutes")
	}
	if n, err := strconv.Atoi(os.Getenv("SIM_SEEDS")); err == nil && n < 100 {
		t.Skip("this takes minutes; \"make sim\", or SIM_SEEDS=100 and more, has it")
	}
	units.mutants(t, unitsMutantSeeds, []string{
		"state-late",      // a unit's state is saved after the answer
		"state-unflushed", // and is never made stable
		"state-unread",    // units are served before their state is read
		"compare-apart",   // a compare and its write are two operations
		"late-session",    // commands of a session that is over are taken
		"left-behind",     // a preemption, or a reset, is answered before what it ends has landed
		"late-shut",       // and by who gives the group up, until the decision is known
		"long-grant",      // the alias is held past the other's promise
		"long-alone",      // and by who is alone past what one that was just admitted waits
		"loose-barrier",   // a snapshot is no barrier
		"ack-early", "skip-dirty", "read-pending",
	})
}

func (f family) mutants(t *testing.T, most int, names []string) {
	slices.Sort(names)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(most) {
				if out := f.run(seed+1, name); out.Failure != "" {
					t.Logf("seed %d: %s", seed+1, out.Failure)
					return
				}
			}
			t.Errorf("nobody noticed within %d seeds", most)
		})
	}
}
