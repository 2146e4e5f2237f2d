// Package aliasio makes an alias IP live on this node, and end here: by itself
// when the node stops, at once when it is told. It does; who may hold an alias
// is decided elsewhere (cluster/group), and this package is told until when.
//
//	          Hold: gate shut, address added, asked for, grant, announced
//	absent  ------------------------------------------------------------->  open
//	  ^  ^                                                                 |  |  ^
//	  |  |  Release, Close                                                 |  +--+ Refresh
//	  |  +-----------------------------------------------------------------+
//	  |  Release, Close, Hold                                              | no Refresh for
//	  +-------------------------------  shut  <----------------------------+ Options.Grant, or
//	                                                                         the process died
//
// # The gate
//
// What goes to an alias or comes from it passes only while two things hold.
//
//   - The alias has a grant: an element of an nftables set, which times out. So a
//     node that is stopped loses it in the kernel, with nobody's help. The tables
//     steadfast_gate hold aliases and grants. They stay when the process dies: what
//     it leaves behind is silent.
//   - The process lives. The gate marks the packets of aliases, the tables
//     steadfast_pulse take the mark away, and the gate drops what still has it. The
//     pulse has the owner flag: it goes with the socket that made it, however the
//     process ends, and before the process's connections do (openPulse says why).
//
// Of what an open alias sends, the gate drops FIN and RST+ACK unless the socket is
// marked (Clean): a client that is refused backs off and is lost for a second.
// One that hears nothing is told by the new owner, when there is somebody to come
// back to. A RST alone passes: it answers those who ask for a connection that
// nobody knows, and the tickles of package alias stand on it. So it is the pulse
// that keeps a dead owner's kernel from resetting its clients too early.
//
// Tables are in three families: inet for what is IP, on every interface; arp for
// what the kernel answers, on every interface; netdev, on the egress of an
// alias's interface, for what this package announces by itself, which the others
// do not see. Without the egress hook the announcer only looks at its clock
// before it sends, and a stop just then lets out one late frame.
//
// # What it trusts
//
// That a kernel timer of nftables ends when it should, a tick late at most. That
// whoever has root leaves the gate alone: a flush of all tables takes it away.
// Refresh then fails, and Hold makes it anew; with a dead process nobody notices
// before the next Open. That a firewall of the administrator lets ACKs in
// that belong to no connection (they are what a tickle brings).
//
// The caller's right is counted in CLOCK_BOOTTIME; a grant is cut to end with it.
// A stop between reading the clock and the kernel's taking of the grant is
// noticed afterwards and undone. A grant that has ended is never revived by a
// Refresh.
//
// # What it needs
//
// Linux 5.12 (nftables tables with an owner; 5.16 for egress) with nf_tables for
// inet, arp and netdev, and INET_DIAG. CAP_NET_ADMIN and CAP_NET_RAW in the
// namespace. INET_DIAG_DESTROY where it is there.
//
// # Locks
//
// Holder.mu guards all of it and is held over netlink calls; they end in a
// second at most. No lock is held while a Hold waits for an answer to its probes:
// other aliases are refreshed meanwhile.
package aliasio
