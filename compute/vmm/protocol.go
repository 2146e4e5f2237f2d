package vmm

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"steadfast/compute/lockstepio"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/fault"
)

// Bounds of a packet.
const (
	// messageMax is in bytes; a socket's buffer has to hold a few.
	messageMax = 32 << 10
	// filesMax is how many descriptors a packet can bring: what a machine can have of each.
	filesMax = 2*machine.DisksMax + machine.NetsMax + 8
)

// Verbs of a request.
const (
	verbStart  = "start"  // make the machine up and run it: request.Start
	verbStatus = "status" // tell how it does
	verbButton = "button" // press the power button
	verbStop   = "stop"   // end it now, in order for the log only
	verbSave   = "save"   // write its state to the descriptor that comes along

	verbTurnOn   = "turn on"   // give it a secondary: request.Pair
	verbTurnOff  = "turn off"  // end the pair
	verbHandOver = "hand over" // have the secondary take over
	verbGone     = "gone"      // the other one's process has ended
	verbLock     = "lock"      // what became of a question to the lock: request.Lock
)

// Roles of descriptors that come with a request.
const (
	roleKernel  = "kernel"
	roleInitrd  = "initrd"
	roleState   = "state"   // to restore from, instead of a kernel
	roleDisk    = "disk"    // a file; one for each of Config, in order
	roleServed  = "served"  // or two of these in its place: socket and memory of a diskwire.Server
	roleWire    = "wire"    // one for each network card: a SOCK_SEQPACKET socket, a packet a frame
	roleConsole = "console" // a stream socket: the serial port
	roleLog     = "log"     // to write the log to
	roleSave    = "save"    // to write the state to: at the beginning, or now
	roleKept    = "kept"    // two of these: for the state and the log of a machine that differs from its pair's other one
	roleLink    = "link"    // two of these, for the log and the management: stream sockets to the other one of a pair
)

// request is what the parent asks for.
type request struct {
	ID   uint64 `json:"id"` // not 0
	Verb string `json:"verb"`
	// Files are the roles of the descriptors that come along, in their order.
	Files []string    `json:"files,omitempty"`
	Start *beginning  `json:"start,omitempty"`
	Pair  *pairing    `json:"pair,omitempty"`
	Lock  *lockAnswer `json:"lock,omitempty"`
}

// beginning is a machine to make up.
type beginning struct {
	// Config is the machine's; that of a state to restore is in the state.
	Config machine.Config `json:"config"`
	// HashEvery is machineio.Options'.
	HashEvery uint64 `json:"hash_every,omitempty"`
	// Restarts is machineio.Options'.
	Restarts bool `json:"restarts,omitempty"`
	// Secondary, if any, has it follow a machine instead.
	Secondary *pairing `json:"secondary,omitempty"`
}

// reply answers a request, or tells with ID 0 that the machine has ended, or of its pair.
type reply struct {
	ID     uint64   `json:"id"`
	Error  *Failure `json:"error,omitempty"`
	Status *Status  `json:"status,omitempty"`
	Pair   *word    `json:"pair,omitempty"`
}

// Failure is a fault on its way between processes.
type Failure struct {
	Kind string `json:"kind"`
	Text string `json:"text"`
}

// Status is how a machine does.
type Status struct {
	End machine.End `json:"end"`
	// Count is how many instructions the guest has executed, idle ones included, and Idled
	// how many of those since this process began were idle.
	Count uint64 `json:"count"`
	Idled uint64 `json:"idled"`
	// GuestNS is the guest's time since the machine began, in nanoseconds.
	GuestNS  uint64             `json:"guest_ns"`
	Counters machineio.Counters `json:"counters"`
	// FramesDropped are those of the guest that their wires had no room for.
	FramesDropped uint64 `json:"frames_dropped"`
	// Pair is how it does as one of a pair, if it is or was one.
	Pair *lockstepio.Status `json:"pair,omitempty"`
}

// FailureOf makes a fault ready to be sent; nil stays nil.
func FailureOf(err error) *Failure {
	if err == nil {
		return nil
	}
	return &Failure{Kind: fault.KindOf(err).String(), Text: err.Error()}
}

// Err returns the fault again; of nil it is nil.
func (e *Failure) Err() error {
	if e == nil {
		return nil
	}
	for _, k := range fault.Kinds() {
		if k.String() == e.Kind {
			return fault.New(k, "%s", printable(e.Text))
		}
	}
	return fault.New(fault.Internal, "%s", printable(e.Text))
}

// encode makes a packet.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err == nil && len(b) > messageMax {
		return nil, fault.New(fault.Limit, "a message to a machine's process of %d bytes; at most %d", len(b), messageMax)
	}
	return b, fault.Wrap(fault.Internal, err, "a message to a machine's process")
}

// control is the process's end of the control socket. It makes no call that the sandbox
// forbids: package net would.
type control struct{ f *os.File }

// receive returns the next request and what came with it. io.EOF: the parent has gone.
func (c control) receive() (req request, files []*os.File, err error) {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return req, nil, fault.Wrap(fault.Internal, err, "the control socket")
	}
	buf, oob := make([]byte, messageMax), make([]byte, unix.CmsgSpace(4*filesMax))
	var n, oobn, flags int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		n, oobn, flags, _, rerr = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(rerr, unix.EAGAIN) && !errors.Is(rerr, unix.EINTR)
	})
	if err = errors.Join(err, rerr); err != nil {
		return req, nil, fault.Wrap(fault.Failed, err, "the control socket")
	}
	files, err = received(oob[:oobn])
	switch {
	case err != nil:
	case n == 0 && len(files) == 0:
		return req, nil, io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = fault.New(fault.Invalid, "a request that is too long")
	default:
		err = fault.Wrap(fault.Invalid, json.Unmarshal(buf[:n], &req), "a request")
	}
	if err == nil && len(req.Files) != len(files) {
		err = fault.New(fault.Invalid, "a request with %d descriptors instead of %d", len(files), len(req.Files))
	}
	return req, files, err
}

// received takes descriptors out of a control message.
func received(oob []byte) (files []*os.File, err error) {
	list, err := unix.ParseSocketControlMessage(oob)
	for _, m := range list {
		fds, e := unix.ParseUnixRights(&m)
		err = errors.Join(err, e)
		for _, fd := range fds {
			// Sockets become such that wait without a thread.
			if _, e := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); e == nil {
				err = errors.Join(err, unix.SetNonblock(fd, true))
			}
			files = append(files, os.NewFile(uintptr(fd), "descriptor"))
		}
	}
	return files, fault.Wrap(fault.Invalid, err, "descriptors of a request")
}

// send sends a reply. A parent that has gone is noticed by receive.
func (c control) send(r reply) error {
	b, err := encode(r)
	if err != nil {
		return err
	}
	_, err = c.f.Write(b)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return fault.Wrap(fault.Failed, err, "the control socket")
}
