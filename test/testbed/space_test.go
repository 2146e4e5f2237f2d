package testbed

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// world is two namespaces on two bridges.
func world(t *testing.T) (sw *Switch, a, b *Space) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: network namespaces need root")
	}
	sw, err := NewSwitch("front", "back")
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	t.Cleanup(func() { _ = sw.Close() })
	spaces := map[string]*Space{}
	for i, name := range []string{"a", "b"} {
		s, err := NewSpace()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		spaces[name] = s
		for j, bridge := range []string{"front", "back"} {
			address := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(j), byte(i + 1)}), 24)
			if err := sw.Attach(s, bridge, bridge+"-"+name, bridge, address); err != nil {
				t.Fatal(err)
			}
		}
	}
	return sw, spaces["a"], spaces["b"]
}

// echoes answers datagrams in b.
func echoes(t *testing.T, b *Space) {
	t.Helper()
	var c net.PacketConn
	err := b.Do(func() (err error) {
		c, err = net.ListenPacket("udp4", ":7")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		var buf [16]byte
		for {
			n, from, err := c.ReadFrom(buf[:])
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], from)
		}
	}()
}

// reaches tells whether a datagram comes back.
func reaches(t *testing.T, a *Space, address string, patience time.Duration) bool {
	t.Helper()
	var c net.Conn
	err := a.Do(func() (err error) {
		c, err = net.Dial("udp4", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		_, _ = c.Write([]byte("?"))
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		var buf [16]byte
		if _, err := c.Read(buf[:]); err == nil {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func TestCuts(t *testing.T) {
	sw, a, b := world(t)
	echoes(t, b)
	front, back := "10.77.0.2:7", "10.77.1.2:7"
	for _, how := range []Cut{Unplug, Drop} {
		for _, tc := range []struct {
			ports       []string
			front, back bool
		}{
			{[]string{"back-b"}, true, false},
			{[]string{"back-a"}, true, false},
			{[]string{"front-b", "back-b"}, false, false},
			{[]string{"front-a"}, false, true},
		} {
			if !reaches(t, a, front, 3*time.Second) || !reaches(t, a, back, 3*time.Second) {
				t.Fatalf("not whole before %v %v", how, tc.ports)
			}
			if err := sw.Cut(how, tc.ports...); err != nil {
				t.Fatal(err)
			}
			for address, want := range map[string]bool{front: tc.front, back: tc.back} {
				if got := reaches(t, a, address, 200*time.Millisecond); got != want {
					t.Errorf("%v %v: %s reached: %v", how, tc.ports, address, got)
				}
			}
			if err := sw.Mend(tc.ports...); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestCutBetween: two ports lose each other only.
func TestCutBetween(t *testing.T) {
	sw, a, b := world(t)
	echoes(t, b)
	third, err := NewSpace()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = third.Close() }()
	if err := sw.Attach(third, "back", "back-w", "back", netip.MustParsePrefix("10.77.1.3/24")); err != nil {
		t.Fatal(err)
	}
	if err := sw.CutBetween("back-a", "back-b"); err != nil {
		t.Fatal(err)
	}
	if reaches(t, a, "10.77.1.2:7", 200*time.Millisecond) {
		t.Error("not cut")
	}
	if !reaches(t, third, "10.77.1.2:7", 3*time.Second) || !reaches(t, a, "10.77.0.2:7", 3*time.Second) {
		t.Error("others are cut, too")
	}
	if err := sw.Mend("back-a"); err != nil {
		t.Fatal(err)
	}
	if !reaches(t, a, "10.77.1.2:7", 3*time.Second) {
		t.Error("not mended")
	}
}

func TestProc(t *testing.T) {
	_, a, _ := world(t)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	p, err := StartProc(a, log, "sh", "-c", "ls /sys/class/net >/dev/null; cat /proc/net/dev; sleep 100 & echo $! ready; wait")
	if err != nil {
		t.Fatal(err)
	}
	var text string
	for end := time.Now().Add(5 * time.Second); !strings.Contains(text, "ready"); {
		raw, _ := os.ReadFile(log.Name())
		if text = string(raw); time.Now().After(end) {
			t.Fatalf("said %q", text)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if !strings.Contains(text, "front:") {
		t.Errorf("it is not in the namespace: %s", text)
	}
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil { // a stopped group, too
		t.Fatal(err)
	}
	if gone, _ := p.Exited(); !gone {
		t.Error("it lives")
	}
	child := strings.Fields(text[strings.LastIndex(strings.TrimSuffix(strings.TrimSpace(text), " ready"), "\n")+1:])[0]
	time.Sleep(100 * time.Millisecond)
	if state, err := os.ReadFile("/proc/" + child + "/stat"); err == nil && !strings.Contains(string(state), ") Z ") {
		t.Errorf("its child lives: %s", state)
	}
}

func TestDrive(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: a loop device needs root")
	}
	if _, err := lookup("mkfs.ext4"); err != nil {
		t.Skip("SKIP: ", err)
	}
	dir := t.TempDir()
	d, err := NewDrive(t.Context(), dir, 64<<20)
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	defer func() { _ = d.Close() }()
	f, err := os.OpenFile(d.Path("pool"), os.O_CREATE|os.O_RDWR|unix.O_DSYNC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt([]byte("before"), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Fail(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("after."), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("write: %v", err)
	}
	if err := f.Sync(); !errors.Is(err, unix.EIO) {
		t.Errorf("flush: %v", err)
	}
	if _, err := f.ReadAt(make([]byte, 6), 0); !errors.Is(err, unix.EIO) {
		t.Errorf("read: %v", err)
	}
	_ = f.Close()
	if err := d.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(d.Path("pool"))
	if err != nil || string(text) != "before" {
		t.Errorf("after the repair: %q, %v", text, err)
	}
}

// TestSweep: what a run leaves that was killed is removed by the next one, and
// what a living one has is not.
func TestSweep(t *testing.T) {
	parent := t.TempDir()
	alive, err := NewFolder(parent, "run")
	if err != nil {
		t.Fatal(err)
	}
	dead, err := NewFolder(parent, "run")
	if err != nil {
		t.Fatal(err)
	}
	_ = dead.lock.Close() // as the kernel does
	if os.Geteuid() == 0 {
		if err := os.Mkdir(filepath.Join(dead.Path, "drive"), 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mount", "-t", "tmpfs", "none", filepath.Join(dead.Path, "drive")).CombinedOutput(); err != nil {
			t.Logf("no mount here: %s", out)
		}
	}
	if err := Sweep(parent, "run"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(alive.Path); err != nil {
		t.Error(err)
	}
	if err := alive.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(parent); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestTap: what a guest sends reaches who is on the bridge, and the port can be
// cut like any other.
func TestTap(t *testing.T) {
	s, _, _ := world(t)
	tap, err := s.AttachTap("front", "g-front")
	if err != nil {
		t.Fatal(err)
	}
	if !asked(t, tap) {
		t.Error("no answer for the tap")
	}
	if err := s.Cut(Drop, "g-front"); err != nil {
		t.Fatal(err)
	}
	if asked(t, tap) {
		t.Error("an answer through a cut link")
	}
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AttachTap("front", "g-front"); err != nil {
		t.Errorf("the link stayed behind its file: %v", err)
	}
}

// asked asks by ARP for 10.77.0.1 through a tap, and tells whether an answer came.
func asked(t *testing.T, tap *os.File) bool {
	t.Helper()
	guest := []byte{0x52, 0x54, 0, 0x77, 0, 0x0a}
	ask := make([]byte, 10) // the header of a frame with nothing left to do
	ask = append(ask, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	ask = append(ask, guest...)
	ask = append(ask, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	ask = append(ask, guest...)
	ask = append(ask, 10, 77, 0, 10, 0, 0, 0, 0, 0, 0, 10, 77, 0, 1)
	for range 10 {
		if _, err := tap.Write(ask); err != nil {
			t.Fatal(err)
		}
		// Not with deadlines: a tap that was opened before TUNSETIFF is not polled by
		// the runtime.
		fds := []unix.PollFd{{Fd: int32(tap.Fd()), Events: unix.POLLIN}}
		for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); {
			if n, err := unix.Poll(fds, 50); n == 0 || err != nil {
				continue
			}
			frame := make([]byte, 2048)
			n, err := tap.Read(frame)
			if err != nil {
				t.Fatal(err)
			}
			if f := frame[10:n]; len(f) >= 42 && [6]byte(f[:6]) == [6]byte(guest) && f[12] == 8 && f[13] == 6 && f[21] == 2 {
				return true
			}
		}
	}
	return false
}
