// Package vmhome is a machine's home volume: its lock block, its definition in
// two copies, and what it boots from, so that a machine can be found, registered
// and started from its volumes alone. docs/formats/home.md is the form.
//
//	block 0      1          16      32      48 ... 256
//	  lock    header      slot A  slot B            kernels and initrds ...
//
// A Save puts new files where no file of the present definition is, makes them
// stable, and then writes the slot that does not count, stable as well. A crash
// before that write has landed leaves the old definition and its files; one after
// it, the new ones; one that tears it leaves the old one, for the checksum tells.
// There is no moment at which a definition that counts names a file that is not
// whole. What is damaged later is found by the checksums: a slot falls back to
// the other, whose files may have been replaced since, which their hashes tell.
//
// Who reads a home does so at any time. Who saves holds the machine's lock
// (compute/vmlock) or has made the volume and told nobody. A Home belongs to one
// goroutine.
package vmhome
