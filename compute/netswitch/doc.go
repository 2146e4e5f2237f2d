// Package netswitch stands for the customer's switch and gateway where machines run without
// root: a process that forwards Ethernet frames between sockets (Switch), with the user-mode
// network of package usernet behind it as the way in and out. Package bridge decides where a
// frame goes. As the thing that it stands for, it is no part of what the product keeps
// available: when it ends, machines have no network until it is back.
//
//	vmm - Uplink - socket -->  port \
//	vmm - Uplink - socket -->  port -- bridge -- port --> usernet: DHCP, DNS, forwards, NAT
//	vmm - Uplink - TCP ----->  port /
//
//	vmm - Tap ------------->  a bridge of this host's kernel, for who is root
//
// # Ports
//
// A host's process attaches a machine's network card: it connects, says Hello, is answered by
// a welcome or a refusal, and from then on each message is a frame. On the switch's own host
// that is a unix socket of kind SOCK_SEQPACKET, a packet a message. For hosts elsewhere there
// is TCP, with each message's length before it in four bytes, highest first. TCP is neither
// encrypted nor authenticated: it is for trying things on loopback, and listens elsewhere
// only where Options.Exposed says so. Who may open the unix socket (mode 0600: its user) may
// attach.
//
// # Frames
//
// Ordinary ones, of an MTU of 1500 unless the switch is told another. A machine's network card
// takes and gives whole TCP segments (virtio.NetFrame): a port whose Hello says Large has such
// a card behind it, and segments pass between such ports, and to and from the gateway, as they
// are; that is most of the speed. What goes out of any other port is cut first, and so is what
// goes to a Tap: the kernel and what is behind it see ordinary frames with right checksums.
//
// # Queues
//
// Who brings a frame in sends it on at once, without a copy, if the port that it goes to has
// room in its socket; else it waits in that port's queue, up to queueBytesMax, and beyond that
// is dropped and counted. No port waits for another.
//
// # A switch that ends, and the machine's wire
//
// A machine's process cannot be given another wire while it runs: its end of a pair of sockets
// is all that it has. So the host's process holds the other end, and carries frames between it
// and the switch (Uplink.Join), and this is what comes back: when the socket to the switch
// ends (a read tells so, at once), what the machine sends is dropped and counted, and the
// Uplink attaches anew until it is let in. It costs a copy in and out of this process, and
// nothing that a guest notices but lost frames. Attach is the socket alone, for who can hand
// it on and replace it; a dead switch is the hangup (POLLHUP) of a copy of it.
//
// # What is trusted
//
// Nobody who attaches: messages, names, ports, what waits and what is not yet let in are bounded, and who
// does not keep to the protocol is let go. Who attaches can say that they are any station.
// The control socket, which has mode 0600, too, is the administrator's.
//
// # Locks
//
// Switch.mu guards the bridge and the list of ports; port.mu what waits for one. The first may be held when the
// second is taken, and neither while something waits.
package netswitch
