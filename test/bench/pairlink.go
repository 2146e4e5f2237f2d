package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/test/testbed"
)

// wire is a plain TCP connection between two namespaces, its sockets blocking:
// what the link gives to those who add nothing to it. Close ends it.
type wire struct{ near, far int }

// ackBytes is what comes back for a message: the size of the mirror's own
// acknowledgement with its TLS record, about.
const ackBytes = 96

// wirePatience bounds every wait on a wire, in seconds.
const wirePatience = 5

// newWire connects from one namespace to an address of another.
func newWire(from, to *testbed.Space, address netip.Addr) (*wire, error) {
	listener, at := -1, unix.SockaddrInet4{Addr: address.As4()}
	err := to.Do(func() (err error) {
		if listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		err = errors.Join(unix.Bind(listener, &at), unix.Listen(listener, 1))
		bound, nameErr := unix.Getsockname(listener)
		if v4, ok := bound.(*unix.SockaddrInet4); ok {
			at.Port = v4.Port
		}
		return errors.Join(err, nameErr)
	})
	if listener >= 0 {
		defer func() { _ = unix.Close(listener) }()
	}
	if err != nil {
		return nil, fmt.Errorf("listen at %v: %w", address, err)
	}
	w := &wire{near: -1, far: -1}
	err = from.Do(func() (err error) {
		if w.near, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		// The kernel takes the connection before anybody accepts it.
		return errors.Join(unix.Connect(w.near, &at), impatient(w.near))
	})
	if err == nil {
		w.far, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
	}
	if err == nil {
		err = impatient(w.far)
	}
	if err != nil {
		w.close()
		return nil, fmt.Errorf("connect to %v: %w", address, err)
	}
	return w, nil
}

// impatient has a socket send at once, and give up a wait after wirePatience.
func impatient(fd int) error {
	patience := unix.Timeval{Sec: wirePatience}
	return errors.Join(
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience),
	)
}

// close ends both sides.
func (w *wire) close() {
	for _, fd := range []int{w.near, w.far} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// hangUp ends what the near side sends: the far side reads its end.
func (w *wire) hangUp() { _ = unix.Shutdown(w.near, unix.SHUT_WR) }

// roundTrip sends messages of a size, one at a time, for some seconds. After each
// answer it rests: what shapes the link saves up meanwhile, as between the writes
// of a client that waits for each. It returns the median time of one, without the
// rest, in microseconds.
func (w *wire) roundTrip(size int, rest time.Duration, seconds float64) (float64, error) {
	var far sync.WaitGroup
	var farErr error
	far.Go(func() {
		runtime.LockOSThread() // a thread for itself, as a server of one connection has
		buf := make([]byte, size)
		for farErr == nil {
			if err := receive(w.far, buf); err != nil {
				return // the near side has hung up, or says what is wrong
			}
			farErr = send(w.far, buf[:ackBytes])
		}
	})
	took, err := w.ask(size, rest, seconds)
	w.hangUp()
	far.Wait()
	if err := errors.Join(err, farErr); err != nil {
		return 0, fmt.Errorf("round trips of %d bytes: %w", size, err)
	}
	return medianOf(took), nil
}

// ask is the near side of roundTrip: microseconds of each.
func (w *wire) ask(size int, rest time.Duration, seconds float64) ([]float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	message, answer := make([]byte, size), make([]byte, ackBytes)
	var took []float64
	for until := time.Now().Add(time.Duration(seconds * float64(time.Second))); time.Now().Before(until); {
		began := time.Now()
		if err := errors.Join(send(w.near, message), receive(w.near, answer)); err != nil {
			return nil, err
		}
		answered := time.Now()
		took = append(took, float64(answered.Sub(began).Nanoseconds())/1e3)
		for time.Since(answered) < rest { // awake: a processor that sleeps is slow to answer
			continue
		}
	}
	return took[len(took)/10:], nil // the first tenth warms up
}

// stream sends as fast as the link takes for some seconds and returns the bytes a
// second that arrived.
func (w *wire) stream(seconds float64) (float64, error) {
	var far sync.WaitGroup
	var rate float64
	far.Go(func() {
		buf := make([]byte, 256<<10)
		var from time.Time
		got := 0
		for started := time.Now(); ; {
			n, err := unix.Read(w.far, buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n <= 0 || err != nil {
				return
			}
			switch {
			case !from.IsZero():
				got += n
			case time.Since(started) > warmUp: // the window has opened
				from = time.Now()
			}
			rate = float64(got) / max(time.Since(from).Seconds(), 1e-9)
		}
	})
	message := make([]byte, 128<<10)
	var err error
	for until := time.Now().Add(warmUp + time.Duration(seconds*float64(time.Second))); err == nil && time.Now().Before(until); {
		err = send(w.near, message)
	}
	w.hangUp()
	far.Wait()
	return rate, err
}

// warmUp is what a measurement leaves out at its beginning.
const warmUp = 300 * time.Millisecond

func send(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if errors.Is(err, unix.EINTR) { // the runtime's own signals: a wait with a bound is not restarted
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

var errHungUp = errors.New("the other side has hung up")

func receive(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Read(fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return errHungUp
		}
		p = p[n:]
	}
	return nil
}

// linkLimit measures the link between the nodes both ways, one after the other:
// bytes a second, the slower of the two.
func linkLimit(spaces [2]*testbed.Space, addresses [2]netip.Addr, seconds float64) (float64, error) {
	var rates []float64
	for from := range 2 {
		w, err := newWire(spaces[from], spaces[1-from], addresses[1-from])
		if err != nil {
			return 0, err
		}
		rate, err := w.stream(seconds)
		w.close()
		if err != nil {
			return 0, fmt.Errorf("stream over the link: %w", err)
		}
		rates = append(rates, rate)
	}
	return slices.Min(rates), nil
}
