package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"steadfast/test/testbed"
)

// fake is a program that behaves as a machine with a guest whose console is a shell.
const fake = `#!/bin/bash
echo "steadfast: connections to 127.0.0.1:1234 are the guest's" >&2
printf 'Debian GNU/Linux 13 x ttyS0\n\nlogin: '
read -r user
[ "$user" = root ] || exit 1
printf 'root@x:~# '
exec bash 2>/dev/null
`

// fakeGuest boots one.
func fakeGuest(t *testing.T) *guest {
	t.Helper()
	dir := t.TempDir()
	r := &run{ctx: t.Context(), bin: filepath.Join(dir, "steadfast"), dir: dir, logs: dir, only: regexp.MustCompile("")}
	manifest := filepath.Join(r.store(), "x", "manifest.json")
	if err := os.MkdirAll(filepath.Dir(manifest), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(manifest, []byte(`{"cmdline": "console=ttyS0"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.bin, []byte(fake), 0o700); err != nil {
		t.Fatal(err)
	}
	g, err := r.boot(machine{image: testbed.Image{Name: "x"}, memory: "1G", ports: []int{80}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.stop(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// TestShell: a command that fails, or says something else, is an error, and so is the end of
// the machine.
func TestShell(t *testing.T) {
	g := fakeGuest(t)
	if g.forwards[0] != "127.0.0.1:1234" {
		t.Errorf("forwards: %q", g.forwards)
	}
	if err := g.login(); err != nil {
		t.Fatal(err)
	}
	if err := g.says("b", "echo a"); err == nil {
		t.Error("what was said is another thing")
	}
	if err := g.says("a\nb", "echo %s; echo b", "a"); err != nil {
		t.Error(err)
	}
	if out, err := g.shell("echo so; false"); err == nil || out != "so" || !strings.Contains(err.Error(), "status 1") {
		t.Errorf("a command that fails: %q, %v", out, err)
	}
	if err := g.typeLine("exit 3"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.await("never"); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("the machine's end: %v", err)
	}
	if g.alive() {
		t.Error("it is alive")
	}
}

// TestPowerOff: a machine that does not end in order is an error.
func TestPowerOff(t *testing.T) {
	g := fakeGuest(t)
	if err := g.powerOff(); err == nil {
		t.Error("it was killed, and that passes")
	}
}

// TestTry: steps are counted by what became of them, and none is done with a guest that is gone.
func TestTry(t *testing.T) {
	g := fakeGuest(t)
	r := g.r
	for name, err := range map[string]error{"good": nil, "bad": context.DeadlineExceeded, "skip": errSkip} {
		if !r.try(g, step{name, func(*guest) error { return err }}) {
			t.Errorf("%s: the guest is alive", name)
		}
	}
	if r.passed != 1 || r.failed != 1 || r.skipped != 1 {
		t.Errorf("%d passed, %d failed, %d skipped", r.passed, r.failed, r.skipped)
	}
	r.only = regexp.MustCompile("^other")
	r.try(g, step{"one", func(*guest) error { t.Error("it was not wanted"); return nil }})
	if r.try(g, step{"other", func(g *guest) error { return g.powerOff() }}) {
		t.Error("the guest is gone")
	}
}

// TestTryAll: a guest that ends after a step that passes, and not in the last one, is a failure.
func TestTryAll(t *testing.T) {
	good := func(*guest) error { return nil }
	ends := func(g *guest) error {
		_ = g.cmd.Process.Kill()
		<-g.ended
		return nil
	}
	for _, tc := range []struct {
		steps          []step
		passed, failed int
	}{
		{[]step{{"a", good}, {"b", ends}}, 2, 0},
		{[]step{{"a", ends}, {"b", good}}, 1, 1},
	} {
		g := fakeGuest(t)
		g.r.tryAll(g, tc.steps)
		if g.r.passed != tc.passed || g.r.failed != tc.failed {
			t.Errorf("%d passed, %d failed; want %d and %d", g.r.passed, g.r.failed, tc.passed, tc.failed)
		}
	}
}

// TestConsoles: a recording leaves the console of its image's life before it.
func TestConsoles(t *testing.T) {
	if a, b := (machine{image: whole}).log(), (machine{image: whole, record: "r"}).log(); a == b {
		t.Error(a)
	}
}

// TestReachable: an archive that this host cannot read excuses a guest; one that it can does not.
func TestReachable(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/debian/dists/trixie/InRelease" {
			http.NotFound(w, r)
		}
	}))
	defer s.Close()
	for _, archive := range []string{s.URL + "/debian", s.URL + "/debian/"} {
		if err := reachable(t.Context(), archive); err != nil {
			t.Error(err)
		}
	}
	for _, archive := range []string{s.URL + "/other", "http://127.0.0.1:1/debian", ""} {
		if err := reachable(t.Context(), archive); err == nil {
			t.Errorf("%q can be read", archive)
		}
	}
}
