package mirror

import (
	"time"

	"steadfast/cluster/group"
	"steadfast/cluster/quorum"
)

// Position is a place in a node's own store: it orders what the store changed.
type Position uint64

// Kind is what an operation does.
type Kind uint8

// Kinds of operations.
const (
	Read     Kind = iota + 1
	Write         // or any other change of the blocks' content
	Flush         // makes stable what was done before
	Barrier       // a change of all volumes at one moment, as a snapshot is
	Compare       // a Write, if what is there is what the caller expects
	copied        // a resync's copy of blocks
	ending        // a resync's last word: flush, and everything is there
	fetching      // the owner asks for what the other has of blocks
	mended        // a copy of blocks that the other cannot read
	pruning       // the snapshots that the owner has: a resync's target deletes others
	stepping      // a resync's target takes a snapshot of what it has
)

// Op is one operation on a group. Payload is the caller's; it travels with the
// operation.
type Op struct {
	Kind         Kind
	Volume       uint32
	Block, Count uint64 // of Volume; of a read or write
	Durable      bool   // a write that is stable when it is done
	Undo         bool   // takes a Barrier back that the other node refused
	// Moment is what a Barrier's snapshots will be known by, or 0 when it takes
	// none. Of the mirror's own operations it is the snapshot that they are about. It
	// does not travel.
	Moment  Moment
	Payload any
}

// Moment is what snapshots that were taken by one Barrier are known by on both
// nodes; it is never used again. 0 is none of them: the volumes as they are now.
type Moment uint64

// changes tells whether the operation changes what the store holds.
func (o *Op) changes() bool { return o.Kind == Write || o.Kind == Barrier }

// Copies tells whether the operation stores what another node has, and so whole
// blocks that nobody asked this node to change.
func (o *Op) Copies() bool { return o.Kind == copied || o.Kind == mended }

// Lists tells whether the operation's payload is a list of snapshots: those that
// are there (for an operation that Prunes), or that are to be taken.
func (o *Op) Lists() bool { return o.Kind == pruning || o.Kind == stepping || o.Kind == ending }

// Prunes tells whether snapshots that are not in the list are to be deleted.
func (o *Op) Prunes() bool { return o.Kind == pruning || o.Kind == ending }

// Ends tells whether all in the list must be there, and all is to be stable then.
func (o *Op) Ends() bool { return o.Kind == ending }

// own tells whether the operation is a part of a stream, and ends with it.
func (o *Op) own() bool { return o.Copies() || o.Lists() }

func (o *Op) what() Range { return Range{o.Volume, o.Block, o.Count} }

func (o *Op) span() span { return span{o.Volume, o.Block, o.Count} }

// Range is a run of blocks of a volume.
type Range struct {
	Volume       uint32
	Block, Count uint64
}

// Config is what a mirror is made with.
type Config struct {
	Agent group.Config
	// Position is what the store kept of the life before.
	Position Position
	// Copies bounds the resync's copies under way, and CopyBlocks one of them.
	Copies     int
	CopyBlocks uint64
	// Slowdown is how long clients' operations may take during a resync, in
	// percent of what they take without; copies are governed by it. 0 is no bound.
	Slowdown int
	// AheadBlocks bounds what a member that is being resynced has been sent of
	// clients' writes and has not acknowledged; further writes wait for it. 0 is no
	// bound.
	AheadBlocks uint64
	// Settle is how often a position is looked for.
	Settle time.Duration
	// Pause is how long a resync waits when the other has no room for it.
	Pause time.Duration
	// Fault breaks a rule on purpose; only a test sets it.
	Fault Mutation
}

// Input is what happens to a mirror: one of the types below, or an input of
// package group.
type Input any

// Inputs.
type (
	// Begin is an operation that a client asks for.
	Begin struct {
		ID uint64
		Op Op
	}
	// Abort asks for the end of an operation: it is Aborted when it has landed or
	// never can, unless it is Done or Abandoned before.
	Abort struct{ ID uint64 }
	// Applied tells that an Apply, Load or Sync is over. Position is where the
	// store entered a change.
	Applied struct {
		ID       uint64
		Position Position
		Payload  any // what a Load read that is for no client
		Failed   bool
		// Differs: what a Load for a Compare read is not what was expected.
		Differs bool
		// Full: there was no room for a Write, or a Barrier was refused for what
		// Payload says, and nothing of it was done.
		Full bool
		// Bad are blocks whose checksum is wrong, from the first to the last of
		// them, when the operation needs them; of a change nothing was stored.
		Bad Range
	}
	// Heal asks for blocks of this node to be read, and for those that cannot be to
	// be replaced by what the other node has.
	Heal struct{ What Range }
	// Prepared answers Prepare.
	Prepared struct {
		Number uint64
		Failed bool
	}
	// Felt tells how long a client's read took that was not put to the mirror.
	Felt struct {
		Count uint64 // blocks
		Took  time.Duration
	}
	// Changes answers the List of that number. Of one with Steps, Steps are the
	// snapshots that the other lacks, oldest first, and Ranges what changed since the
	// last of them; see Step. Of another, Snapshots is what this node has of them.
	Changes struct {
		Number    uint64
		Ranges    []Range
		Snapshots any
		Steps     []Step
	}
	// Opened answers the Open of that number: the volumes that have a snapshot of the
	// moment. While it is open it cannot be deleted.
	Opened struct {
		Number  uint64
		Volumes []uint32
	}
	// Linked tells of a connection to an incarnation of the peer.
	Linked struct{ To quorum.Incarnation }
	// Unlinked tells that it has ended.
	Unlinked struct{}
	// Received is a packet of the peer.
	Received struct {
		From quorum.Incarnation
		Packet
		// Admitted: it was Current when it arrived. It counts with a Mutation only.
		Admitted bool
	}
)

// Step is a snapshot that a resync's target lacks. Ranges have all that is in
// volumes that have it and may be another content there: than in the volume's
// step before, or for its first than at the position.
type Step struct {
	Moment Moment
	Ranges []Range
}

// PacketKind tells packets apart.
type PacketKind uint8

// Kinds of packets. Those of the owner carry its epoch and the stream's number.
const (
	Control  PacketKind = iota + 1 // of the agents
	Hello                          // owner: a stream begins
	Differ                         // the peer's changes since its position
	Forward                        // owner: an operation
	Ack                            // it is applied
	Complete                       // owner: all up to Sequence is on both
	Mend                           // an entry cannot read Ranges of its own; Refused: nor can the owner
)

// Packet goes from mirror to mirror.
type Packet struct {
	Kind     PacketKind
	Control  group.Message
	Epoch    quorum.Epoch
	Stream   uint64
	Sequence uint64 // of an operation in its stream
	Complete uint64 // everything up to here is on both
	Refused  bool   // of an Ack: it was not done; Op has what is there instead, or why
	Damaged  bool   // of an Ack: it was not done, for what is there cannot be read
	Op       Op
	Ranges   []Range
}

// Effect is what a mirror wants done: one of the types below, or an effect of
// package group.
type Effect any

// Effects. Apply, Load and Sync are each answered by Applied.
type (
	// Apply stores an operation's change here.
	Apply struct {
		ID uint64
		Op Op
	}
	// Load reads the blocks here, or in the snapshot of Op's Moment. Nothing is
	// answered yet. For an operation that Lists it makes the list: of the snapshots
	// of Moment, or of all; in Op's Payload are the Moments that the other node need
	// not have then.
	Load struct {
		ID uint64
		Op Op
	}
	// Sync makes stable all that was applied before.
	Sync struct{ ID uint64 }
	// Done answers a client's operation.
	Done struct{ ID uint64 }
	// Refuse answers a client's write for which one of the nodes had no room, or a
	// Barrier that one refused: it was not done. Why is what that node says of a
	// Barrier. Damaged: it needed what cannot be read, and was
	// not done, or each block of it was or was not.
	Refuse struct {
		ID      uint64
		Why     any
		Damaged bool
	}
	// Aborted answers Abort: nothing of the operation lands from now on.
	Aborted struct{ ID uint64 }
	// Abandon ends a client's operation without an answer: whether it was done is
	// not known here.
	Abandon struct{ ID uint64 }
	// Transmit sends a packet on the connection.
	Transmit struct {
		To quorum.Incarnation
		Packet
	}
	// List asks what was changed since a position; Changes answers. What was
	// changed before the List must be in it, so an older answer will not do.
	//
	// A range of no blocks in the answer says: nothing is known of this volume, it
	// may differ everywhere. The answer has all that is there of such a volume, and
	// of those in Whole, for the other node knows nothing of them.
	//
	// A Brief answer needs only the ranges of no blocks. One with Steps is for a
	// node that has the snapshots Has.
	List struct {
		Number uint64
		Since  Position
		Whole  []uint32
		Brief  bool
		Steps  bool
		Has    any
	}
	// Open keeps the snapshots of a moment from being deleted; Opened answers.
	Open struct {
		Number uint64
		Moment Moment
	}
	// Shut ends the Open of that number, and all before.
	Shut struct{ Number uint64 }
	// SavePosition keeps a position in the store, with its next commit.
	SavePosition struct{ Position Position }
	// Resynced tells that the peer has everything.
	Resynced struct{}
	// Freed tells that an operation for which there was an Apply holds its blocks
	// no longer: whoever may read has what it wrote.
	Freed struct{ ID uint64 }
	// Healed tells what became of blocks that this node could not read: it has what
	// the other had, or (not OK) they stay as they are.
	Healed struct {
		What Range
		OK   bool
	}
	// Prepare keeps what this node's store is now, before a resync changes it.
	// Prepared answers. If one is kept since a resync that did not end, that is
	// the one.
	Prepare struct{ Number uint64 }
	// Settled tells that the resync of this node is over: OK, and what Prepare kept
	// is of no use any more; or cut off.
	Settled struct{ OK bool }
)
