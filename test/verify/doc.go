// Package verify writes to disks and judges every answer: no acknowledged write
// may be lost, no read may return what is older than what was known, no block
// may be torn, and no request may fail, whatever is done to the storage
// meanwhile. It also measures how long the slowest request took, by the clock
// of the client.
//
//	Load     lanes of requests with one and with many under way, and the
//	         windows that they are measured in
//	Judge    what was written, and what a read may return
//	Disk     a disk through a client: QEMU's block layer (OpenQEMU) or libiscsi
//	         with nothing above (OpenLibiscsi)
//
// Both clients are processes that speak NBD's transmission phase to us
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md): so the
// same code loads and judges either, and what is measured includes what the
// client does itself: noticing that a connection is dead, and logging in anew.
//
// It trusts its own memory and CLOCK_MONOTONIC, and nothing else.
package verify
