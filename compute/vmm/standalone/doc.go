// Package standalone is a machine that somebody runs without a node: from files, on a
// network of its own, as the user that they are.
//
//	                    Machine (this process)
//	files ---- opened and locked --------------------->  vmm process,
//	usernet <------------- frames -------------------->  one for each
//	console <- log, terminal, attached clients ------->  life of the guest
//	socket NAME: status, stop, console
//
// A guest that restarts gets a new process, with a new seed and the host's time; files,
// network and console stay. One that is recorded goes on in the same process and log, with
// a new seed, and with its clock and count.
//
// # The console
//
// What the guest writes goes to the console log and to the outputs that Options name,
// which the guest waits for, and to attached clients, which it does not wait for: one that
// is too far behind is dropped. Who attaches sees the last lines first. The log is
// bounded: see ConsoleLog.
//
// # The socket
//
// A unix socket of mode 0600 in a folder of mode 0700, by the machine's name. A client
// sends one JSON object in a line, and gets one in a line: see request and answer. After
// the answer to "console" the connection is the console, until the machine ends; after that
// to "stop" a second answer says how it ended.
//
// # Locks
//
// Machine.mu guards which process is the present one; console.mu its sinks. Neither is
// held while something waits, but that the sinks which the guest waits for are written
// under console.turn.
package standalone
