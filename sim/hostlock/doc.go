// Package hostlock has tests only: hosts that take a machine's lock by package
// compute/vmlock from each other, on the device server of san/lun with its real
// reservations, on one seed. Hosts crash, freeze with commands and writes on their way, and wake;
// writes wait in the device server for as long as they like. Whatever happens, no
// write of a host lands after another was told Held.
//
// compute/vmlock's own tests have a model of reservations that is dumb on purpose: this
// shows that the real ones are no less.
package hostlock
