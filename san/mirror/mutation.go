package mirror

// Mutation is a rule broken on purpose, so that a test can show that it would
// notice. The product never sets one.
type Mutation uint32

// Mutations.
const (
	ackEarly     Mutation = 1 << iota // acknowledge before the peer has it
	readPending                       // read a write that the peer lacks
	pastLease                         // serve reads past the lease
	staleEpoch                        // take over without the epoch check
	epochAtEntry                      // check the epoch on arrival only
	memoryOfOne                       // a set of one answers from memory
	forgetIntent                      // forget the returning member's own writes
	skipDirty                         // skip the survivor's changes
	looseBarrier                      // a snapshot that is no barrier
	ghost                             // an aborted operation that lands later
	keepRefused                       // what one node refused stays on the other
	oldList                           // take what was changed as an earlier role asked
	lateHeal                          // heal with data that a later write has replaced
	healStale                         // heal with data of a member that is being resynced
	partly                            // take a member's word for a volume that it knows nothing of
	unprepared                        // copy over a state that is not kept
	skipSteps                         // forget snapshots that were taken while the other was away
	stepFromHead                      // copy a snapshot's blocks from the volume
	lateCopy                          // copy for a snapshot what was asked for before it was taken
	actEarly                          // have a snapshot taken before its last copy is there
)

// Mutations by name, for the simulation.
func Mutations() map[string]Mutation {
	return map[string]Mutation{
		"ack-early": ackEarly, "read-pending": readPending, "past-lease": pastLease, "stale-epoch": staleEpoch,
		"epoch-at-entry": epochAtEntry, "memory-of-one": memoryOfOne, "forget-intent": forgetIntent, "skip-dirty": skipDirty,
		"loose-barrier": looseBarrier, "ghost": ghost, "keep-refused": keepRefused, "old-list": oldList,
		"late-heal": lateHeal, "heal-stale": healStale, "unprepared": unprepared, "partly": partly,
		"skip-steps": skipSteps, "step-from-head": stepFromHead, "act-early": actEarly, "late-copy": lateCopy,
	}
}

func (m Mutation) has(f Mutation) bool { return m&f != 0 }
