package netswitch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/netswitch/bridge"
	"steadfast/compute/usernet"
	"steadfast/fault"
)

// Bounds.
const (
	// portsMax is how many ports are attached at a time, the gateway's included.
	portsMax = 128
	// arrivingMax is how many connections are not yet let in at a time.
	arrivingMax = 32
	// pathMax is what fits a unix socket's address, with controlSuffix.
	pathMax = 107 - len(controlSuffix)
)

// A TCP connection is over when its other side has not been heard of for about 11 seconds,
// or has not taken what was sent for unacknowledgedMax: while something is on its way the
// kernel does not ask.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

// unacknowledgedMax also ends a connection whose other side takes no frames for so long.
const unacknowledgedMax = 30 * time.Second

// bounded has a TCP socket, and those that a listening one accepts, end by unacknowledgedMax.
func bounded(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var err error
	if e := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledgedMax.Milliseconds()))
	}); e != nil {
		return e
	}
	return err
}

// GatewayPort is the name of the port at which the gateway is.
const GatewayPort = "gateway"

// Options describe a switch.
type Options struct {
	// Socket is the path of the unix socket at which ports are attached; the control socket is
	// beside it, and a lock.
	Socket string
	// Listen is the address at which ports are attached over TCP, as "127.0.0.1:4789"; "" is
	// none. Exposed lets it be another than a loopback address.
	Listen  string
	Exposed bool
	// MTU is in bytes, 0 for Ethernet's 1500.
	MTU int
	// Gateway describes the network behind the switch: its Subnet, Resolvers, Forwards and so
	// on; Many, Large and MTU are set here. NoGateway makes none.
	Gateway   usernet.Options
	NoGateway bool
	// Reserve are addresses that the gateway keeps from the beginning; see Switch.Reserve.
	Reserve map[usernet.MAC]netip.Addr
	// Log takes what is worth telling; nil for nothing.
	Log *slog.Logger
}

// Switch is a switch that runs. Its methods may be called by several goroutines.
type Switch struct {
	o       Options
	log     *slog.Logger
	began   time.Time
	lock    *os.File
	gateway *usernet.Network // or nil
	listen  []net.Listener
	tasks   sync.WaitGroup

	mu       sync.Mutex
	bridge   *bridge.Bridge
	ports    [portsMax]*port
	names    map[string]*port
	arriving map[net.Conn]struct{}
	route    []bridge.Port
	closed   bool
}

// Open makes a switch, which runs when it returns. Close is to follow. Fails with fault.Exists if one runs
// at the socket, fault.Denied if that cannot be made, fault.Busy if an address is in use, and
// fault.Invalid.
func Open(o Options) (s *Switch, err error) {
	if o.MTU == 0 {
		o.MTU = bridge.MTUDefault
	}
	if o.MTU < 576 || o.MTU > 65535 { // RFC 791, 3.1
		return nil, fault.New(fault.Invalid, "an MTU of %d bytes: from 576 to 65535", o.MTU)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s = &Switch{o: o, log: o.Log, began: time.Now(), bridge: bridge.New(o.MTU), names: map[string]*port{}, arriving: map[net.Conn]struct{}{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
			s = nil
		}
	}()
	if err := s.o.check(); err != nil {
		return s, err
	}
	if err := s.claim(); err != nil {
		return s, err
	}
	if !o.NoGateway {
		if err := s.startGateway(); err != nil {
			return s, err
		}
	}
	return s, s.serve()
}

// check tells what cannot be.
func (o *Options) check() error {
	if o.Socket == "" || len(o.Socket) > pathMax {
		return fault.New(fault.Invalid, "%q is no path for a socket: from 1 to %d bytes", o.Socket, pathMax)
	}
	if o.Listen == "" {
		return nil
	}
	at, err := netip.ParseAddrPort(o.Listen)
	if err != nil {
		return fault.New(fault.Invalid, "%q is no address to listen at, as 127.0.0.1:4789 is", o.Listen)
	}
	if !at.Addr().IsLoopback() && !o.Exposed {
		return fault.New(fault.Denied, "frames over TCP are neither encrypted nor authenticated: who reaches %s is on the machines' network. Use a loopback address, or say --exposed", o.Listen)
	}
	return nil
}

// claim takes the lock beside the socket, and makes way for it: what lies there belongs to a
// switch that has died, as one that lives would have the lock.
func (s *Switch) claim() error {
	if err := os.MkdirAll(filepath.Dir(s.o.Socket), 0o700); err != nil {
		return fault.Wrap(fault.Denied, err, "the folder of the switch's socket")
	}
	f, err := os.OpenFile(s.o.Socket+".lock", os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fault.Wrap(fault.Denied, err, "the lock beside the switch's socket")
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return errors.Join(fault.New(fault.Exists, "a switch runs at %s already; end it, or choose another --socket", s.o.Socket), f.Close())
	case err != nil:
		return errors.Join(fault.Wrap(fault.Denied, err, "the lock beside the switch's socket"), f.Close())
	}
	s.lock = f
	for _, path := range []string{s.o.Socket, s.o.Socket + controlSuffix} {
		switch info, err := os.Lstat(path); {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return fault.Wrap(fault.Denied, err, "the switch's socket")
		case info.Mode().Type() != os.ModeSocket:
			return fault.New(fault.Exists, "%s is no socket; choose another --socket", path)
		default:
			if err := os.Remove(path); err != nil {
				return fault.Wrap(fault.Denied, err, "the socket of a switch that has died")
			}
		}
	}
	return nil
}

// startGateway makes the network behind the switch, and its port.
func (s *Switch) startGateway() error {
	o := s.o.Gateway
	o.Many, o.Large, o.MTU = true, true, s.o.MTU
	if o.Log == nil {
		o.Log = s.log
	}
	n, err := usernet.New(o)
	if err != nil {
		return err
	}
	s.gateway = n
	for mac, address := range s.o.Reserve {
		if _, err := n.Reserve(mac, address); err != nil {
			return err
		}
	}
	p := newPort(Hello{Port: GatewayPort, Large: true}, "inside", s.o.MTU)
	p.deliver = n.Send
	if err := s.join(p); err != nil {
		return err
	}
	s.tasks.Go(func() {
		defer s.leave(p)
		var out []*port
		for frame := range n.Frames() {
			out = s.frame(p, frame, out)
		}
	})
	return nil
}

// serve begins to listen.
func (s *Switch) serve() error {
	for _, l := range []struct {
		network, address string
		mine             func(net.Conn)
	}{
		{"unixpacket", s.o.Socket, s.arrive},
		{"unix", s.o.Socket + controlSuffix, s.control},
		{"tcp", s.o.Listen, s.arrive},
	} {
		if l.address == "" {
			continue
		}
		listener, err := (&net.ListenConfig{
			Control: func(network, address string, c syscall.RawConn) error {
				return errors.Join(private(network, address, c), bounded(network, address, c))
			},
			KeepAliveConfig: keepAlive,
		}).Listen(context.Background(), l.network, l.address)
		switch {
		case errors.Is(err, unix.EADDRINUSE), errors.Is(err, unix.EADDRNOTAVAIL):
			return fault.Wrap(fault.Busy, err, "the switch cannot listen there")
		case err != nil:
			return fault.Wrap(fault.Denied, err, "the switch cannot listen there")
		}
		s.listen = append(s.listen, listener)
		s.tasks.Go(func() { s.accept(listener, l.mine) })
	}
	return nil
}

// Addr is the TCP address at which ports are attached; nil if there is none.
func (s *Switch) Addr() net.Addr {
	if s.o.Listen == "" {
		return nil
	}
	return s.listen[len(s.listen)-1].Addr()
}

// acceptPause is how long after a failure the next connection is taken.
const acceptPause = 100 * time.Millisecond

// accept takes connections until the listener is closed.
func (s *Switch) accept(l net.Listener, mine func(net.Conn)) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Warn("a connection to the switch was not taken", slog.Any("error", err))
			time.Sleep(acceptPause) // out of descriptors, for now
			continue
		}
		s.mu.Lock()
		ok := !s.closed && len(s.arriving) < arrivingMax
		if ok {
			s.arriving[c] = struct{}{}
			s.tasks.Add(1)
		}
		s.mu.Unlock()
		if !ok {
			_ = c.Close() // it sees that
			continue
		}
		go func() {
			defer s.tasks.Done()
			mine(c)
		}()
	}
}

// arrived ends the time that a connection has to be let in.
func (s *Switch) arrived(c net.Conn) {
	s.mu.Lock()
	delete(s.arriving, c)
	s.mu.Unlock()
}

// arrive lets a connection in and carries its frames until it ends.
func (s *Switch) arrive(c net.Conn) {
	var l link
	from := "unix"
	if u, ok := c.(*net.UnixConn); ok {
		p, err := newPackets(u)
		if err != nil {
			s.log.Warn("a connection to the switch was not taken", slog.Any("error", err))
			s.arrived(c)
			_ = c.Close()
			return
		}
		l = p
	} else {
		l, from = newStream(c), c.RemoteAddr().String()
	}
	var p *port
	err := receive(l, c, func(h Hello) error {
		p = newPort(h, from, s.o.MTU)
		p.link = l
		if err := s.join(p); err != nil {
			p = nil
			return err
		}
		return nil
	}, s.o.MTU)
	s.arrived(c)
	if p == nil {
		_ = c.Close() // it was told why, if it listens
		if !errors.Is(err, io.EOF) {
			s.log.Info("a port was refused", slog.String("from", from), slog.Any("error", err))
		}
		return
	}
	defer s.leave(p)
	if err != nil {
		return // it has gone before it was let in
	}
	p.begin()
	s.tasks.Go(p.carry)
	s.log.Info("a port is attached", slog.String("port", p.hello.Port), slog.String("machine", p.hello.Machine), slog.String("from", from))
	err = s.carryIn(p)
	s.log.Info("a port has gone", slog.String("port", p.hello.Port), slog.Any("error", err))
}

// carryIn takes a port's frames until it ends: nil if it just has.
func (s *Switch) carryIn(p *port) error {
	b := make([]byte, messageMax+1) // one that is longer is read as longer
	var out []*port
	for {
		n, err := p.link.read(b)
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		out = s.frame(p, b[:n], out)
	}
}

// frame brings a frame from a port to where it goes. out is only for its room.
func (s *Switch) frame(from *port, frame []byte, out []*port) []*port {
	out = out[:0]
	s.mu.Lock()
	s.route = s.bridge.Frame(s.now(), from.id, frame, s.route[:0])
	for _, id := range s.route {
		out = append(out, s.ports[id])
	}
	s.mu.Unlock()
	for _, p := range out {
		p.send(frame)
	}
	return out
}

// now is the bridge's time.
func (s *Switch) now() bridge.Instant { return bridge.Instant(time.Since(s.began)) }

// join puts a port in use; what goes out of it waits for begin.
func (s *Switch) join(p *port) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fault.New(fault.Canceled, "the switch ends")
	}
	if s.names[p.hello.Port] != nil {
		return fault.New(fault.Exists, "a port %q is attached; give this one another name, or end that", p.hello.Port)
	}
	for i, there := range s.ports {
		if there == nil {
			p.id = bridge.Port(i)
			s.ports[i], s.names[p.hello.Port] = p, p
			s.bridge.Add(p.id, p.hello.Large)
			return nil
		}
	}
	return fault.New(fault.Limit, "the switch has %d ports, and all are in use", portsMax)
}

// leave takes a port out.
func (s *Switch) leave(p *port) {
	s.mu.Lock()
	s.bridge.Remove(p.id)
	s.ports[p.id] = nil
	delete(s.names, p.hello.Port)
	s.mu.Unlock()
	p.close()
}

// Close ends the switch, with all that goes through it, and returns when nothing of it runs.
func (s *Switch) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	var ports []*port
	for _, p := range s.ports {
		if p != nil {
			ports = append(ports, p)
		}
	}
	for c := range s.arriving {
		_ = c.Close() // it was not let in
	}
	s.mu.Unlock()
	var err error
	for _, l := range s.listen {
		err = errors.Join(err, l.Close()) // a unix socket's file goes with it
	}
	for _, p := range ports {
		p.close()
	}
	if s.gateway != nil {
		err = errors.Join(err, s.gateway.Close())
	}
	s.tasks.Wait()
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return fault.Wrap(fault.Failed, err, "the end of the switch")
}

// String says where it is, for people.
func (s *Switch) String() string {
	if s.gateway == nil {
		return s.o.Socket + ", without a gateway"
	}
	o := s.gateway.Options()
	return fmt.Sprintf("%s, gateway %v of %v", s.o.Socket, o.Gateway, o.Subnet)
}
