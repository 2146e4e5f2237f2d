package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"steadfast/internal/journal"
)

// fakeRedis knows RPUSH and LRANGE of one list. mute has it take an entry and not answer.
type fakeRedis struct {
	mu   sync.Mutex
	list []string
	mute bool
}

// client is a client of it, connected.
func (f *fakeRedis) client(t *testing.T, c *redisClient) *redisClient {
	t.Helper()
	near, far := net.Pipe()
	c.conn = journal.NewConn(near)
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
	switch args[0] {
	case "RPUSH":
		f.list = append(f.list, args[2])
		if f.mute {
			return ""
		}
		return fmt.Sprintf(":%d\r\n", len(f.list))
	case "LRANGE":
		from, _ := strconv.Atoi(args[2])
		to, _ := strconv.Atoi(args[3])
		from, to = min(from, len(f.list)), min(to+1, len(f.list))
		var b strings.Builder
		fmt.Fprintf(&b, "*%d\r\n", to-from)
		for _, e := range f.list[from:to] {
			fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(e), e)
		}
		return b.String()
	}
	return "-ERR unknown command\r\n"
}

func (f *fakeRedis) muted(mute bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mute = mute
}

// spoiled calls check with another journal than there is.
func (f *fakeRedis) spoiled(with []string, check func()) {
	f.mu.Lock()
	kept := f.list
	f.list = with
	f.mu.Unlock()
	check()
	f.mu.Lock()
	f.list = kept
	f.mu.Unlock()
}

// TestReadBack: what was acknowledged must be there, once and in order; what was sent and not
// answered may be.
func TestReadBack(t *testing.T) {
	f := &fakeRedis{}
	c := f.client(t, newRedisClient(nil))
	c.begin()
	if err := c.flowing(t.Context(), readAtOnce+10, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := c.end(); err != nil {
		t.Fatal(err)
	}
	all := len(f.list)
	if n, err := c.readBack(); err != nil || n != all {
		t.Fatalf("%d of %d entries, %v", n, all, err)
	}

	// One that is taken and never answered: there or not, both are right.
	f.muted(true)
	c.begin()
	c.awaitDoubt(t)
	c.abandon()
	if _, err := c.waited(); err == nil {
		t.Error("a connection that ended is no error")
	}
	f.muted(false)
	f.spoiled(f.list[:all], func() {
		if n, err := f.client(t, c.follower()).readBack(); err != nil || n != all {
			t.Errorf("without the one in doubt: %d of %d entries, %v", n, all, err)
		}
	})
	next := f.client(t, c.follower())
	if n, err := next.readNew(); err != nil || n != all+1 {
		t.Fatalf("with the one in doubt: %d of %d entries, %v", n, all+1, err)
	}

	// It goes on, and reads what is new.
	next.begin()
	if err := next.flowing(t.Context(), 10, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := next.end(); err != nil {
		t.Fatal(err)
	}
	if n, err := next.readNew(); err != nil || n < 10 || n != len(f.list)-all-1 {
		t.Fatalf("%d new entries of %d, %v", n, len(f.list)-all-1, err)
	}

	for what, spoil := range map[string][]string{
		"LOST: request 7 ": slices.Delete(slices.Clone(f.list), 7, 8),
		"LOST: request 1 ": f.list[:1],
		"LOST: request 8 was acknowledged and is not there; entry 8 is": slices.Insert(slices.Clone(f.list), 8, journal.Entry(7)),
		"entry 7 is \"7.7.7\"":                    slices.Replace(slices.Clone(f.list), 7, 8, "7.7.7"),
		"WRONG: entry " + fmt.Sprint(len(f.list)): append(slices.Clone(f.list), "more"),
	} {
		f.spoiled(spoil, func() {
			if _, err := next.readBack(); err == nil || !strings.Contains(err.Error(), what) {
				t.Errorf("%q is not noticed: %v", what, err)
			}
		})
	}
}

// awaitDoubt waits until a request is under way.
func (c *redisClient) awaitDoubt(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		sent := c.doubt > 0
		c.mu.Unlock()
		if sent {
			return
		}
		if time.Now().After(end) {
			t.Fatal("nothing was sent")
		}
	}
}

// TestAnswers: an answer that counts another journal than the client's is wrong.
func TestAnswers(t *testing.T) {
	f := &fakeRedis{}
	c := f.client(t, newRedisClient(nil))
	c.begin()
	if err := c.flowing(t.Context(), 3, time.Minute); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.list = f.list[:len(f.list)-1]
	f.mu.Unlock()
	<-c.done
	if _, err := c.waited(); err == nil || !strings.Contains(err.Error(), "WRONG: request ") {
		t.Errorf("a journal that is too short is not noticed: %v", err)
	}
}

// TestWaited: a request that is under way counts.
func TestWaited(t *testing.T) {
	f := &fakeRedis{mute: true}
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

// TestWaitedFrom: only what was sent between counts.
func TestWaitedFrom(t *testing.T) {
	c := newRedisClient(nil)
	at := time.Now()
	for i := range 4 {
		c.waits = append(c.waits, wait{at.Add(time.Duration(i) * time.Second), time.Duration(10 - i)})
	}
	if got := c.waitedFrom(at.Add(time.Second), at.Add(3*time.Second)); got != 9 {
		t.Errorf("%d", got)
	}
	c.mark()
	if got := c.waitedFrom(time.Time{}, at.Add(time.Hour)); got != 0 {
		t.Errorf("after mark: %d", got)
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
		"ci":                 "moved killed killed-here host-killed ft-killed ft-owner-and-host",
		"host-killed,frozen": "frozen host-killed",
		"ft-cut,moved":       "moved ft-cut ft-cold",
		"box":                "box-killed box-cut box-apart box-power box-stale",
		"box-cut,ft-killed":  "ft-killed ft-cold box-cut",
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
