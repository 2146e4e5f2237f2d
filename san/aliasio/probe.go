package aliasio

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"steadfast/fault"
	"steadfast/san/alias"
)

// wire is a packet socket on an alias's interface, with what is said on it.
type wire struct {
	conn *packet.Conn
	mac  alias.MAC
	it   *held
}

// hasWire tells whether others can be asked at all: not on loopback or a tunnel.
func (it *held) hasWire() bool {
	attrs := it.link.Attrs()
	return len(attrs.HardwareAddr) == len(alias.MAC{}) && attrs.Flags&net.FlagLoopback == 0
}

// openWire opens the socket. A filter in the kernel keeps the data of the
// interface away: only ARP, or neighbor discovery, is copied.
func (h *Holder) openWire(it *held) (*wire, error) {
	attrs := it.link.Attrs()
	protocol, program := alias.EtherTypeARP, []bpf.Instruction{bpf.RetConstant{Val: 128}}
	if it.Address.Addr().Is6() {
		protocol, program = alias.EtherTypeIPv6, []bpf.Instruction{
			bpf.LoadAbsolute{Off: 20, Size: 1}, // next header
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 4},
			bpf.LoadAbsolute{Off: 54, Size: 1}, // type
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(alias.Solicitation), SkipTrue: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(alias.Advertisement), SkipTrue: 1},
			bpf.RetConstant{Val: 512},
			bpf.RetConstant{Val: 0},
		}
	}
	filter, err := bpf.Assemble(program)
	if err != nil {
		return nil, explain(err, "assemble a filter")
	}
	w := &wire{mac: alias.MAC(attrs.HardwareAddr), it: it}
	err = inside(h.options.Namespace, func() (err error) {
		device := &net.Interface{Index: attrs.Index, Name: attrs.Name, HardwareAddr: attrs.HardwareAddr}
		w.conn, err = packet.Listen(device, packet.Raw, protocol, &packet.Config{Filter: filter})
		return err
	})
	if err != nil {
		return nil, explain(err, "open a packet socket on "+attrs.Name)
	}
	return w, nil
}

func (w *wire) send(frame []byte) error {
	_, err := w.conn.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:6]})
	return err
}

// probe asks the network whether someone has the alias, for as long as
// Options.Probe says.
func (h *Holder) probe(ctx context.Context, it *held) error {
	if !it.hasWire() {
		return nil
	}
	w, err := h.openWire(it)
	if err != nil {
		return err
	}
	it.wire = w // open until the last announcement: closing it takes the kernel 10 ms
	// A cancellation ends the wait for answers.
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	start := time.Now()
	for i, at := range h.options.Probe {
		if err := w.listen(ctx, start.Add(at)); err != nil {
			return err
		}
		if i == len(h.options.Probe)-1 {
			break
		}
		if err := w.send(w.question()); err != nil {
			return explain(err, "probe for "+it.Address.Addr().String())
		}
	}
	return nil
}

// listen reads until a moment, and fails with Busy when someone has the alias.
func (w *wire) listen(ctx context.Context, until time.Time) error {
	if err := w.conn.SetReadDeadline(until); err != nil {
		return explain(err, "wait for answers")
	}
	buf := make([]byte, 512)
	for ctx.Err() == nil {
		n, _, err := w.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return explain(err, "wait for answers")
		}
		if owner, ok := w.conflict(buf[:n]); ok {
			return fault.New(fault.Busy, "%v is in use by the station %v on the network of %s: "+
				"take the address from it, or choose another for the group", w.it.Address.Addr(), owner, w.it.Interface)
		}
	}
	if err := ctx.Err(); err != nil {
		return fault.Wrap(fault.Canceled, err, "wait for answers")
	}
	return nil
}

// conflict tells who else has the alias, by a frame.
func (w *wire) conflict(frame []byte) (alias.MAC, bool) {
	address := w.it.Address.Addr()
	if address.Is4() {
		a, ok := alias.ParseARP(frame)
		return a.Sender, ok && a.Conflict(w.mac, address.As4())
	}
	n, ok := alias.ParseND(frame)
	return n.Owner(), ok && n.Conflict(w.mac, address.As16())
}

// question is the frame that asks for the alias.
func (w *wire) question() []byte {
	if a := w.it.Address.Addr(); a.Is4() {
		return alias.ProbeARP(w.mac, a.As4()).Append(nil)
	}
	return alias.ProbeND(w.mac, w.it.Address.Addr().As16()).Append(nil)
}

// news are the frames that announce the alias.
func (w *wire) news() [][]byte {
	a := w.it.Address.Addr()
	if a.Is6() {
		return [][]byte{alias.AnnounceND(w.mac, a.As16()).Append(nil)}
	}
	both := alias.AnnounceARP(w.mac, a.As4())
	return [][]byte{both[0].Append(nil), both[1].Append(nil)}
}

// announce says where the alias is now, once before it returns and then as
// Options.Announce says, by a goroutine that ends with the alias. Holder.mu
// is held.
func (h *Holder) announce(it *held) error {
	if it.wire == nil {
		return nil
	}
	start := time.Now()
	rest := h.options.Announce
	if len(rest) > 0 && rest[0] == 0 {
		rest = rest[1:]
		if err := it.wire.tell(); err != nil {
			return explain(err, "announce "+it.Address.Addr().String())
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	it.stop, it.done = cancel, make(chan struct{})
	go func() {
		defer close(it.done)
		defer it.wire.conn.Close()
		for _, at := range rest {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(start.Add(at))):
			}
			if !h.tellAgain(it.wire) {
				return
			}
		}
	}()
	return nil
}

// tellAgain announces once more, if the grant still lives. One that was not
// heard does no harm: there are others. The gate stops what comes too late; the
// look at the clock is for kernels without the egress hook.
func (h *Holder) tellAgain(w *wire) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held[w.it.Address.Addr()] != w.it || Now() >= w.it.ends {
		return false
	}
	return w.tell() == nil
}

func (w *wire) tell() error {
	for _, frame := range w.news() {
		if err := w.send(frame); err != nil {
			return err
		}
	}
	return nil
}

// end stops the announcer and waits for it.
func (it *held) end() {
	switch {
	case it.stop != nil:
		it.stop()
		<-it.done
	case it.wire != nil:
		_ = it.wire.conn.Close() // nothing was announced
	}
}
