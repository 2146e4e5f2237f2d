package netswitch

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"regexp"
	"time"

	"steadfast/compute/vmm"
	"steadfast/fault"
)

// Version is the protocol's: a switch and who attaches speak the same one, or none.
const Version = 1

const (
	// helloMax is the longest hello and welcome, in bytes.
	helloMax = 4 << 10
	// helloPatience is how long each side waits for the other's.
	helloPatience = 5 * time.Second
)

// Hello is what who attaches says first, as a JSON object.
type Hello struct {
	// Port names the port: one of a name is attached at a time.
	Port string `json:"port"`
	// Machine is whose it is, "" for none: people are told.
	Machine string `json:"machine,omitempty"`
	// Large says that there is a card behind it that takes and gives whole TCP segments
	// over IPv4, larger than the MTU (virtio.NetFrame).
	Large bool `json:"large,omitempty"`
}

// helloMessage is a Hello on its way.
type helloMessage struct {
	Version int `json:"steadfast_switch"`
	Hello
}

// welcome answers it.
type welcome struct {
	Version int          `json:"steadfast_switch"`
	Error   *vmm.Failure `json:"error,omitempty"` // or else it is let in
	MTU     int          `json:"mtu,omitempty"`
}

// names are those of ports and machines.
var names = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$`)

// check tells what is wrong with a hello.
func (h *Hello) check() error {
	if !names.MatchString(h.Port) {
		return fault.New(fault.Invalid, "%.80q is no name of a port: up to 64 letters, digits and ._:/-, the first a letter or digit", h.Port)
	}
	if h.Machine != "" && !names.MatchString(h.Machine) {
		return fault.New(fault.Invalid, "%.80q is no name of a machine: up to 64 letters, digits and ._:/-, the first a letter or digit", h.Machine)
	}
	return nil
}

// parseHello reads a first message.
func parseHello(b []byte) (Hello, error) {
	var m helloMessage
	if len(b) > helloMax {
		return m.Hello, fault.New(fault.Invalid, "a hello of %d bytes; at most %d", len(b), helloMax)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m.Hello, fault.Wrap(fault.Invalid, err, "a hello")
	}
	if m.Version != Version {
		return m.Hello, fault.New(fault.Invalid, "the switch speaks version %d of its protocol, not %d: update the older of the two", Version, m.Version)
	}
	return m.Hello, m.check()
}

// deadline is a link's connection as far as patience needs it.
type deadline interface{ SetDeadline(time.Time) error }

// greet says hello, and returns the switch's answer: its MTU in bytes.
func greet(l link, c deadline, h Hello) (mtu int, err error) {
	if err := h.check(); err != nil {
		return 0, err
	}
	b, err := json.Marshal(helloMessage{Version, h})
	if err == nil {
		err = c.SetDeadline(time.Now().Add(helloPatience))
	}
	if err == nil {
		err = l.write(b)
	}
	b = make([]byte, helloMax+1)
	n := 0
	if err == nil {
		n, err = l.read(b)
	}
	if err != nil {
		return 0, fault.Wrap(fault.Unreachable, err, "the switch does not answer")
	}
	var w welcome
	if n > helloMax || json.Unmarshal(b[:n], &w) != nil || w.Version == 0 {
		return 0, fault.New(fault.Invalid, "what answers there is no switch: give the socket of \"steadfast switch\"")
	}
	if err := w.Error.Err(); err != nil {
		return 0, err
	}
	if w.Version != Version {
		return 0, fault.New(fault.Invalid, "the switch speaks version %d of its protocol, this program %d: update the older of the two", w.Version, Version)
	}
	return w.MTU, fault.Wrap(fault.Unreachable, c.SetDeadline(time.Time{}), "the switch")
}

// receive is the switch's side: it reads a hello, has admit judge it, and answers.
func receive(l link, c deadline, admit func(Hello) error, mtu int) error {
	if err := c.SetDeadline(time.Now().Add(helloPatience)); err != nil {
		return err
	}
	b := make([]byte, helloMax+1)
	n, err := l.read(b)
	if errors.Is(err, io.EOF) {
		return err // it has looked whether somebody is here
	}
	err = fault.Wrap(fault.Invalid, err, "a hello")
	var h Hello
	if err == nil {
		h, err = parseHello(b[:n])
	}
	if err == nil {
		err = admit(h)
	}
	w := welcome{Version: Version, Error: vmm.FailureOf(err)}
	if err == nil {
		w.MTU = mtu
	}
	answer, e := json.Marshal(w)
	if e == nil {
		e = l.write(answer)
	}
	if err == nil {
		err = e
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	return err
}

// attach connects to a switch and is let in.
func attach(ctx context.Context, network, address string, h Hello) (l link, c net.Conn, mtu int, err error) {
	ctx, cancel := context.WithTimeout(ctx, helloPatience)
	defer cancel()
	c, err = (&net.Dialer{Control: bounded, KeepAliveConfig: keepAlive}).DialContext(ctx, network, address)
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, nil, 0, fault.New(fault.Denied, "%s is another user's; start your own with \"steadfast switch --socket PATH\"", address)
	case err != nil:
		return nil, nil, 0, fault.New(fault.Unreachable, "no switch answers on %s; start it with \"steadfast switch\": %w", address, err)
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if u, ok := c.(*net.UnixConn); ok {
		l, err = newPackets(u)
	} else {
		l = newStream(c)
	}
	if err == nil {
		mtu, err = greet(l, c, h)
	}
	if err == nil && ctx.Err() != nil {
		err = fault.Wrap(fault.Canceled, ctx.Err(), "attaching to a switch")
	}
	if err != nil {
		return nil, nil, 0, errors.Join(err, c.Close())
	}
	return l, c, mtu, nil
}

// Attach connects to a switch's unix socket, and returns the socket, let in: each packet is a
// frame, both ways, of the MTU or as h.Large says. It does not come back when the switch
// ends: see Uplink. Fails with fault.Unreachable when no switch answers at the path,
// fault.Denied when it is another user's, and as the switch refuses: fault.Exists if a port
// of the name is attached, fault.Limit, fault.Invalid.
func Attach(ctx context.Context, path string, h Hello) (*os.File, error) {
	_, c, _, err := attach(ctx, "unixpacket", path, h)
	if err != nil {
		return nil, err
	}
	f, err := c.(*net.UnixConn).File()
	return f, errors.Join(fault.Wrap(fault.Limit, err, "a copy of a socket"), c.Close())
}
