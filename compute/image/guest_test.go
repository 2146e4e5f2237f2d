package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/usernet"
)

// guestPatience bounds what a guest may take: the host may have much else to do.
const guestPatience = 20 * time.Minute

// emulated is an image running in QEMU, with a network of usernet's.
type emulated struct {
	cmd     *exec.Cmd
	network *usernet.Network
	in      io.WriteCloser
	monitor net.Conn
	exited  chan error

	mu      sync.Mutex
	changed *sync.Cond
	console []byte
	read    int // how much of it was expected already
}

// emulate boots the image in dir.
func emulate(t *testing.T, dir string, m *Manifest, forwards ...usernet.Forward) *emulated {
	t.Helper()
	path, err := toolPath(QEMUTool)
	if err != nil {
		t.Fatal(err)
	}
	e := &emulated{exited: make(chan error, 1)}
	e.changed = sync.NewCond(&e.mu)
	if e.network, err = usernet.New(usernet.Options{Forwards: forwards}); err != nil {
		t.Fatal(err)
	}
	ours, theirs := socketPair(t)
	joined := make(chan error, 1)
	go func() { joined <- e.network.Join(ours) }()
	// A short path, as sockets' have to be.
	tmp, err := os.MkdirTemp("", "sf")
	if err != nil {
		t.Fatal(err)
	}
	monitor := filepath.Join(tmp, "qmp")
	e.cmd = exec.Command(path,
		"-machine", "virt", "-m", "512", "-global", "virtio-mmio.force-legacy=false", "-display", "none", "-serial", "stdio", "-no-reboot", "-qmp", "unix:"+monitor+",server=on,wait=off",
		"-kernel", filepath.Join(dir, kernelFile), "-initrd", filepath.Join(dir, initrdFile), "-append", m.Cmdline,
		"-drive", "file="+filepath.Join(dir, m.Disk)+",format=raw,if=none,id=disk,cache=unsafe", "-device", "virtio-blk-device,drive=disk",
		"-netdev", "dgram,id=net,local.type=fd,local.str=3", "-device", "virtio-net-device,netdev=net",
		"-device", "virtio-rng-device", "-device", "virtio-keyboard-device")
	e.cmd.ExtraFiles = []*os.File{theirs}
	if e.in, err = e.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	e.cmd.Stdout, e.cmd.Stderr = e, e
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	go func() {
		e.exited <- e.cmd.Wait()
		e.changed.Broadcast()
	}()
	t.Cleanup(func() {
		_ = e.cmd.Process.Kill()
		<-e.exited
		if err := e.network.Close(); err != nil {
			t.Error(err)
		}
		if err := <-joined; err != nil {
			t.Error(err)
		}
		os.RemoveAll(tmp)
	})
	e.connectMonitor(t, monitor)
	return e
}

// socketPair is one for frames: a connection and a file for a child.
func socketPair(t *testing.T) (net.Conn, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "frames")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c, os.NewFile(uintptr(fds[1]), "frames of the machine")
}

// connectMonitor opens QEMU's machine protocol.
func (e *emulated) connectMonitor(t *testing.T, path string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", path)
		if err == nil {
			e.monitor = c
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { e.monitor.Close() })
	if _, err := fmt.Fprintln(e.monitor, `{"execute":"qmp_capabilities"}`); err != nil {
		t.Fatal(err)
	}
	// Nothing that it says is needed, but it has to be read.
	go func() { _, _ = io.Copy(io.Discard, e.monitor) }()
}

// press sends a key of the keyboard by QEMU's name of it.
func (e *emulated) press(t *testing.T, key string) {
	t.Helper()
	line, err := json.Marshal(map[string]any{
		"execute": "send-key", "arguments": map[string]any{"keys": []any{map[string]any{"type": "qcode", "data": key}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.monitor.Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
}

// Write takes the console.
func (e *emulated) Write(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.console = append(e.console, b...)
	e.changed.Broadcast()
	return len(b), nil
}

// expect waits until the console says text, after what was expected before, and returns
// what it said up to there.
func (e *emulated) expect(t *testing.T, text string) string {
	t.Helper()
	timer := time.AfterFunc(guestPatience, e.changed.Broadcast)
	defer timer.Stop()
	end := time.Now().Add(guestPatience)
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		if i := bytes.Index(e.console[e.read:], []byte(text)); i >= 0 {
			said := string(e.console[e.read : e.read+i])
			e.read += i + len(text)
			return said
		}
		if !time.Now().Before(end) || len(e.exited) > 0 {
			t.Fatalf("the console did not say %q within %v; it said:\n%s", text, guestPatience, e.console[max(0, len(e.console)-4000):])
		}
		e.changed.Wait()
	}
}

// login waits for the prompt and logs in.
func (e *emulated) login(t *testing.T, password string) {
	t.Helper()
	e.expect(t, "login: ")
	e.send(t, "root")
	if password != "" {
		e.expect(t, "Password: ")
		e.send(t, password)
	}
	e.expect(t, "# ")
	// A prompt that nothing else looks like, and no wrapped lines.
	e.send(t, "stty -echo cols 500; export NO_COLOR=1 TERM=dumb; PS1= PS2=; bind 'set enable-bracketed-paste off' 2>/dev/null; echo re''ady")
	e.expect(t, "ready")
}

func (e *emulated) send(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(e.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

// shell runs a command in the guest; it must succeed, and its output is returned.
func (e *emulated) shell(t *testing.T, command string) string {
	t.Helper()
	e.send(t, "( "+command+"\n) 2>&1; echo \"=status:\"$?=")
	out := strings.ReplaceAll(e.expect(t, "=status:"), "\r", "")
	if status := e.expect(t, "="); status != "0" {
		t.Errorf("%s: status %s\n%s", command, status, out)
	}
	return strings.TrimSpace(out)
}

// powerOff presses the power button and waits for the end.
func (e *emulated) powerOff(t *testing.T) {
	t.Helper()
	e.press(t, "power")
	select {
	case err := <-e.exited:
		e.exited <- err
		if err != nil {
			t.Error(err)
		}
	case <-time.After(guestPatience):
		t.Fatalf("the power button does not power off:\n%s", e.tail())
	}
}

func (e *emulated) tail() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return string(e.console[max(0, len(e.console)-4000):])
}

// TestGuest boots what is built: root logs in, the network is up, dpkg and apt are content
// and install a package, a service that was asked for serves, the disk may grow, and the power
// button ends it all with a clean filesystem.
func TestGuest(t *testing.T) {
	slow(t)
	cache := cacheDir(t)
	for _, tc := range []struct{ profile, password string }{{"minimal", ""}, {"debian", "a secret: ü"}} {
		t.Run(tc.profile, func(t *testing.T) {
			store := Store{Dir: t.TempDir()}
			b := &Builder{Cache: cache, Runner: QEMU{}, Say: t.Logf}
			spec := Spec{Name: "db1", Profile: tc.profile, Packages: []string{"redis-server"}}
			if tc.password != "" {
				spec.RootPassword = []byte(tc.password)
			}
			dir, err := store.Path(spec.Name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Build(context.Background(), spec, dir); err != nil {
				t.Fatal(err)
			}
			used, err := store.UsedBytes("db1")
			if err != nil {
				t.Fatal(err)
			}
			m, err := store.Resize(context.Background(), "db1", 1200<<20)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			e := emulate(t, dir, m, usernet.Forward{Listen: "127.0.0.1:0", GuestPort: 6379})
			e.login(t, tc.password)
			t.Logf("%s: %d packages, files take %d MiB, booted and logged in after %v", tc.profile, len(m.Packages), used>>20, time.Since(start).Round(time.Second/10))
			tryGuest(t, e)
			e.powerOff(t)
			if _, err := (command{name: "e2fsck", args: []string{"-f", "-n", filepath.Join(dir, m.Disk)}}).run(context.Background()); err != nil {
				t.Errorf("the filesystem is not clean: %v", err)
			}
		})
	}
}

func tryGuest(t *testing.T, e *emulated) {
	t.Helper()
	if got := e.shell(t, "hostname"); got != "db1" {
		t.Errorf("its name is %q", got)
	}
	if got := e.shell(t, "stat -c '%U:%G %a' /usr/sbin/unix_chkpwd /etc/shadow /usr/bin/passwd /var/mail | tr '\\n' ' '"); got != "root:shadow 2755 root:shadow 640 root:root 4755 root:mail 2775" {
		t.Errorf("owners and modes: %s", got)
	}
	if got := e.shell(t, "echo $(($(stat -fc '%b * %S' /) >> 20))"); len(got) != 4 || got < "1100" {
		t.Errorf("the filesystem has %s MiB of 1200", got)
	}
	if got := e.shell(t, "dpkg --audit; dpkg --verify; apt-get check -qq"); got != "" {
		t.Errorf("dpkg and apt find: %s", got)
	}
	// The lease, the gateway's DNS, and the way out.
	e.shell(t, "i=0; until getent hosts localhost >/dev/null && { busybox ip route || ip route; } 2>/dev/null | grep -q '^default via 10.0.2.2' && grep -q ^nameserver /etc/resolv.conf; do i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 1; done")
	if got := e.shell(t, "busybox ip -4 addr show dev eth0 2>/dev/null || ip -color=never -4 addr show dev eth0"); !strings.Contains(got, "inet 10.0.2.15/24") {
		t.Errorf("its address: %s", got)
	}
	if got := e.shell(t, "apt-get update -qq && apt-get install -y -qq hello >/dev/null && hello && dpkg --audit"); !strings.HasSuffix(got, "Hello, world!") {
		t.Errorf("apt-get install: %s", got)
	}
	// Redis listens on loopback only, as packaged.
	e.shell(t, "redis-cli config set protected-mode no && redis-cli config set bind 0.0.0.0")
	c, err := net.Dial("tcp", e.network.Forwards()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(guestPatience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "PING\r\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "+PONG\r\n" {
		t.Errorf("redis says %q, %v", line, err)
	}
}
