// Package usernet is a network for machines that needs no root and nothing of the host's
// configuration: a gateway made in this process (gVisor's netstack), which answers ARP and
// DHCP, forwards DNS, carries TCP and UDP outwards over this host's own sockets, and lets
// connections in where a forward says so.
//
//	guest's frames --Send--> [ filter, DHCP ] --> netstack --> sockets of this host
//	guest's frames <-Frames- [   bounded    ] <-- netstack <-- sockets of this host
//
// It runs in the process that holds sockets and names, never in a machine's own: frames
// cross between them by a socket (Join). What it does depends on the host's time and network,
// so a machine sees of it only frames that are logged as its inputs.
//
// # What is trusted
//
// Nothing that the guest sends. The guest cannot reach this host's loopback addresses, nor
// link-local ones (where clouds keep their metadata services), nor anything at all if
// Options.Isolated; all other addresses it can, as this host can: a firewall it is not.
// Flows, connections and queued frames are bounded; what is over a bound is dropped or refused,
// as a network does.
//
// IPv4 only. One guest for each network, or with Options.Many as many as are on a switch (package
// netswitch), where DHCP gives each its own address. Nothing keeps a guest from using another's.
//
// # Locks
//
// Network.mu guards what has to be closed at the end. It is held for no call into netstack
// or a socket.
package usernet
