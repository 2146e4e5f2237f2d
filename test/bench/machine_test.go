package main

import (
	"context"
	"strings"
	"testing"
	"time"
)

// TestMixLines: the seconds of a program are those between its two lines.
func TestMixLines(t *testing.T) {
	l := &stampedLines{}
	for _, p := range mixPrograms {
		for _, part := range []string{"begin " + p + "\r", "\nend " + p + " 12", "34 77\r\n"} {
			if _, err := l.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range l.lines {
		l.lines[i].at = time.Unix(int64(i*i), 0)
	}
	r, err := l.mix()
	if err != nil {
		t.Fatal(err)
	}
	if r.seconds["crc"] != 3*3-2*2 || r.instructions["crc"] != 1234 || r.results["crc"] != "77" {
		t.Errorf("%+v", r)
	}
	l.lines = l.lines[:3]
	if _, err := l.mix(); err == nil {
		t.Error("half of a mix is no error")
	}
}

// TestScreen: what is awaited is found across writes, and what is before it is kept.
func TestScreen(t *testing.T) {
	s := newScreen()
	go func() {
		for _, p := range []string{"one lo", "gin", ": two", "# three"} {
			if _, err := s.Write([]byte(p)); err != nil {
				t.Error(err)
			}
		}
	}()
	got, at, err := s.await(t.Context(), "# ", "login: ")
	if err != nil || got != "login: " || s.before() != "one " || time.Since(at) < 0 {
		t.Errorf("%q after %q: %v", got, s.before(), err)
	}
	if got, _, err = s.await(t.Context(), "# "); err != nil || got != "# " || s.before() != "two" {
		t.Errorf("%q after %q: %v", got, s.before(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.await(ctx, "four"); err == nil || !strings.Contains(err.Error(), "three") {
		t.Errorf("what there is instead is not told: %v", err)
	}
	s.end()
	if _, _, err := s.await(t.Context(), "four"); err == nil {
		t.Error("nothing is awaited of a guest that has ended")
	}
}

// TestKilobytes reads fields as /proc prints them.
func TestKilobytes(t *testing.T) {
	text := "Name:\tx\nVmRSS:\t  2048 kB\n"
	if v, err := kilobytes(text, "VmRSS:"); err != nil || v != 2 {
		t.Errorf("%v, %v", v, err)
	}
	if _, err := kilobytes(text, "VmHWM:"); err == nil {
		t.Error("a field that is not there")
	}
}
