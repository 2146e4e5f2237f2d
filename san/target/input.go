package target

import (
	"encoding/binary"
	"errors"
	"io"
	"syscall"

	"golang.org/x/sys/unix"

	"steadfast/internal/bufpool"
	"steadfast/iscsi"
)

// inputSize is the receive buffer's length in bytes: a queue of 32 commands
// with 4 KiB of data each fits. It is lent while there is input: an idle
// session holds none, and one that stops in the middle of a PDU no more than
// that part of it, which is below directMin.
const inputSize = 256 << 10

// directMin is how much of a data segment must be missing before it is worth
// reading straight into the command's buffer instead of through ours.
const directMin = 16 << 10

// input reads a connection. Only the session's reader uses it.
type input struct {
	raw  syscall.RawConn
	buf  []byte // nil while the connection is idle, short while it waits
	r, w int    // unread bytes are buf[r:w]

	// idle is called before a read that may block: to send what is ready.
	idle func()
	// linger asks the next read to wait a while in a system call of its own
	// before it parks with the runtime; lingered says that it did so in vain.
	linger   bool
	lingered bool
	lingers  *places // bounds how many do so at a time
	digest   bool    // data segments carry a digest
	eof      bool    // there is nothing behind what is in the buffer

	read func(fd uintptr) bool // made once: the closure given to raw.Read
	vec  [2][]byte             // where a direct read puts its bytes
	nvec int
	n    int
	err  error
	seen func(n int) // counts bytes
}

// newInput returns an input on raw.
func newInput(raw syscall.RawConn, idle func(), seen func(int)) *input {
	in := &input{raw: raw, idle: idle, seen: seen}
	in.read = func(fd uintptr) bool {
		in.resize(inputSize)
		if in.linger {
			in.linger = false
			in.await(int(fd))
		}
		for {
			if in.nvec > 0 {
				in.vec[1] = in.buf[in.w:]
				in.n, in.err = unix.Readv(int(fd), in.vec[:in.nvec])
			} else {
				in.n, in.err = unix.Read(int(fd), in.buf[in.w:])
			}
			switch {
			case errors.Is(in.err, unix.EINTR):
				continue
			case errors.Is(in.err, unix.EAGAIN):
				in.resize(in.w - in.r)
				return false
			}
			return true
		}
	}
	return in
}

// await waits until fd has input, at most for lingerMax, if there is a place
// for that.
func (in *input) await(fd int) {
	defer in.lingers.leave()
	if !in.lingers.enter() {
		return
	}
	fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	timeout := unix.NsecToTimespec(int64(lingerMax))
	n, err := unix.Ppoll(fds[:], &timeout, nil)
	in.lingered = err == nil && n == 0 // an interrupted wait says nothing
}

// resize moves the unread bytes to a buffer of n bytes, or to none.
func (in *input) resize(n int) {
	if len(in.buf) == n {
		return
	}
	var b []byte
	if n > 0 {
		b = bufpool.Get(n)
	}
	unread := copy(b, in.buf[in.r:in.w])
	if in.buf != nil {
		bufpool.Put(in.buf)
	}
	in.buf, in.r, in.w = b, 0, unread
}

// release lends the buffer back.
func (in *input) release() {
	in.r, in.w = 0, 0
	in.resize(0)
}

// fill reads once, into the buffer, and into in.vec[0] before it if nvec says so.
func (in *input) fill() (int, error) {
	if in.eof {
		return 0, io.ErrUnexpectedEOF
	}
	in.idle()
	if err := in.raw.Read(in.read); err != nil {
		return 0, err
	}
	if in.err != nil {
		return 0, in.err
	}
	if in.n == 0 {
		return 0, io.EOF
	}
	in.seen(in.n)
	return in.n, nil
}

// need makes at least n unread bytes available; n is at most inputSize.
func (in *input) need(n int) error {
	for in.w-in.r < n {
		if in.r == in.w {
			in.r, in.w = 0, 0
		} else if in.r+n > inputSize {
			in.w = copy(in.buf, in.buf[in.r:in.w])
			in.r = 0
		}
		got, err := in.fill()
		if err != nil {
			return err
		}
		in.w += got
	}
	return nil
}

// follows reports whether a header is, in part at least, in the buffer behind
// the n bytes of a data segment and what closes it.
func (in *input) follows(n int) bool {
	if n += iscsi.Padding(n); n > 0 && in.digest {
		n += iscsi.DigestSize
	}
	return in.w-in.r > n
}

// next returns the n bytes that need made available, valid until the next call.
func (in *input) next(n int) []byte {
	b := in.buf[in.r : in.r+n : in.r+n]
	in.r += n
	return b
}

// segment reads a data segment of len(dst) bytes into dst, its padding, and
// its digest if there is one. It returns false when the digest is wrong.
func (in *input) segment(dst []byte) (bool, error) {
	digest := in.digest
	if err := in.readFull(dst); err != nil {
		return false, err
	}
	tail := iscsi.Padding(len(dst))
	if digest {
		tail += iscsi.DigestSize
	}
	if tail == 0 {
		return true, nil
	}
	if err := in.need(tail); err != nil {
		return false, err
	}
	end := in.next(tail)
	if !digest {
		return true, nil
	}
	pad := end[:len(end)-iscsi.DigestSize]
	sum := iscsi.UpdateDigest(iscsi.Digest(dst), pad)
	return sum == binary.LittleEndian.Uint32(end[len(pad):]), nil
}

// readFull fills dst: what is buffered is copied, and the bulk of a large
// segment goes from the socket to dst, with what follows it into the buffer
// by the same system call.
func (in *input) readFull(dst []byte) error {
	n := copy(dst, in.buf[in.r:in.w])
	in.r += n
	dst = dst[n:]
	for len(dst) >= directMin {
		in.r, in.w = 0, 0
		in.vec[0], in.nvec = dst, 2
		got, err := in.fill()
		in.nvec, in.vec[0] = 0, nil
		if err != nil {
			return err
		}
		if got > len(dst) {
			in.w = got - len(dst)
			return nil
		}
		dst = dst[got:]
	}
	if len(dst) == 0 {
		return nil
	}
	if err := in.need(len(dst)); err != nil {
		return err
	}
	copy(dst, in.next(len(dst)))
	return nil
}

// discard reads and forgets a data segment of n bytes.
func (in *input) discard(n int) error {
	if n == 0 {
		return nil
	}
	n += iscsi.Padding(n)
	if in.digest {
		n += iscsi.DigestSize
	}
	for n > 0 {
		k := min(n, inputSize)
		if err := in.need(min(k, max(1, in.w-in.r))); err != nil {
			return err
		}
		n -= len(in.next(min(n, in.w-in.r)))
	}
	return nil
}
