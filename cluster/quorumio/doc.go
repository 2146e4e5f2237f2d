// Package quorumio runs the quorum for one member: raft with its log on disk and
// its messages on TLS, feeding cluster/quorum, which decides.
//
//	Propose, Edit, Invite, ...   State, Watch, Leader           peers' messages
//	        |                          ^                              |
//	        v                          | published                    v
//	   +----------------------- inbox (bounded) -----------------------+
//	   |  loop: one goroutine owns raft, the machine and the proposals |<--+
//	   +-----------+------------------------+----------------+---------+   |
//	     to store  |               to send  |       to apply |             |
//	               v                        v                v             |
//	        disk: one goroutine,   a queue and a         the machine       |
//	        bbolt, fsync           connection to each                      |
//	               |               peer, drops when full                   |
//	               +--- stable: what may be said now ----------------------+
//
// # What is durable before what
//
// A life's number is stable before the member sends or answers anything (Open):
// two lives of one number would let a command of the former pass for one of the
// later.
//
// A write takes as long as the disk likes, and the loop goes on meanwhile: it
// ticks, answers heartbeats, replicates, and learns what others have stable. So a
// disk that stalls delays what needs that disk, and makes nobody leader. The
// writes are done in the loop's order, those that wait together in one. What
// says that something is stable leaves only when it is, and everything before it:
// acknowledgements of entries, answers to who asks for a vote, and the question
// for votes itself, whose term and own vote are part of it. Otherwise a member that
// loses power forgets a vote or an acknowledgement that others counted, and two
// leaders, or a lost decision, follow. The leader counts itself among those that
// have an entry only when its own disk has it; it sends the entry to the others
// before that. A decision is applied, shown and answered here only when its entry
// is stable here, although others may have decided without: so no snapshot covers
// what the log on disk lacks.
//
// A commit index alone is not written: the leader tells it again. But it goes with
// every write, so that what a member knows of the configuration is never more
// than one change behind its log. When a write fails the member ends (Failed):
// nobody can say what the file holds then. What waits for the disk is bounded, and
// a member that is at the bound takes nothing in until there is room.
//
// # Members
//
// A change of the membership that is raft's as well is one entry of the log: a
// change of raft's configuration that carries the quorum's command. Each member
// applies the command first, and changes raft's configuration only if it was not
// refused. So there is no moment in which a member is in one and not the other.
// Raft takes one such change at a time; one that meets another is offered again.
//
// Who joins does not vote until it has caught up, when the leader makes it a
// voter: an empty member that counts for the majority would stop a cluster of one
// or two. It begins with the addresses of the members (seeds), and gets its state
// from the leader. A host never gets a vote: for raft it stays a learner.
//
// # Proposals
//
// Those of a member's life are numbered, and the machine makes void what comes
// with a number that is not above the last. So a proposal may be offered again
// when it seems lost, by another way too, and is applied once; and one that was
// overtaken is known to be void, and offered anew with a higher number. The
// outcome that the proposer sees is that of the index where it was applied, and
// State has it by then.
//
// # Connections
//
// Each member keeps a connection to each other one and says something on it each
// second, so that all know who is there (Reachable). Others come to the same
// listener for what Options.Serve answers, by Dial: they are held to the state as
// raft's are, and cut off with their member.
//
// # What is trusted
//
// Whoever has a certificate of the cluster's authority, and is a member by this
// member's state, with that key, name and number. A number above all that the
// state knows may be from a later state: while a member hears no leader, and does
// not lead, the certificate must do, for it would otherwise never hear of what it
// missed from those it does not know. So a node that was thrown out, which still
// has the authority's key, could speak to a member that is cut off from the
// others; not to one that hears them. Peers that pass are trusted to speak raft: a message is checked for who
// sent it and for its form, not for its truth.
//
// # Locks
//
// The loop takes none while it decides. transport.mu, disk.mu and watchers.mu are
// leaves; nothing is called with one of them held. Everything ends on Close.
package quorumio
