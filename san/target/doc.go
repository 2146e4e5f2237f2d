// Package target serves iSCSI: it listens on portals, logs initiators in, and
// carries their SCSI commands to logical units through scsi.Port. RFC 7143 at
// error recovery level 0, one connection per session.
//
// A connection lives through these states:
//
//	accepted --login ok--> full feature --logout, loss, drop--> closing --> gone
//	  | ^  |                                                       ^
//	  v |  +-- login refused, 15 s over, too many half-open -------+
//	 held ---- not admitted in 10 s, initiator gone ---------------+
//
// A session is entered only when the one it replaces is gone, and it is gone
// only when Port.Close has returned: no write of a dead session lands after
// one of its successor.
//
// # Portals that move
//
// An alias portal's address is on one node at a time, and so are its sessions. Its
// logins are held until the owner admits them (hold.go). When the group leaves, its
// sessions end in silence behind the address's gate, or after a planned move has
// drained them (move.go). Whatever calls Silence relies on this: when it
// has returned, no byte is given to these sockets, so no answer leaves for
// something that another node is the owner of.
//
// # Goroutines
//
// One goroutine per connection reads. It parses every PDU its buffer holds,
// runs what needs no waiting on the spot (Port.TryExecute), hands the rest to
// a pool of workers, and sends what it collected when the input is drained.
// Sending is combined: whoever completes a command while nobody sends becomes
// the sender for all, once those that complete with it have added theirs. One
// goroutine per server ticks for keep-alives.
//
// For an initiator that has one command outstanding at a time, the reader also
// executes what may wait, as long as that is quick; when one execution is not,
// a worker reads on in its place. See inline.go.
//
// # Memory
//
// Data buffers are reserved from a budget per session and one for the server.
// A command that does not fit waits, begun but not executed, in a queue; it
// is never dropped. The command window closes as commands wait, and a peer
// that does not read its answers is no longer read from. Data that comes
// unasked is held beyond the limits; when that exceeds a quarter, it is left
// in the sockets, and in the end its command is answered BUSY. While memory is
// short, a peer that holds some and moves next to nothing is given up.
//
// # Trust and locks
//
// Nothing an initiator sends is trusted; a PDU that breaks the framing ends
// the connection, one that breaks the protocol is rejected, and one that
// breaks a single command's rules ends that command. Locks are taken in the
// order Server.mu, session.mu, budget.mu; none is held over a call to a Port
// that may block or over a write to a socket. session.wire is held over such a
// write, which does not block, and nothing is locked under it.
package target
