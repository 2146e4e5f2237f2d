package netswitch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/netswitch/bridge"
	"steadfast/compute/usernet"
	"steadfast/compute/vmm"
	"steadfast/fault"
)

// controlSuffix makes the control socket's path of the switch's.
const controlSuffix = ".control"

// Bounds of the control socket, on which a client sends one JSON object in a line, and gets one.
const (
	requestMax = 16 << 10
	// answerMax holds all stations.
	answerMax = 4 << 20
	// controlPatience is how long a client may take to ask, and the switch to answer.
	controlPatience = 5 * time.Second
)

// Verbs of a request.
const (
	verbShow          = "show"
	verbAddForward    = "add-forward"
	verbRemoveForward = "remove-forward"
	verbReserve       = "reserve"
	verbUnreserve     = "unreserve"
)

// request is what a client asks for.
type request struct {
	Verb    string          `json:"verb"`
	Forward usernet.Forward `json:"forward,omitzero"`
	MAC     usernet.MAC     `json:"mac,omitzero"`
	Address netip.Addr      `json:"address,omitzero"`
}

// answer is what it gets.
type answer struct {
	Error   *vmm.Failure `json:"error,omitempty"`
	State   *State       `json:"state,omitempty"`
	Listen  string       `json:"listen,omitempty"`
	Address netip.Addr   `json:"address,omitzero"`
}

// State is what a switch is and has.
type State struct {
	Socket string    `json:"socket"`
	Listen string    `json:"listen"` // "" if ports are attached by the socket alone
	PID    int       `json:"pid"`
	Began  time.Time `json:"began"`
	MTU    int       `json:"mtu"` // bytes
	// Subnet and Gateway are of the network behind it, the zero value if there is none.
	Subnet   netip.Prefix      `json:"subnet"`
	Gateway  netip.Addr        `json:"gateway"`
	Ports    []PortState       `json:"ports"`
	Stations []StationState    `json:"stations"`
	Leases   []usernet.Lease   `json:"leases"`
	Forwards []usernet.Forward `json:"forwards"`
}

// PortState is a port that is attached.
type PortState struct {
	Hello
	// From is how: "unix", "inside" for the gateway, or its TCP address.
	From  string          `json:"from"`
	Since time.Time       `json:"since"`
	In    bridge.Counters `json:"in"` // what it sent
	// Sent are the frames that went out of it, and SentBytes their bytes; Lost those that it
	// did not take.
	Sent      uint64 `json:"sent"`
	SentBytes uint64 `json:"sent_bytes"`
	Lost      uint64 `json:"lost"`
}

// StationState is a station that is known.
type StationState struct {
	MAC        usernet.MAC `json:"mac"`
	Port       string      `json:"port"`
	AgeSeconds int         `json:"age_seconds"`
}

// State tells what the switch is and has.
func (s *Switch) State() State {
	st := State{
		Socket: s.o.Socket, PID: os.Getpid(), Began: s.began, MTU: s.o.MTU,
		Ports: []PortState{}, Stations: []StationState{}, Leases: []usernet.Lease{}, Forwards: []usernet.Forward{},
	}
	if a := s.Addr(); a != nil {
		st.Listen = a.String()
	}
	if s.gateway != nil {
		o := s.gateway.Options()
		st.Subnet, st.Gateway = o.Subnet, o.Gateway
		st.Leases = append(st.Leases, s.gateway.Leases()...)
		st.Forwards = append(st.Forwards, s.gateway.ForwardList()...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.ports {
		if p != nil {
			st.Ports = append(st.Ports, PortState{
				Hello: p.hello, From: p.from, Since: p.since, In: s.bridge.Counters(p.id),
				Sent: p.sent.Load(), SentBytes: p.sentBytes.Load(), Lost: p.lost.Load(),
			})
		}
	}
	for _, a := range s.bridge.Stations(s.now()) {
		st.Stations = append(st.Stations, StationState{usernet.MAC(a.MAC), s.ports[a.Port].hello.Port, int(a.Age / time.Second)})
	}
	return st
}

// network is the one behind the switch. Fails with fault.NotFound.
func (s *Switch) network() (*usernet.Network, error) {
	if s.gateway == nil {
		return nil, fault.New(fault.NotFound, "this switch has no gateway, which forwards and gives addresses; start it without --no-gateway")
	}
	return s.gateway, nil
}

// AddForward is usernet.Network's of the network behind the switch, as are those below. They
// fail with fault.NotFound if there is none.
func (s *Switch) AddForward(f usernet.Forward) (net.Addr, error) {
	n, err := s.network()
	if err != nil {
		return nil, err
	}
	return n.AddForward(f)
}

// RemoveForward ends a forward by the address that it listens at.
func (s *Switch) RemoveForward(listen string) error {
	n, err := s.network()
	if err != nil {
		return err
	}
	return n.RemoveForward(listen)
}

// Reserve keeps an address for a station.
func (s *Switch) Reserve(mac usernet.MAC, want netip.Addr) (netip.Addr, error) {
	n, err := s.network()
	if err != nil {
		return want, err
	}
	return n.Reserve(mac, want)
}

// Unreserve lets go of a reservation.
func (s *Switch) Unreserve(mac usernet.MAC) error {
	n, err := s.network()
	if err != nil {
		return err
	}
	return n.Unreserve(mac)
}

// private has a unix socket made for its user alone, from the beginning: the mode of the socket
// is that of its file, less the umask (unix(7)).
func private(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "unix") {
		return nil
	}
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); e != nil {
		return e
	}
	return err
}

// control serves a client of the control socket.
func (s *Switch) control(c net.Conn) {
	defer func() {
		s.arrived(c)
		_ = c.Close() // all was said
	}()
	if c.SetDeadline(time.Now().Add(controlPatience)) != nil {
		return // it is closed
	}
	var req request
	line, err := bufio.NewReaderSize(c, requestMax).ReadSlice('\n')
	if err == nil {
		err = json.Unmarshal(line, &req)
	}
	var a answer
	if err = fault.Wrap(fault.Invalid, err, "a request"); err == nil {
		a, err = s.do(&req)
	}
	a.Error = vmm.FailureOf(err)
	if b, err := json.Marshal(a); err == nil {
		_, _ = c.Write(append(b, '\n')) // a client that has gone does not hear it
	}
}

// do does what a client asks for.
func (s *Switch) do(req *request) (a answer, err error) {
	switch req.Verb {
	case verbShow:
		st := s.State()
		a.State = &st
	case verbAddForward:
		var at net.Addr
		if at, err = s.AddForward(req.Forward); err == nil {
			a.Listen = at.String()
		}
	case verbRemoveForward:
		err = s.RemoveForward(req.Forward.Listen)
	case verbReserve:
		a.Address, err = s.Reserve(req.MAC, req.Address)
	case verbUnreserve:
		err = s.Unreserve(req.MAC)
	default:
		err = fault.New(fault.Invalid, "%.80q is nothing that a switch does", req.Verb)
	}
	return a, err
}

// Client asks a switch that runs in another process. Its methods fail with fault.Unreachable
// when none answers, fault.Denied when it is another user's, and else as the switch does.
type Client struct {
	// Socket is the switch's.
	Socket string
}

// ask asks for something.
func (c Client) ask(ctx context.Context, req request) (a answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*controlPatience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.Socket+controlSuffix)
	switch {
	case errors.Is(err, os.ErrPermission):
		return a, fault.New(fault.Denied, "the switch at %s is another user's", c.Socket)
	case err != nil:
		return a, fault.New(fault.Unreachable, "no switch answers on %s; start it with \"steadfast switch\", or name its --socket", c.Socket)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	b, err := json.Marshal(req)
	if err == nil {
		_, err = conn.Write(append(b, '\n'))
	}
	var line []byte
	if err == nil {
		line, err = bufio.NewReaderSize(conn, answerMax).ReadSlice('\n')
	}
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if err != nil {
		return a, fault.Wrap(fault.Unreachable, err, "the switch's answer")
	}
	return a, a.Error.Err()
}

// State tells what the switch is and has.
func (c Client) State(ctx context.Context) (State, error) {
	a, err := c.ask(ctx, request{Verb: verbShow})
	if err == nil && a.State == nil {
		err = fault.New(fault.Internal, "the switch answers nothing")
	}
	if err != nil {
		return State{}, err
	}
	return *a.State, nil
}

// AddForward is Switch.AddForward; it returns the address that is listened at.
func (c Client) AddForward(ctx context.Context, f usernet.Forward) (listen string, err error) {
	a, err := c.ask(ctx, request{Verb: verbAddForward, Forward: f})
	return a.Listen, err
}

// RemoveForward is Switch.RemoveForward.
func (c Client) RemoveForward(ctx context.Context, listen string) error {
	_, err := c.ask(ctx, request{Verb: verbRemoveForward, Forward: usernet.Forward{Listen: listen}})
	return err
}

// Reserve is Switch.Reserve.
func (c Client) Reserve(ctx context.Context, mac usernet.MAC, want netip.Addr) (netip.Addr, error) {
	a, err := c.ask(ctx, request{Verb: verbReserve, MAC: mac, Address: want})
	return a.Address, err
}

// Unreserve is Switch.Unreserve.
func (c Client) Unreserve(ctx context.Context, mac usernet.MAC) error {
	_, err := c.ask(ctx, request{Verb: verbUnreserve, MAC: mac})
	return err
}
