package verify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Disk is a disk as a client has it. Its methods may be called at once.
type Disk interface {
	// Size returns bytes.
	Size() int64
	// ReadAt fills p. Offsets and lengths are multiples of Sector.
	ReadAt(p []byte, off int64) error
	// WriteAt writes p; with fua it is stable when it is answered.
	WriteAt(p []byte, off int64, fua bool) error
	// Flush makes all that was answered stable.
	Flush() error
	// Close logs out, and ends the client if that takes too long.
	Close() error
}

// Client says how a disk is opened.
type Client struct {
	// Dir is where sockets are made; short, for a Unix socket's path has 108
	// bytes at most.
	Dir string
	// Initiator is the IQN to log in with.
	Initiator string
	// Log receives what the client prints; nil: nobody.
	Log *os.File
	// Start starts the client's process, for example in a network namespace;
	// nil: cmd.Start. It must not return before the process runs.
	Start func(cmd *exec.Cmd) error
	// NOP is after how much silence the libiscsi client asks the target whether
	// it is there; 0: it does not. QEMU has 5 s, and that is all it has.
	NOP time.Duration
	// Env is added to the client's environment: LIBISCSI_... settings.
	Env []string
}

// closePatience is how long a client may take to end by itself: one whose
// target is gone does not.
const closePatience = 3 * time.Second

// client is a Disk with its process.
type client struct {
	*nbd
	cmd    *exec.Cmd
	exited chan struct{} // closed at the process's end
	exit   error         // after that: how it ended
}

// start runs a client's process. It dies with ours.
func (c Client) start(extra []*os.File, argv ...string) (*client, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = c.Log, c.Log, extra
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	start := c.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("%s: %w", argv[0], err)
	}
	out := &client{cmd: cmd, exited: make(chan struct{})}
	go func() {
		out.exit = cmd.Wait()
		close(out.exited)
	}()
	return out, nil
}

// Close ends the connection and the process.
func (c *client) Close() error {
	var err error
	if c.nbd != nil {
		err = c.nbd.Close()
	}
	return errors.Join(err, c.end(closePatience))
}

// end waits for the process, and then kills it.
func (c *client) end(patience time.Duration) error {
	select {
	case <-c.exited: // how does not matter: it was told to
		return nil
	case <-time.After(patience):
	}
	err := c.cmd.Process.Kill()
	<-c.exited
	return err
}

// OpenLibiscsi opens a disk with libiscsi and nothing above. bridge is the
// program that BuildBridge made.
func OpenLibiscsi(ctx context.Context, c Client, bridge, address string) (Disk, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "bridge"), os.NewFile(uintptr(pair[1]), "bridge")
	defer func() { _ = theirs.Close() }()
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, err
	}
	p, err := c.start([]*os.File{theirs}, bridge, address, c.Initiator, "nop_ms="+strconv.FormatInt(c.NOP.Milliseconds(), 10))
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	_ = theirs.Close() // its end is now the process's end only
	p.nbd, err = until(ctx, conn, greet)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s with libiscsi: %w", address, err), conn.Close(), p.end(0))
	}
	return p, nil
}

// bridgeHello is what bridge.c sends first.
const bridgeHello = 0x5346425249444745

// greet takes the bridge's greeting.
func greet(conn net.Conn) (*nbd, error) {
	in := newReader(conn)
	var hello struct{ Magic, Size uint64 }
	if err := binary.Read(in, binary.BigEndian, &hello); err != nil {
		return nil, fmt.Errorf("the bridge said nothing (see its log): %w", err)
	}
	if hello.Magic != bridgeHello {
		return nil, errors.New("not the bridge")
	}
	return newNBD(conn, in, int64(hello.Size)), nil
}

// until greets with ctx's deadline upon the connection.
func until(ctx context.Context, conn net.Conn, greet func(net.Conn) (*nbd, error)) (*nbd, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	n, err := greet(conn)
	if !stop() && err == nil {
		return nil, ctx.Err()
	}
	return n, err
}

// BuildBridge compiles the libiscsi client into dir. It must run where the
// repository's root is the working directory, or be told where that is.
func BuildBridge(ctx context.Context, root, dir string) (string, error) {
	out := filepath.Join(dir, "bridge")
	source := filepath.Join(root, "test/verify/bridge/bridge.c")
	text, err := exec.CommandContext(ctx, "gcc", "-O2", "-o", out, source, "-liscsi").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the libiscsi client (Debian: gcc libiscsi-dev): %w: %s", err, text)
	}
	return out, nil
}

// OpenQEMU opens a disk with QEMU's block layer: a qemu-nbd whose only
// connection is ours.
func OpenQEMU(ctx context.Context, c Client, address string) (Disk, error) {
	image, err := qemuImage(address, c.Initiator)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(c.Dir, "nbd-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	socket := filepath.Join(dir, "s")
	// cache=none: no block status is remembered from before a takeover, and a
	// flush is passed on.
	p, err := c.start(nil, "qemu-nbd", "--image-opts", "--cache=none", "--shared=1", "--socket="+socket, image)
	if err != nil {
		return nil, err
	}
	conn, err := p.dial(ctx, socket)
	if err == nil {
		if p.nbd, err = until(ctx, conn, negotiate); err != nil {
			err = errors.Join(err, conn.Close())
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s with QEMU: %w", address, err), p.end(0))
	}
	return p, nil
}

// qemuImage makes QEMU's options of an iscsi:// URL: in a URL there is no place
// for the initiator's name.
func qemuImage(address, initiator string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	target, lun, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if u.Scheme != "iscsi" || !ok {
		return "", fmt.Errorf("%q is not iscsi://PORTAL/TARGET/LUN", address)
	}
	return fmt.Sprintf("driver=iscsi,transport=tcp,portal=%s,target=%s,lun=%s,initiator-name=%s", u.Host, target, lun, initiator), nil
}

// dial waits for the socket: qemu-nbd makes it when the disk is open.
func (c *client) dial(ctx context.Context, socket string) (net.Conn, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn, nil
		}
		select {
		case <-c.exited:
			return nil, fmt.Errorf("qemu-nbd ended (see its log): %w", errors.Join(c.exit, io.EOF))
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}
