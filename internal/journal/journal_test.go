package journal

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// redis is a list that is served as Redis does, and as it must not.
type redis struct {
	t *testing.T
	l net.Listener

	mu    sync.Mutex
	list  []string
	conns []net.Conn
	// push takes a request's entry and says what is answered; "": the connection ends.
	push func(r *redis, entry string) string
	ran  sync.WaitGroup
}

func newRedis(t *testing.T) *redis {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &redis{t: t, l: l, push: pushed}
	r.ran.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.conns = append(r.conns, conn)
			r.mu.Unlock()
			r.ran.Go(func() { r.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.hangUp()
		r.ran.Wait()
	})
	return r
}

// pushed is what Redis does.
func pushed(r *redis, entry string) string {
	r.list = append(r.list, entry)
	return fmt.Sprintf(":%d\r\n", len(r.list))
}

func (r *redis) length() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.list)
}

func (r *redis) hangUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
}

func (r *redis) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	size := func() int {
		line, err := in.ReadString('\n')
		if err != nil {
			return -1
		}
		n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
		return n
	}
	for {
		n := size()
		if n < 0 {
			return
		}
		args := make([]string, n)
		for i := range args {
			b := make([]byte, size()+2)
			if _, err := io.ReadFull(in, b); err != nil {
				return
			}
			args[i] = string(b[:len(b)-2])
		}
		answer := r.answer(args)
		if answer == "" {
			return
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

func (r *redis) answer(args []string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch args[0] {
	case "PING":
		return "+PONG\r\n"
	case "RPUSH":
		return r.push(r, args[2])
	case "EXPIRE":
		return ":1\r\n"
	case "DEL":
		r.list = nil
		return ":1\r\n"
	case "LRANGE":
		from, _ := strconv.Atoi(args[2])
		to, _ := strconv.Atoi(args[3])
		some := r.list[min(from, len(r.list)):min(to+1, len(r.list))]
		text := fmt.Sprintf("*%d\r\n", len(some))
		for _, e := range some {
			text += fmt.Sprintf("$%d\r\n%s\r\n", len(e), e)
		}
		return text
	}
	return "-ERR unknown command\r\n"
}

func (r *redis) start() *Client {
	r.t.Helper()
	c, err := Start(r.t.Context(), Options{Key: "k", KeepFor: time.Hour, Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", r.l.Addr().String())
	}})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// until waits until so many answers, or requests, have been seen.
func until(t *testing.T, c *Client, holds func(Stats) bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(c.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so far: %+v", c.Stats())
		}
	}
}

// TestJudge: what a list that is not kept as it must be is called.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name string
		push func(r *redis, entry string) string
		want Stats
	}{
		{"clean", pushed, Stats{}},
		{"lost", func(r *redis, e string) string {
			if e == Entry(7) {
				return fmt.Sprintf(":%d\r\n", len(r.list)+1)
			}
			return pushed(r, e)
		}, Stats{Lost: 1, Wrong: 1}}, // from then on the answers count one too few
		{"duplicated", func(r *redis, e string) string {
			if e == Entry(7) {
				defer func() { r.list = append(r.list, e) }()
			}
			answer := pushed(r, e)
			return answer
		}, Stats{Duplicated: 1, Wrong: 1}}, // from then on the answers count one too many
		{"wrong order", func(r *redis, e string) string {
			if e == Entry(7) {
				r.list = slices.Insert(r.list, len(r.list)-1, e)
				return fmt.Sprintf(":%d\r\n", len(r.list))
			}
			return pushed(r, e)
		}, Stats{Wrong: 1}},
		{"not ours", func(r *redis, e string) string {
			answer := pushed(r, e)
			if e == Entry(7) {
				r.list[len(r.list)-1] = "7.7."
			}
			return answer
		}, Stats{Wrong: 1, Lost: 1}},
		{"in doubt, there", func(r *redis, e string) string {
			if answer := pushed(r, e); e != Entry(7) {
				return answer
			}
			return ""
		}, Stats{Reconnects: 1}},
		{"in doubt, not there", func(r *redis, e string) string {
			if e == Entry(7) {
				return ""
			}
			return pushed(r, e)
		}, Stats{Reconnects: 1}},
		{"refused", func(r *redis, e string) string {
			if e == Entry(7) {
				return "-MISCONF errors writing to the AOF file\r\n"
			}
			return pushed(r, e)
		}, Stats{Wrong: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRedis(t)
			r.push = c.push
			k := r.start()
			defer k.Close()
			until(t, k, func(s Stats) bool { return s.Requests > 20 })
			if err := k.ReadNew(t.Context()); err != nil {
				t.Fatal(err)
			}
			until(t, k, func(s Stats) bool { return s.Requests > 40 })
			k.Stop(t.Context())
			for range 2 { // it finds the same again
				if err := k.ReadAll(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			s := k.Stats()
			if c.want.Wrong > 0 {
				s.Wrong = min(s.Wrong, c.want.Wrong) // each look finds it
			}
			if s.Lost != c.want.Lost || s.Duplicated != c.want.Duplicated || s.Wrong != c.want.Wrong || s.Reconnects != c.want.Reconnects {
				t.Errorf("%+v; want %+v", s, c.want)
			}
			if clean := c.want.Lost+c.want.Duplicated+c.want.Wrong == 0; s.Clean() != clean || (len(s.Findings) == 0) != clean {
				t.Errorf("clean %v, findings %q", s.Clean(), s.Findings)
			}
			if n := r.length(); s.ReadBack != n || s.Requests < 40 {
				t.Errorf("%d read back of %d; %+v", s.ReadBack, n, s)
			}
		})
	}
}

// TestWaited: a request counts for the time in which it is under way, answered or not.
func TestWaited(t *testing.T) {
	r := newRedis(t)
	hold := make(chan struct{})
	r.push = func(r *redis, e string) string {
		if e == Entry(5) {
			r.mu.Unlock()
			<-hold
			r.mu.Lock()
		}
		return pushed(r, e)
	}
	k := r.start()
	defer k.Close()
	until(t, k, func(s Stats) bool { return s.Requests == 6 })
	at := time.Now()
	time.Sleep(20 * time.Millisecond)
	if w := k.Waited(at, time.Now()); w < 20*time.Millisecond {
		t.Errorf("under way: %v", w)
	}
	close(hold)
	until(t, k, func(s Stats) bool { return s.Answers > 6 })
	if w := k.Waited(at, at.Add(time.Millisecond)); w < 20*time.Millisecond {
		t.Errorf("answered: %v", w)
	}
	if w := k.Waited(at.Add(-time.Hour), at.Add(-time.Minute)); w != 0 {
		t.Errorf("before all: %v", w)
	}
	k.Mark()
	if w := k.Waited(at, at.Add(time.Millisecond)); w != 0 {
		t.Errorf("after a mark: %v", w)
	}
	k.Stop(t.Context())
	if err := k.Remove(t.Context()); err != nil || r.length() != 0 {
		t.Errorf("%d entries, %v", r.length(), err)
	}
}

// TestStop: a request that is never answered is abandoned when there is no more time, and so is
// a Redis that does not come back.
func TestStop(t *testing.T) {
	r := newRedis(t)
	hold := make(chan struct{})
	defer close(hold)
	r.push = func(r *redis, _ string) string {
		r.mu.Unlock()
		<-hold
		r.mu.Lock()
		return ""
	}
	k := r.start()
	until(t, k, func(s Stats) bool { return s.Requests == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	k.Stop(ctx)
	k.Close()
	if s := k.Stats(); s.Answers != 0 || s.Requests != 1 {
		t.Errorf("%+v", s)
	}
	_ = r.l.Close()
	if _, err := Start(ctx, Options{Key: "k", Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", r.l.Addr().String())
	}}); err == nil {
		t.Error("nobody has answered, and it has begun")
	}
}
