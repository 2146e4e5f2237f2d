// Package inventory is what the cluster shall have beside its resource groups:
// datacenters, clusters, hosts, datastores and machines; and, kept apart from
// that, what changes by itself: the lives of hosts, and which host a machine is
// placed on. Pure: it reads the documents of the quorum's inventory, and turns a
// change into edits of it; times, identifiers and addresses are inputs.
//
//	datacenter <--- cluster <--- host <--- life          datastore ---> resource group
//	     ^             ^           ^                         ^               ^
//	     +-------------|-----------|-------------------------+               |
//	                   +------ machine --- home, disks ----------------------+
//	                               ^
//	                           placement: host, its life, generation; the secondary's
//
// A View is the documents at one revision of the quorum's inventory. Each of its
// methods that changes something returns the edits, or says what stands against
// them and what to do about it; it changes neither the View nor anything else.
// Whoever proposes the edits names the revision that the View was read at, so
// two changes that were checked against the same View never both happen: that,
// and not a lock, is what makes the rules hold. See View.Check for the rules.
//
// # Names
//
// A document is found by its kind and name, which is never changed. Kinds have
// names of their own, so a host may be called as a cluster is. A host also has a
// number, given once and never again, for the keys of its reservations; a
// machine has an identifier, which its home volume has, too.
//
// # Who starts a machine, and who says that it has ended
//
// Machine.Desired is what a person wants, and Machine.Run counts the starts that
// they asked for. A Placement says which host in which of its lives runs that.
// It goes on until Ended says why it does not. Generations of a machine's
// placements only go up, over starts, restarts and registrations from its disks.
//
//	vm start: Run+1, running --> Place --> (host lost: Place, generation+1) --> End
//	vm stop:  stopped ----------------------------------------------------------^
//	vm stop --force:  off ------------------------------------------------------^
//
// Machine.FT is whether a machine is to live on two hosts. Its Placement then names the
// host of its secondary, in which of its lives, and whether that can go on (Pair,
// Protected); why it has none any more (Part); and when it took over, which makes its host the
// placement's (TookOver). These are books of what the hosts and the lock have decided: who is
// late in keeping them delays the next secondary, and harms nothing. See ProtectionOf.
//
// # Versions
//
// Each document says in which version of its form it was written. A program
// writes a document in the lowest version that can say it, and reads all up to
// its own; one of a later version, or with a field that it does not know, it
// leaves as it is: Read names it, nothing is made in its place, and what depends
// on it is refused (fault.Stale) until the program is a newer one. So nodes of
// two versions live together for as long as an upgrade takes, and a feature that
// needs a later version is used when the last node knows it.
package inventory
