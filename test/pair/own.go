package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"steadfast/block"
	"steadfast/compute/initiator"
	"steadfast/iscsi"
	"steadfast/test/testbed"
	"steadfast/test/verify"
)

// ownClient is the initiator that machines have their disks by. It runs in this
// process, with its sockets in the client's network namespace.
const ownClient = "steadfast"

// ownDisk is its disk as a client has it.
type ownDisk struct{ *initiator.Disk }

// WriteAt implements verify.Disk.
func (d ownDisk) WriteAt(p []byte, off int64, fua bool) error {
	var flags block.Flags
	if fua {
		flags = block.FUA
	}
	return d.Disk.WriteAt(p, off, flags)
}

// openOwn opens a volume by our initiator.
func openOwn(ctx context.Context, space *testbed.Space, volume Volume, log *os.File) (verify.Disk, error) {
	portal, target, lun, err := splitURL(volume.URL)
	if err != nil {
		return nil, err
	}
	isid := iscsi.ISID{0x80} // of a random number: RFC 7143, 11.12.5
	for i := range isid[1:] {
		isid[i+1] = byte(rand.Uint32())
	}
	d, err := initiator.Open(ctx, initiator.Config{
		Initiator: initiatorName, ISID: isid, Target: target, LUN: lun, Portals: []string{portal},
		Log:  slog.New(slog.NewTextHandler(log, nil)),
		Dial: func(ctx context.Context, address string) (net.Conn, error) { return dialIn(ctx, space.Fd(), address) },
	})
	if err != nil {
		return nil, err
	}
	return ownDisk{d}, nil
}

// dialIn connects from a network namespace. A socket is of the namespace that its
// thread was in when it was made; for an address that is no name that is the caller's.
func dialIn(ctx context.Context, namespace int, address string) (net.Conn, error) {
	type answer struct {
		conn net.Conn
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		if err := unix.Setns(namespace, unix.CLONE_NEWNET); err != nil {
			done <- answer{err: fmt.Errorf("enter the client's network namespace: %w", err)}
			return
		}
		d := net.Dialer{KeepAlive: -1}
		conn, err := d.DialContext(ctx, "tcp", address)
		done <- answer{conn, err}
	}()
	a := <-done
	return a.conn, a.err
}
