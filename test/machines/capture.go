package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"steadfast/test/testbed"
)

// capture has a witness see what the switch gets of the guests' network: each frame once,
// where it comes in, in the order of the switch's kernel.
type capture struct {
	fd    int
	ports map[int]box // by interface
	stop  atomic.Bool
	ended sync.WaitGroup

	*witness
}

const (
	// captureBuffer is how much the kernel keeps for us, in bytes: some seconds of what the
	// guest and its client say.
	captureBuffer = 64 << 20
	// frameMax is the longest that a frame can be: a client's kernel leaves cutting to others.
	frameMax = 1 << 17
	// captureWake is how soon a capture notices that it was ended.
	captureWake = 100 * time.Millisecond
)

// newCapture begins to capture at the ports, by whose they are.
func newCapture(s *testbed.Switch, ports map[string]box) (*capture, error) {
	c := &capture{fd: -1, ports: map[int]box{}, witness: newWitness()}
	err := s.Do(func() (err error) {
		// No protocol: nothing is captured before the filter is there and it is bound.
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		for name, b := range ports {
			i, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			c.ports[i.Index] = b
		}
		return c.listen()
	})
	if err != nil {
		if c.fd >= 0 {
			err = errors.Join(err, unix.Close(c.fd))
		}
		return nil, err
	}
	c.ended.Go(c.read)
	return c, nil
}

// listen prepares the socket.
func (c *capture) listen() error {
	var instructions []unix.SockFilter
	for _, i := range c.program() {
		raw, err := i.Assemble()
		if err != nil {
			return err
		}
		instructions = append(instructions, unix.SockFilter{Code: raw.Op, Jt: raw.Jt, Jf: raw.Jf, K: raw.K})
	}
	const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8 // in the network's order
	wake := unix.NsecToTimeval(int64(captureWake))
	return errors.Join(
		unix.SetsockoptSockFprog(c.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]}),
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer),
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wake),
		unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all}),
	)
}

// program takes what comes in at one of the ports.
func (c *capture) program() []bpf.Instruction {
	p := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
	}
	for index := range c.ports {
		p = append(p,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(index), SkipTrue: 1},
			bpf.RetConstant{Val: frameMax},
		)
	}
	return append(p, bpf.RetConstant{Val: 0})
}

// read reads until it is ended.
func (c *capture) read() {
	p, oob := make([]byte, frameMax), make([]byte, 256)
	for !c.stop.Load() {
		n, control, _, from, err := unix.Recvmsg(c.fd, p, oob, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			c.fault("the capture has ended: %v", err)
			return
		}
		if at, ok := from.(*unix.SockaddrLinklayer); ok {
			c.see(frame{stampOf(oob[:control]), c.ports[at.Ifindex], p[:n]})
		}
	}
}

// stampOf reads when the kernel had a frame.
func stampOf(oob []byte) time.Time {
	list, err := unix.ParseSocketControlMessage(oob)
	for _, m := range list {
		if err == nil && m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
			le := binary.NativeEndian
			return time.Unix(int64(le.Uint64(m.Data)), int64(le.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}

// missed is how many frames the kernel had no room for since it was asked last: what was seen
// is not all then.
func (c *capture) missed() (int, error) {
	s, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("statistics of a packet socket: %w", err)
	}
	return int(s.Drops), nil
}

// Close ends it.
func (c *capture) Close() error {
	c.stop.Store(true)
	c.ended.Wait()
	return unix.Close(c.fd)
}
