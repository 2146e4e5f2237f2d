package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fakeRedis knows SET, GET and PING. mute has it take a SET and not answer.
type fakeRedis struct {
	mu   sync.Mutex
	has  map[string]string
	mute bool
}

// client is a client of it, connected.
func (f *fakeRedis) client(t *testing.T, c *redisClient) *redisClient {
	t.Helper()
	near, far := net.Pipe()
	c.conn, c.in = near, bufio.NewReader(near)
	served := make(chan struct{})
	go func() {
		defer close(served)
		f.serve(far)
	}()
	t.Cleanup(func() {
		_ = near.Close()
		<-served
	})
	return c
}

// serve answers until the client has gone.
func (f *fakeRedis) serve(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		var args []string
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
		for range n {
			line, _ := in.ReadString('\n')
			size, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
			b := make([]byte, size+2)
			if _, err := io.ReadFull(in, b); err != nil {
				return
			}
			args = append(args, string(b[:size]))
		}
		if _, err := io.WriteString(c, f.do(args)); err != nil {
			return
		}
	}
}

func (f *fakeRedis) do(args []string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case args[0] == "SET":
		f.has[args[1]] = args[2]
		if f.mute {
			return ""
		}
		return "+OK\r\n"
	case args[0] == "GET" && f.has[args[1]] != "":
		return fmt.Sprintf("$%d\r\n%s\r\n", len(f.has[args[1]]), f.has[args[1]])
	}
	return "$-1\r\n"
}

// TestReadBack: what was acknowledged must be there; what was sent and not answered may be.
func TestReadBack(t *testing.T) {
	f := &fakeRedis{has: map[string]string{}}
	c := f.client(t, newRedisClient(nil))
	c.begin()
	if err := c.flowing(t.Context(), keys+10, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := c.end(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.readBack(); err != nil || n != keys {
		t.Fatalf("%d keys, %v", n, err)
	}

	// One that is taken and never answered: old or new, both are right.
	f.mu.Lock()
	f.mute = true
	f.mu.Unlock()
	c.begin()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		sent := len(c.maybe) > 0
		c.mu.Unlock()
		if sent {
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing was sent")
		}
	}
	c.abandon()
	if _, err := c.waited(); err == nil {
		t.Error("a connection that ended is no error")
	}
	f.mu.Lock()
	f.mute = false
	f.mu.Unlock()
	next := f.client(t, c.follower())
	if n, err := next.readBack(); err != nil || n != keys {
		t.Fatalf("after a write in doubt: %d keys, %v", n, err)
	}

	// One that is gone, and one that has an older value.
	for _, spoil := range []string{"", valueOf(1)} {
		f.mu.Lock()
		kept := f.has[keyName(7)]
		f.has[keyName(7)] = spoil
		f.mu.Unlock()
		if _, err := next.readBack(); err == nil || !strings.Contains(err.Error(), "LOST: k7 ") {
			t.Errorf("a lost write is not noticed: %v", err)
		}
		f.mu.Lock()
		f.has[keyName(7)] = kept
		f.mu.Unlock()
	}
}

// TestWaited: a request that is under way counts.
func TestWaited(t *testing.T) {
	f := &fakeRedis{has: map[string]string{}, mute: true}
	c := f.client(t, newRedisClient(nil))
	c.begin()
	defer c.abandon()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if stall, err := c.waited(); err != nil || stall > 50*time.Millisecond {
			if err != nil {
				t.Error(err)
			}
			return
		}
		if time.Now().After(end) {
			t.Fatal("a request that is not answered is no wait")
		}
	}
}

// TestAlone: an old life that is heard after a newer one is noticed.
func TestAlone(t *testing.T) {
	l := &listener{}
	at := time.Now()
	for i, id := range []string{"one", "one", "two"} {
		l.heard(id, at.Add(time.Duration(i)*time.Second))
	}
	one := l.of("one")
	two, ok := l.present()
	if !ok || two.id != "two" || one.beats != 2 {
		t.Fatalf("heard %+v", l.boots)
	}
	if err := l.alone(one, two); err != nil {
		t.Error(err)
	}
	l.heard("one", at.Add(3*time.Second))
	if err := l.alone(one, two); err == nil {
		t.Error("two lives at once are not noticed")
	}
}

// TestDescendants: a process of a session of its own is found, stopped and woken with the one
// that started it.
func TestDescendants(t *testing.T) {
	cmd := exec.Command("sh", "-c", "setsid sleep 600 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = signalTree(cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, _ := strconv.Atoi(strings.TrimSpace(line))
	state := func(want string) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			list := descendants(cmd.Process.Pid)
			if len(list) == 1 && list[0].pid == child && strings.ContainsRune(want, rune(list[0].state)) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("descendants are %v, and %d was to be in state %s", list, child, want)
			}
		}
	}
	state("SR")
	if err := signalTree(cmd.Process.Pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	state("T")
	if err := signalTree(cmd.Process.Pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	state("SR")
	if !lives(child) {
		t.Error("it does not live")
	}
}

// TestChoose: names are checked, and CI has its own.
func TestChoose(t *testing.T) {
	for names, want := range map[string]string{
		"ci":                 "moved killed killed-here host-killed",
		"host-killed,frozen": "frozen host-killed",
	} {
		list, err := choose(names)
		var got []string
		for _, k := range list {
			got = append(got, k.name)
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v", names, got, err)
		}
	}
	if _, err := choose("moved,nonsense"); err == nil {
		t.Error("a kind that is not there is taken")
	}
}
