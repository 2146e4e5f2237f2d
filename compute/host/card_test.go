package host

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestCard: a card takes frames to its machine, drops them while that follows another host, and
// keeps them, up to a bound, while it is about to go elsewhere.
func TestCard(t *testing.T) {
	machine, wire := net.Pipe()
	defer machine.Close()
	c := &card{Conn: wire, state: cardQuiet}
	send := func(text string) {
		t.Helper()
		if n, err := c.Write([]byte(text)); err != nil || n != len(text) {
			t.Fatal(n, err)
		}
	}
	send("old news")
	c.become(cardLive)
	got := make(chan string)
	go func() {
		b := make([]byte, 64)
		n, _ := machine.Read(b)
		got <- string(b[:n])
	}()
	send("live")
	if s := <-got; s != "live" {
		t.Errorf("the machine got %q", s)
	}
	if held := c.become(cardHolds); len(held) > 0 {
		t.Errorf("it held %q", held)
	}
	send("one")
	send("two")
	send(string(make([]byte, heldMax)))
	held := c.become(cardHolds)
	if d := cmp.Diff([][]byte{[]byte("one"), []byte("two")}, held); d != "" {
		t.Error(d)
	}
	send("three")
	var b bytes.Buffer
	must(t, sendFrames(&b, [][][]byte{held, {[]byte("three")}}))
	for _, want := range []struct {
		card  int
		frame string
	}{{0, "one"}, {0, "two"}, {1, "three"}} {
		n, frame, err := readFrame(&b)
		if err != nil || n != want.card || string(frame) != want.frame {
			t.Errorf("read %q of card %d, %v", frame, n, err)
		}
	}
	if _, _, err := readFrame(&b); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if _, _, err := readFrame(bytes.NewReader([]byte{0, 0xff, 0, 0, 0})); err == nil {
		t.Error("a frame of 4 GiB is read")
	}
}

// TestFramesFollow: what comes for a machine while its secondary takes over is not lost.
func TestFramesFollow(t *testing.T) {
	w, _, c := paired(t)
	x, y := w.hosts["h1"], w.hosts["h2"]
	x.wrote(c)
	must(t, x.HandOver(t.Context(), vm))
	w.on("h2")
	y.mu.Lock()
	defer y.mu.Unlock()
	r, err := y.find(vm)
	must(t, err)
	r.mu.Lock()
	f := r.follower
	r.mu.Unlock()
	ours, theirs := net.Pipe()
	taken := make(chan struct{})
	go func() {
		defer close(taken)
		f.frames(theirs)
	}()
	_ = ours.SetDeadline(time.Now().Add(patience))
	must(t, sendFrames(ours, [][][]byte{{make([]byte, 60)}}))
	must(t, ours.Close())
	<-taken
}
