package initiator

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"steadfast/iscsi"
)

// FuzzTarget feeds a connection in its full feature phase with anything, while
// a read and a write are under way: nothing may panic, hang, or touch memory
// that is not the requests'.
func FuzzTarget(f *testing.F) {
	pdu := func(op iscsi.Opcode, flags byte, edit func(*iscsi.Header), data ...byte) []byte {
		var h iscsi.Header
		h.SetOpcode(op)
		h.SetFlags(flags)
		h.SetInitiatorTag(1 << 16)
		h.SetStatSN(1)
		h.SetExpCmdSN(2)
		h.SetMaxCmdSN(40)
		h.SetDataLength(len(data))
		if edit != nil {
			edit(&h)
		}
		return append(append(h[:], data...), make([]byte, iscsi.Padding(len(data)))...)
	}
	f.Add(pdu(iscsi.OpDataIn, 0x81, nil, make([]byte, 96)...))
	f.Add(pdu(iscsi.OpSCSIResponse, 0x80, func(h *iscsi.Header) { h.SetSCSIStatus(2) }, 0, 18, 0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0))
	f.Add(pdu(iscsi.OpR2T, 0x80, func(h *iscsi.Header) { h.SetTargetTag(3); h.SetDesiredLength(512) }))
	f.Add(pdu(iscsi.OpNopIn, 0x80, func(h *iscsi.Header) { h.SetInitiatorTag(iscsi.NoTag); h.SetTargetTag(7) }))
	f.Add(pdu(iscsi.OpAsync, 0x80, func(h *iscsi.Header) { h.SetAsyncEvent(1) }))
	f.Add(pdu(iscsi.OpReject, 0x80, nil, pdu(iscsi.OpSCSICommand, 0x80, nil)...))
	f.Add(binary.BigEndian.AppendUint32([]byte{0x25, 0x81, 0, 0}, 1<<24-1))
	f.Fuzz(func(t *testing.T, b []byte) {
		dials := 0
		cfg := Config{
			Initiator: "iqn.2026-11.test:i", ISID: iscsi.ISID{0x80, 1}, Target: "iqn.2026-11.test:t", Portals: []string{"a"},
			Log: discard(), Times: Times{Retry: time.Millisecond, Logout: time.Millisecond},
			Dial: func(ctx context.Context, _ string) (net.Conn, error) {
				if dials++; dials > 1 {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				ours, theirs := net.Pipe()
				go liar(theirs, b)
				return ours, nil
			},
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if d, err := Open(ctx, cfg); err == nil {
			_ = d.Close()
		}
	})
}

// liar logs an initiator in, and sends it b.
func liar(sock net.Conn, b []byte) {
	defer sock.Close()
	own := iscsi.DefaultParams()
	l := iscsi.NewLogin(yes{}, own, 1)
	for sn := uint32(0); !l.Done; sn++ {
		var h iscsi.Header
		if _, err := io.ReadFull(sock, h[:]); err != nil {
			return
		}
		data := make([]byte, h.DataLength()+iscsi.Padding(h.DataLength()))
		if _, err := io.ReadFull(sock, data); err != nil {
			return
		}
		resp, text := l.Step(&h, data[:h.DataLength()])
		resp.SetStatSN(sn - 1)
		resp.SetExpCmdSN(1)
		resp.SetMaxCmdSN(32)
		wire := append(append(resp[:], text...), make([]byte, iscsi.Padding(len(text)))...)
		if _, err := sock.Write(wire); err != nil {
			return
		}
	}
	go func() { _, _ = io.Copy(io.Discard, sock) }()
	_, _ = sock.Write(b)
}

type yes struct{}

func (yes) Admit(iscsi.Identity) (iscsi.Auth, iscsi.LoginStatus) {
	return iscsi.Auth{}, iscsi.LoginSuccess
}

func (yes) Enter(iscsi.Identity, iscsi.Params) (uint16, iscsi.LoginStatus) {
	return 1, iscsi.LoginSuccess
}
func (yes) Random([]byte) {}
