package target

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/iscsi"
	"steadfast/san/target/targettest"
)

// socketPair is a connection without a network. A net.Pipe would not do: the
// target reads and writes descriptors.
func socketPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return ends[0], ends[1]
}

// script turns fuzz input into PDUs. Each takes five bytes, so that the fuzzer
// reaches every field by itself: kind, flags, numbers, length and place.
type script struct {
	c    *targettest.Client
	raw  bool // send the rest of the input as it is
	last uint32
}

// kinds are the opcodes of a script, with a wrong one.
var kinds = []iscsi.Opcode{
	iscsi.OpSCSICommand, iscsi.OpDataOut, iscsi.OpTaskRequest, iscsi.OpNopOut, iscsi.OpTextReq,
	iscsi.OpSCSICommand, iscsi.OpDataOut, iscsi.OpSNACK, iscsi.OpLoginReq, iscsi.OpLogoutReq, iscsi.OpDataIn,
}

// cdbs are the commands of a script.
var cdbs = []byte{0x00, 0x28, 0x2a, 0x12, 0xa0, 0x8a, 0xff}

// step sends the PDU that five bytes stand for.
func (s *script) step(b []byte) error {
	kind, flags, numbers, length, place := b[0], b[1], b[2], b[3], b[4]
	c := s.c
	h := c.Request(kinds[int(kind)%len(kinds)])
	h.SetFlags(flags)
	if kind&0x80 != 0 {
		h.SetImmediate()
		c.CmdSN--
	}
	h.SetCmdSN(h.CmdSN() + uint32(int8(numbers)>>6)) // now and then a step back or ahead
	data := make([]byte, int(length)*33)
	switch h.Opcode() {
	case iscsi.OpSCSICommand:
		s.last = h.InitiatorTag()
		h.SetExpectedLength(uint32(place) * 300)
		h.SetLUN(uint64(numbers&1) << 48)
		cdb := targettest.Read10(int(place), int(place)/2)
		cdb[0] = cdbs[int(numbers&0x1f)%len(cdbs)]
		copy(h.CDB(), cdb)
		data = data[:len(data)/int(1+numbers&3)]
	case iscsi.OpDataOut:
		h.SetInitiatorTag(s.last - uint32(numbers>>5&1))
		h.SetTargetTag(uint32(numbers & 0x0f)) // R2Ts count from one
		if numbers&0x10 != 0 {
			h.SetTargetTag(iscsi.NoTag)
		}
		h.SetDataSN(uint32(place & 3))
		h.SetBufferOffset(uint32(place>>2) * 33)
	case iscsi.OpTaskRequest:
		h.SetReferencedTag(s.last)
		h.SetRefCmdSN(c.CmdSN - uint32(place&3))
	case iscsi.OpTextReq:
		h.SetTargetTag(iscsi.NoTag + uint32(numbers&3))
		data = append([]byte("SendTargets=All\x00MaxRecvDataSegmentLength=512\x00"), data...)
	case iscsi.OpNopOut:
		h.SetTargetTag(iscsi.NoTag)
	default:
	}
	var ahs []byte
	if numbers&0x0c == 0x0c {
		ahs = iscsi.AppendAHS(nil, iscsi.AHS{ExtendedCDB: make([]byte, place%200)})
	}
	c.SpoilData, c.SpoilHeader = numbers == 0x55, numbers == 0x56
	return c.Send(h, ahs, data)
}

// play sends what input says; the target may end the connection at any time.
func (s *script) play(input []byte) {
	if s.raw {
		s.c.Conn.Write(input)
		return
	}
	for ; len(input) >= 5; input = input[5:] {
		if s.step(input) != nil {
			return
		}
	}
}

// FuzzConnection plays scripts to a whole target, from the login on. Whatever
// comes, it does not panic, the connection ends when the initiator hangs up,
// and nothing is left of it: no task, no memory, no session.
func FuzzConnection(f *testing.F) {
	f.Add([]byte{0, 0, 0xa1, 2, 16, 8, 1, 0x80, 0x11, 200, 0})               // a write, its data unsolicited
	f.Add([]byte{0, 0, 0xa1, 2, 0, 8, 1, 0x80, 0x01, 100, 0, 2, 1, 0, 0, 0}) // a write, an R2T, an abort
	f.Add([]byte{3, 0, 0xc1, 1, 0, 9, 4, 0x80, 0, 0, 0, 9, 0x80, 0, 0, 0})   // digests, a read, a text, a logout
	f.Add([]byte{1, 0, 0xa1, 0xc2, 3, 8, 0x82, 5, 0, 0, 0, 0, 0x81, 0, 0, 0})
	f.Add(append([]byte{4}, bytes.Repeat([]byte{0x41}, 100)...))
	f.Add(append([]byte{12}, bytes.Repeat([]byte{0x03, 0x87}, 100)...))
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) == 0 || len(input) > 1000 {
			return
		}
		mode := input[0]
		disk := targettest.NewDisk(1 << 20)
		disk.Slow.Store(mode&0x10 != 0)
		srv, err := New(Config{
			Log: slog.New(slog.DiscardHandler), stopped: true,
			Limits: Limits{QueueDepth: 8, SessionMemory: 32 << 10, Memory: 64 << 10, MaxTransferLength: 64 << 10},
			Times:  Times{Logout: 1},
		}, disk)
		if err != nil {
			t.Fatal(err)
		}
		if err := srv.AddTarget(Target{Name: testTarget, Access: []Access{{Initiator: testInitiator}}}); err != nil {
			t.Fatal(err)
		}
		mine, theirs := socketPair(t)
		defer mine.Close()
		p := &portal{listening: listening{Portal: Portal{Group: 1}, bound: theirs.LocalAddr()}}
		login, err := srv.admitHalfOpen(p, theirs)
		if err != nil {
			t.Fatal(err)
		}
		go srv.serve(login)

		mine.SetDeadline(time.Now().Add(20 * time.Second))
		s := &script{c: &targettest.Client{Conn: mine, CmdSN: 1, ITT: 1}, raw: mode&4 != 0}
		if mode&8 == 0 {
			keys := testNames + "InitialR2T=No\nFirstBurstLength=4096\nMaxBurstLength=8192\n"
			if mode&1 != 0 {
				keys += "HeaderDigest=CRC32C\n"
			}
			if mode&2 != 0 {
				keys += "DataDigest=CRC32C\n"
			}
			if status, _, err := s.c.Login(keys); err != nil || status != iscsi.LoginSuccess {
				t.Fatal(status, err)
			}
		}
		drained := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, mine)
			drained <- err
		}()
		s.play(input[1:])
		mine.(*net.UnixConn).CloseWrite()
		if err := <-drained; err != nil && os.IsTimeout(err) {
			t.Fatal("the connection stays")
		}
		srv.Close(context.Background())
		if s := srv.Stats(); s.Sessions != 0 || s.HalfOpen != 0 || s.Memory != 0 || s.Waiting != 0 {
			t.Fatalf("left behind: %+v", s)
		}
		if disk.Begun.Load() != disk.Ended.Load() || disk.Opened.Load() != disk.Closed.Load() {
			t.Fatalf("%d tasks begun and %d ended, %d ports opened and %d closed",
				disk.Begun.Load(), disk.Ended.Load(), disk.Opened.Load(), disk.Closed.Load())
		}
	})
}
