package vmm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"steadfast/compute/machine"
	"steadfast/compute/machine/machinetest"
)

func decoded(t *testing.T, b []byte) (r reply) {
	t.Helper()
	must(t, json.Unmarshal(b, &r))
	return r
}

// survived is the exit status of a forbidden call that was let through, and allowed of a
// process that did what it may.
const (
	survived = 9
	allowed  = 7
)

// attempts are what the process of a machine must not be able to do. Each is tried by a
// process that has confined itself.
var attempts = map[string]func(){
	"openat": func() { _, _ = unix.Open("/etc/passwd", unix.O_RDONLY, 0) },
	"socket": func() { _, _ = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0) },
	"connect": func() {
		_ = unix.Connect(0, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 1}})
	},
	"sendto":  func() { _ = unix.Sendto(0, []byte("x"), 0, &unix.SockaddrUnix{Name: "/run/x"}) },
	"execve":  func() { _ = unix.Exec("/bin/true", []string{"true"}, nil) },
	"fork":    func() { _, _, _ = unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0) },
	"unshare": func() { _ = unix.Unshare(unix.CLONE_NEWUSER) },
	"ptrace":  func() { _ = unix.PtraceAttach(os.Getppid()) },
	"kill":    func() { _ = unix.Kill(os.Getppid(), 0) },
	"tgkill":  func() { _ = unix.Tgkill(os.Getppid(), os.Getppid(), 0) },
	"mmap": func() {
		_, _ = unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	},
	"mprotect": func() {
		_, _, _ = unix.Syscall(unix.SYS_MPROTECT, uintptr(unsafe.Pointer(&page[0])), 4096, unix.PROT_READ|unix.PROT_EXEC)
	},
	"setrlimit": func() { _ = unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}, nil) },
	"bpf":       func() { _, _, _ = unix.Syscall(unix.SYS_BPF, 0, 0, 0) },
	"io_uring":  func() { _, _, _ = unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0) },
	"another thread": func() {
		done := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			_, _ = unix.Open("/etc/passwd", unix.O_RDONLY, 0)
			close(done)
		}()
		<-done
	},
}

// page is a page of no use.
var page [8192]byte

// forbidden confines this process and tries something.
func forbidden(what string) int {
	if err := confine(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if what == "nothing" {
		return fine()
	}
	attempts[what]()
	return survived
}

// fine does what the runtime and a machine do, and calls that fail and kill nobody.
func fine() int {
	done := make(chan struct{})
	for range 20 { // threads
		go func() {
			runtime.LockOSThread()
			time.Sleep(time.Millisecond)
			done <- struct{}{}
		}()
	}
	for range 20 {
		<-done
	}
	runtime.GC()
	garbage := make([][]byte, 64)
	for i := range garbage {
		garbage[i] = make([]byte, 1<<20)
	}
	runtime.KeepAlive(garbage)
	fmt.Fprintln(os.Stderr, time.Now().Local())
	if _, err := unix.FcntlInt(0, unix.F_SETOWN, 1); !errors.Is(err, unix.EPERM) {
		return 2
	}
	if err := unix.Prctl(unix.PR_SET_NAME, 0, 0, 0, 0); !errors.Is(err, unix.EPERM) {
		return 3
	}
	return allowed
}

// TestForbidden: the kernel kills who tries what is not on the list, and nobody else.
func TestForbidden(t *testing.T) {
	try := func(what string) (status syscall.WaitStatus, out string) {
		cmd := exec.Command(program, "forbidden", what)
		cmd.Env = environment()
		b, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatal(what, err)
		}
		return exit.Sys().(syscall.WaitStatus), string(b)
	}
	if s, out := try("nothing"); s.ExitStatus() != allowed {
		t.Fatalf("doing nothing wrong: %v, %d\n%s", s.Signal(), s.ExitStatus(), out)
	}
	for what := range attempts {
		if s, out := try(what); !s.Signaled() || s.Signal() != unix.SIGSYS {
			t.Errorf("%s: signal %v, status %d\n%s", what, s.Signal(), s.ExitStatus(), out)
		}
	}
}

// TestFilter: the filter is one that the kernel takes, and no jump leaves it.
func TestFilter(t *testing.T) {
	raw, err := filter(1)
	must(t, err)
	if len(raw) > 4096 { // BPF_MAXINSNS
		t.Errorf("%d instructions", len(raw))
	}
	instructions, ok := bpf.Disassemble(raw)
	if !ok {
		t.Error("not all of them are known")
	}
	for i, in := range instructions {
		if j, ok := in.(bpf.JumpIf); ok && i+1+max(int(j.SkipTrue), int(j.SkipFalse)) >= len(raw) {
			t.Errorf("instruction %d jumps out", i)
		}
	}
}

// parent is a process that has a machine, and tells its process's identifier.
func parent(dir string) int {
	kernel, err := os.Open(dir + "/kernel")
	if err != nil {
		return 1
	}
	theirs := obeyConfig()
	p, err := Start(context.Background(), Options{Config: theirs, Kernel: kernel})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(p.PID())
	<-p.Exited()
	return 2
}

// TestParentDies: a machine's process ends when its parent is killed.
func TestParentDies(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/kernel", machinetest.Echo(), 0o600))
	cmd := exec.Command(program, "parent", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err, cmd.Wait())
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	must(t, err)
	fd, err := unix.PidfdOpen(pid, 0)
	must(t, err)
	defer func() { must(t, unix.Close(fd)) }()
	ended := func(patience time.Duration) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience/time.Millisecond))
		must(t, err)
		return n > 0
	}
	if ended(0) {
		t.Fatal("it has ended before its parent")
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	if !ended(patience) {
		t.Error("it lives on")
		must(t, unix.Kill(pid, unix.SIGKILL))
	}
}

func obeyConfig() machine.Config {
	return machine.Config{Memory: machinetest.ObeyMemory, Seed: make([]byte, 32), Wall: 1}
}
