package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/compute/image"
	"steadfast/fault"
	"steadfast/node/size"
)

// Of what is sent to a machine's volumes, in bytes.
const (
	sendBytes = 256 << 10
	sectorLen = 512
)

// upload is what is to be written into a machine's volumes.
type upload struct {
	part string // as WriteMachineRequest has it
	file string // empty: there is to be none, an initial RAM disk only
	disk bool
	raw  bool // whatever the disk begins with
	// bytes is the size of the file, or of a disk on which the rest is to be zeros.
	bytes int64
}

// uploadFile is a kernel or an initial RAM disk to be written.
func uploadFile(part, file string) (upload, error) {
	if file == "" {
		return upload{part: part}, nil
	}
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return upload{}, fault.Wrap(fault.NotFound, err, "the "+part)
	case !st.Mode().IsRegular() || st.Size() == 0:
		return upload{}, fault.New(fault.Invalid, "%s is empty, or no regular file; name the %s's with --%s", file, part, part)
	}
	return upload{part: part, file: file, bytes: st.Size()}, nil
}

// writeVM writes into a machine's volumes, and shows how far it has come.
func (a *app) writeVM(ctx context.Context, name string, list []upload) error {
	if len(list) == 0 {
		return nil
	}
	// Disks first: kernel and initial RAM disk count when all has come.
	stream, err := a.vms().WriteMachine(ctx)
	if err != nil {
		return a.answer(err)
	}
	s := &sending{name: name, stream: stream, show: a.transferred(ctx, "writing")}
	for _, u := range list {
		s.total += u.bytes
	}
	for _, disks := range []bool{true, false} {
		for _, u := range list {
			if u.disk == disks && err == nil {
				err = s.send(ctx, u)
			}
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.show(s.total, s.total, true)
		// A stream that ends here would count as whole.
		return errors.Join(fault.Wrap(fault.KindOf(err), err, "nothing of kernel and initial RAM disk was changed, and disks may be written in part"), s.giveUp())
	}
	_, err = stream.CloseAndReceive()
	s.show(s.total, s.total, true)
	return a.answer(err)
}

// sending is a WriteMachine under way.
type sending struct {
	name        string
	stream      *connect.ClientStreamForClientSimple[steadfastv1.WriteMachineRequest, steadfastv1.WriteMachineResponse]
	show        func(done, total int64, end bool)
	done, total int64
}

// giveUp has the other side know that what came is not all: no part has this name.
func (s *sending) giveUp() error {
	_ = s.stream.Send(&steadfastv1.WriteMachineRequest{Machine: s.name, Part: "given up"}) // it may have ended
	_, _ = s.stream.CloseAndReceive()                                                      // an error, of course
	return nil
}

func (s *sending) request(r *steadfastv1.WriteMachineRequest) error {
	r.Machine = s.name
	return s.stream.Send(r)
}

// send sends one part. Fails with io.EOF when the other side has answered already.
func (s *sending) send(ctx context.Context, u upload) error {
	before := s.done
	defer func() { s.done = before + u.bytes }()
	if u.disk {
		return s.sendDisk(ctx, u)
	}
	first := &steadfastv1.WriteMachineRequest{Part: u.part, FileName: filepath.Base(u.file), FileBytes: u.bytes}
	if u.file == "" {
		first.FileName = ""
		return s.request(first)
	}
	f, err := os.Open(u.file)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "the "+u.part)
	}
	defer f.Close()
	if err := s.request(first); err != nil {
		return err
	}
	buf := make([]byte, sendBytes)
	for at := int64(0); at < u.bytes; {
		n, err := io.ReadFull(f, buf[:min(int64(len(buf)), u.bytes-at)])
		if err != nil {
			return fault.Wrap(fault.Failed, err, "reading "+u.file)
		}
		if err := s.request(&steadfastv1.WriteMachineRequest{Part: u.part, Data: buf[:n]}); err != nil {
			return err
		}
		at += int64(n)
		s.show(before+at, s.total, false)
	}
	return nil
}

// openDisk opens a disk's file: raw, or what it looks like.
func openDisk(file string, raw bool) (*image.Disk, error) {
	if raw {
		return image.OpenRawDisk(file)
	}
	return image.OpenDisk(file)
}

// sendDisk sends what is on a disk, and where zeros are.
func (s *sending) sendDisk(ctx context.Context, u upload) error {
	d, err := openDisk(u.file, u.raw)
	if err != nil {
		return err
	}
	defer d.Close()
	before, at := s.done, int64(0)
	zeros := func(to int64) error {
		if to <= at {
			return nil
		}
		r := &steadfastv1.WriteMachineRequest{Part: u.part, Offset: at, ZeroBytes: to - at}
		at = to
		return s.request(r)
	}
	err = d.Each(ctx, func(off int64, piece []byte) error {
		if err := zeros(off); err != nil {
			return err
		}
		if rest := len(piece) % sectorLen; rest != 0 { // the disk's end
			piece = append(piece, make([]byte, sectorLen-rest)...)
		}
		if err := s.request(&steadfastv1.WriteMachineRequest{Part: u.part, Offset: off, Data: piece}); err != nil {
			return err
		}
		at = off + int64(len(piece))
		s.show(before+at, s.total, false)
		return nil
	})
	if err != nil {
		return err
	}
	return zeros(u.bytes)
}

// Of how far a transfer has come: how often it is shown on a terminal, and in lines.
const (
	barEvery  = 200 * time.Millisecond
	lineEvery = 10 * time.Second
)

// transferred shows how far a transfer has come: on a terminal by a bar, else by a line now
// and then. end is the last call, after which there is no bar.
func (a *app) transferred(ctx context.Context, doing string) func(done, total int64, end bool) {
	terminal := isTerminal(a.errs)
	every := lineEvery
	if terminal {
		every = barEvery
	}
	began := time.Now()
	shown := began
	return func(done, total int64, end bool) {
		now := time.Now()
		if end || ctx.Err() != nil {
			if terminal && shown != began {
				a.note("\r\x1b[K")
			}
			return
		}
		if now.Sub(shown) < every {
			return
		}
		shown = now
		rate := size.Format(int64(float64(done)/now.Sub(began).Seconds())) + "/s"
		if terminal {
			a.note("\r\x1b[K%s [%s] %s of %s (%s), %s", doing, bar(done, total), size.Format(done), size.Format(total), share(done, total), rate)
			return
		}
		a.note("%s: %s of %s (%s), %s\n", doing, size.Format(done), size.Format(total), share(done, total), rate)
	}
}

// barLength is the length of a bar, in letters.
const barLength = 24

// bar draws how much is done.
func bar(done, total int64) string {
	full := 0
	if total > 0 {
		full = int(float64(barLength) * float64(min(done, total)) / float64(total))
	}
	b := make([]byte, barLength)
	for i := range b {
		b[i] = '.'
		if i < full {
			b[i] = '#'
		}
	}
	return string(b)
}

// readVM copies a part of a machine's content to a new file: a disk with holes where zeros
// are. Returns the name that the file had, and its bytes.
func (a *app) readVM(ctx context.Context, name, part, to string, show func(int64)) (fileName string, bytes int64, err error) {
	stream, err := a.vms().ReadMachine(ctx, &steadfastv1.ReadMachineRequest{Machine: name, Part: part})
	if err != nil {
		return "", 0, a.answer(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		return "", 0, errors.Join(a.answer(stream.Err()), noAnswer(stream.Err()))
	}
	fileName, bytes = stream.Msg().FileName, stream.Msg().Bytes
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", 0, fault.Wrap(fault.Denied, err, "the copy of "+part)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	disk := strings.HasPrefix(part, "disk/")
	if disk {
		if err := f.Truncate(bytes); err != nil {
			return "", 0, fault.Wrap(fault.Full, err, "the copy of "+part)
		}
	}
	at := int64(0)
	for stream.Receive() {
		m := stream.Msg()
		if disk {
			at = m.Offset
		}
		if _, err := f.WriteAt(m.Data, at); err != nil {
			return "", 0, fault.Wrap(fault.Full, err, "the copy of "+part)
		}
		at += int64(len(m.Data))
		show(at)
	}
	if err := stream.Err(); err != nil {
		return "", 0, a.answer(err)
	}
	if !disk && at != bytes {
		return "", 0, fault.New(fault.Unreachable, "%d bytes of the %s came, of %d; try again", at, part, bytes)
	}
	return fileName, bytes, fault.Wrap(fault.Failed, f.Sync(), "the copy of "+part)
}

// noAnswer is the error of a stream that ended without a word.
func noAnswer(err error) error {
	if err != nil {
		return nil
	}
	return fault.New(fault.Unreachable, "the node has ended the answer before it was whole; try again")
}
