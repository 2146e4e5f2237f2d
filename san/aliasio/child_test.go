package aliasio

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/internal/netnstest"
)

// childEnv makes the test's binary an owner: a process that holds the alias that
// the variable names, refreshes it, and answers on it. It is stopped and killed.
const childEnv = "ALIASIO_TEST_OWNER"

// port is where owners listen: iSCSI's.
const port = 3260

func child() int {
	if err := own(netip.MustParsePrefix(os.Getenv(childEnv))); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// own lives until its standard input ends, which happens when the test dies.
func own(address netip.Prefix) error {
	h, err := Open(Options{})
	if err != nil {
		return err
	}
	if _, err := listen(); err != nil {
		return err
	}
	if err := h.Hold(context.Background(), Alias{"eth0", address}, 0); err != nil {
		return err
	}
	fmt.Println("ready")
	go func() {
		for range time.Tick(h.options.Grant / 4) {
			if err := h.Refresh(address.Addr(), 0); err != nil {
				fmt.Println(err)
			}
		}
	}()
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// owner is a child process with an alias.
type owner struct {
	cmd  *exec.Cmd
	once sync.Once
}

// startOwner starts a child in a namespace, and waits until it holds a.
func startOwner(t testing.TB, ns *netnstest.NS, a Alias) *owner {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+a.Address.String())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	o := &owner{cmd: cmd}
	t.Cleanup(o.kill)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the owner says %q, %v", line, err)
	}
	return o
}

func (o *owner) stop() { _ = o.cmd.Process.Signal(unix.SIGSTOP) }

// kill ends the process and waits until it is gone.
func (o *owner) kill() {
	o.once.Do(func() {
		_ = o.cmd.Process.Kill()
		_ = o.cmd.Wait()
	})
}

// echo answers with what it gets.
type echo struct {
	listener net.Listener
	work     sync.WaitGroup
	mu       sync.Mutex
	conns    []net.Conn
}

// listen starts an echo on all addresses of both families.
func listen() (*echo, error) {
	listener, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
	if err != nil {
		return nil, err
	}
	e := &echo{listener: listener}
	e.work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			e.mu.Lock()
			e.conns = append(e.conns, conn)
			e.mu.Unlock()
			e.work.Go(func() { _, _ = io.Copy(conn, conn) })
		}
	})
	return e, nil
}

// close ends it all.
func (e *echo) close() {
	_ = e.listener.Close()
	e.mu.Lock()
	for _, conn := range e.conns {
		_ = conn.Close()
	}
	e.mu.Unlock()
	e.work.Wait()
}

// serve starts an echo in a namespace, for the time of t.
func serve(t testing.TB, ns *netnstest.NS) *echo {
	t.Helper()
	var e *echo
	if err := ns.Do(func() (err error) { e, err = listen(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.close)
	return e
}

// dial connects from a namespace to an alias.
func dial(t testing.TB, ns *netnstest.NS, a Alias) *net.TCPConn {
	t.Helper()
	var conn net.Conn
	err := ns.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second, KeepAlive: -1}
		conn, err = d.Dial("tcp", netip.AddrPortFrom(a.Address.Addr(), port).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

// exchange sends a word and wants it back.
func exchange(t testing.TB, conn net.Conn) {
	t.Helper()
	word := []byte("steadfast")
	if _, err := conn.Write(word); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, word); err != nil {
		t.Fatal(err)
	}
}

// wait waits for the end of a connection, as a client does that waits for an
// answer: in read(2), with nothing to send. The channel tells when and why.
type ending struct {
	at  time.Time
	err error
}

func wait(conn net.Conn) <-chan ending {
	ended := make(chan ending, 1)
	go func() {
		_, err := conn.Read(make([]byte, 1))
		ended <- ending{time.Now(), err}
	}()
	return ended
}

// still makes sure that nothing was heard of a connection so far.
func still(t testing.TB, ended <-chan ending) {
	t.Helper()
	select {
	case e := <-ended:
		t.Fatalf("the client heard of it already: %v", e.err)
	default:
	}
}

// reset waits for the reset of a connection. Who reads and writes at once learns
// of it in one of the two, and of a mere end in the other.
func reset(t testing.TB, ended <-chan ending) time.Time {
	t.Helper()
	late := time.After(5 * time.Second)
	var heard []error
	for {
		select {
		case e := <-ended:
			if errors.Is(e.err, syscall.ECONNRESET) {
				return e.at
			}
			heard = append(heard, e.err)
		case <-late:
			t.Fatalf("the client was not reset; it heard %v", heard)
		}
	}
}
