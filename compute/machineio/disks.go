package machineio

import (
	"bytes"
	"context"
	"log/slog"
	"sync"

	"steadfast/block"
	"steadfast/compute/device"
	"steadfast/compute/virtio"
	"steadfast/fault"
)

// isDisk tells whether a port is a disk's.
func (l *Live) isDisk(p device.Port) bool { return p >= l.m.DiskPort(0) && p < l.m.NetPort(0) }

// request does a disk's request.
func (l *Live) request(d block.Device, out device.Output) device.Input {
	in := device.Input{Port: out.Port, Kind: virtio.BlockDone, ID: out.ID, Status: virtio.BlockOK}
	var flags block.Flags
	if out.Kind&virtio.BlockStable != 0 {
		flags = block.FUA
	}
	var err error
	switch out.Kind &^ (virtio.BlockStable | virtio.BlockUnmap) {
	case virtio.BlockRead:
		in.Data = l.reads.take(int(out.Length))
		err = d.ReadAt(in.Data, out.Offset)
	case virtio.BlockWrite:
		err = d.WriteAt(out.Data, out.Offset, flags)
	case virtio.BlockFlush:
		err = d.Flush()
	case virtio.BlockDiscard:
		err = d.Trim(out.Offset, out.Length)
	case virtio.BlockZero:
		err = d.Zero(out.Offset, out.Length, flags)
	default:
		in.Status = virtio.BlockUnsupported
	}
	if err != nil {
		level := slog.LevelError
		if fault.Is(err, fault.Canceled) { // it was let go: nobody waits for it
			level = slog.LevelDebug
		}
		l.opt.Logger.Log(context.Background(), level, "a disk's request failed", slog.Int("port", int(out.Port)), slog.Int("kind", int(out.Kind)), slog.Int64("offset", out.Offset), slog.Int64("length", out.Length), slog.Any("error", err))
		in.Status, in.Data = virtio.BlockError, nil
	}
	return in
}

// buffers are for what is read from disks: to make and to collect those of large reads
// would cost as much as to copy them.
type buffers struct{ pool sync.Pool }

// bufferLeast is the least size of one, in bytes.
const bufferLeast = 64 << 10

// take returns n bytes, with anything in them.
func (b *buffers) take(n int) []byte {
	if p, ok := b.pool.Get().(*[]byte); ok && cap(*p) >= n {
		return (*p)[:n]
	}
	return make([]byte, n, max(n, bufferLeast))
}

// give takes back what nobody looks at any more.
func (b *buffers) give(p []byte) {
	if cap(p) >= bufferLeast {
		b.pool.Put(&p)
	}
}

// keep returns what was taken for who keeps it, as the log of a pair does for minutes: in no more than twice
// the memory of what is in it.
func (b *buffers) keep(p []byte) []byte {
	if cap(p) <= 2*len(p) {
		return p
	}
	kept := bytes.Clone(p)
	b.give(p)
	return kept
}
