// Package handed gives a group's alias to whichever node serves it where no node
// may take addresses: on loopback, without root, for a trial. A process that
// outlives the nodes (the Keeper, in "steadfast up") listens on the alias, and
// hands each connection that it accepts over to the node that takes it, as a file
// descriptor. To a client it is as a real alias: one address, whoever serves it.
//
//	client ---- 127.0.0.1:3260 ---- Keeper        asks a node: do you serve g1?
//	                                  |  no       asks the other one, and again,
//	                                  |  yes      until one does
//	                                  v
//	                            Receiver in the node: iSCSI from the first byte on
//
// The keeper reads nothing of a connection and keeps no copy. When a node dies its
// kernel ends the connections, and clients come back to the keeper, where they wait
// for the node that takes over. A planned move ends them with a reset.
//
// A node is asked first, and only then given the connection, since what a stopped
// process was given cannot be taken back from it.
//
// # What it is not
//
// There is no gate and no tickle. A node that is stopped, rather than dead, keeps
// its connections; their clients find out by their own timeouts. And whoever may
// open the node's data directory may hand connections over. So a Receiver takes
// connections on loopback only, and a node makes one only when it is configured
// to (handed_aliases).
//
// # Trust
//
// The two speak over a Unix socket in the node's data directory, of mode 0600: who
// can open it may do there what the API's socket lets him do, and one thing more:
// admit any initiator to a volume (see Handler.Admit), which the API deliberately
// has no call for.
//
// Messages are JSON, one a packet, at most packetMax bytes. Each connection of the
// socket carries one question.
package handed

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// packetMax bounds a message, in bytes.
const packetMax = 4096

// Times of a handover. Both sides are on one machine, so a node that takes longer
// is stopped, or as good as.
const (
	askTime  = 300 * time.Millisecond
	takeTime = time.Second
	// admitTime bounds Admit: the quorum has to decide.
	admitTime = 15 * time.Second
)

// What a message asks for.
const (
	doAsk   = "ask"   // whether the node serves a group
	doTake  = "take"  // to take the connection that comes with it; not answered
	doAdmit = "admit" // to admit any initiator to a volume
)

// request is what the keeper sends.
type request struct {
	Do     string `json:"do"`
	Group  string `json:"group,omitempty"`
	Volume string `json:"volume,omitempty"`
}

// answer is what the node sends.
type answer struct {
	Kind   string `json:"kind,omitempty"` // of the error; empty: yes
	Text   string `json:"text,omitempty"`
	Target string `json:"target,omitempty"`
	LUN    int32  `json:"lun,omitempty"`
}

// failed makes an answer of an error; nil is a yes.
func failed(err error) answer {
	if err == nil {
		return answer{}
	}
	return answer{Kind: fault.KindOf(err).String(), Text: err.Error()}
}

// err is the answer's error.
func (a answer) err() error {
	if a.Kind == "" {
		return nil
	}
	for _, k := range fault.Kinds() {
		if k.String() == a.Kind {
			return fault.New(k, "%s", a.Text)
		}
	}
	return fault.New(fault.Internal, "%s", a.Text)
}

// Socket returns the path of a node's socket: in its data directory, by the shorter
// of its two names, for a socket's path has 107 bytes at most.
func Socket(dataDir string) string {
	path := filepath.Join(dataDir, "handed.sock")
	here, err := os.Getwd()
	if err != nil {
		return path
	}
	if near, err := filepath.Rel(here, path); err == nil && len(near) < len(path) {
		return near
	}
	return path
}

// dial connects to a node's socket.
func dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return nil, fault.Wrap(fault.Unreachable, err, "the node does not run")
	}
	if end, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(end); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return conn.(*net.UnixConn), nil
}

// send sends one message, with the descriptors given.
func send(c *net.UnixConn, message any, fds ...int) error {
	b, err := json.Marshal(message)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "a message")
	}
	if len(b) > packetMax {
		return fault.New(fault.Invalid, "a message of %d bytes is too long", len(b))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(b, rights, nil)
	return err
}

// receive receives one message, and the descriptors that come with it, which are
// the caller's. They are closed on exec.
func receive(c *net.UnixConn, message any) ([]int, error) {
	b, rights := make([]byte, packetMax+1), make([]byte, unix.CmsgSpace(4*16))
	n, m, flags, _, err := c.ReadMsgUnix(b, rights)
	if err != nil {
		return nil, err
	}
	fds, err := descriptors(rights[:m])
	if err == nil && (n == 0 || n > packetMax || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0) {
		err = errors.New("no message, or one out of bounds")
	}
	if err == nil {
		err = json.Unmarshal(b[:n], message)
	}
	if err != nil {
		closeAll(fds)
		return nil, fault.Wrap(fault.Invalid, err, "a message")
	}
	return fds, nil
}

// descriptors reads what the system says came with a message.
func descriptors(rights []byte) (fds []int, err error) {
	list, err := unix.ParseSocketControlMessage(rights)
	for i := range list {
		some, parseErr := unix.ParseUnixRights(&list[i])
		err = errors.Join(err, parseErr)
		fds = slices.Concat(fds, some)
	}
	return fds, err
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd) // nothing was written to it by us
	}
}

// Admit asks a node to admit any initiator to a volume, and returns the target's
// name and the logical unit number. Fails with what the node says, and with
// fault.Unreachable when it does not run.
func Admit(ctx context.Context, socket, volume string) (target string, lun int, err error) {
	ctx, cancel := context.WithTimeout(ctx, admitTime)
	defer cancel()
	c, err := dial(ctx, socket)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = c.Close() }() // it was answered, or it was not
	if err := send(c, request{Do: doAdmit, Volume: volume}); err != nil {
		return "", 0, fault.Wrap(fault.Unreachable, err, "the node was not asked")
	}
	var got answer
	fds, err := receive(c, &got)
	closeAll(fds)
	if err != nil {
		return "", 0, fault.Wrap(fault.Unreachable, err, "the node did not answer")
	}
	return got.Target, int(got.LUN), got.err()
}
