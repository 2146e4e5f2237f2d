// Package quorumio runs the quorum for one member: raft with its log on disk and
// its messages on TLS, feeding cluster/quorum, which decides.
//
//	Propose, Invite, ...        State, Watch, Leader           peers' messages
//	        |                          ^                              |
//	        v                          | published                    v
//	   +----------------------- inbox (bounded) -----------------------+
//	   |  loop: one goroutine owns raft, the machine and the proposals |
//	   +-----------+---------------------------------+-----------------+
//	      1. save  |                        2. send  |  3. apply
//	               v                                 v
//	        store: bbolt, fsync              a queue and a connection
//	                                         to each peer, drops when full
//
// # What is durable before what
//
// A life's number is stable before the member sends or answers anything (Open):
// two lives of one number would let a command of the former pass for one of the
// later. Entries, term and vote of a Ready are stable before its messages leave:
// otherwise a member that loses power forgets a vote or an acknowledgement that
// others counted, and two leaders, or a lost decision, follow. A commit index
// alone is not written: the leader tells it again. But it goes with every write,
// so that what a member knows of the configuration is never more than one change
// behind its log. When a write fails the member ends (Failed): nobody can say
// what the file holds then.
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
// from the leader.
//
// # Proposals
//
// Those of a member's life are numbered, and the machine makes void what comes
// with a number that is not above the last. So a proposal may be offered again
// when it seems lost, by another way too, and is applied once; and one that was
// overtaken is known to be void, and offered anew with a higher number. The
// outcome that the proposer sees is that of the index where it was applied.
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
// The loop takes none while it decides. transport.mu and watchers.mu are leaves;
// nothing is called with one of them held. Everything ends on Close.
package quorumio
