package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/fault"
	"steadfast/node/apierror"
)

// TestParseVMDisk: what a --disk can be.
func TestParseVMDisk(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a,b=c.raw")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]vmDisk{
		"root=8G":           {name: "root", bytes: 8 << 30},
		"root=8G," + file:   {name: "root", bytes: 8 << 30, file: file},
		"data=" + file:      {name: "data", file: file},
		"data=4096,nowhere": {name: "data", bytes: 4096, file: "nowhere"}, // which is told when it is opened
	} {
		if got, err := parseVMDisk(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for text, kind := range map[string]fault.Kind{
		"": fault.Invalid, "root": fault.Invalid, "=8G": fault.Invalid, "root=": fault.Invalid, "root=8G,": fault.Invalid, "root=0": fault.Invalid,
		"root=none.raw": fault.NotFound,
	} {
		if got, err := parseVMDisk(text); !fault.Is(err, kind) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

// TestBar: a bar is empty at first, full at the end, and always of one length.
func TestBar(t *testing.T) {
	for _, c := range []struct {
		done, total int64
		full        int
	}{{0, 100, 0}, {50, 100, 12}, {100, 100, 24}, {200, 100, 24}, {0, 0, 0}} {
		if got := bar(c.done, c.total); len(got) != barLength || strings.Count(got, "#") != c.full {
			t.Errorf("%d of %d: %q", c.done, c.total, got)
		}
	}
}

// consoles is a node with one machine, whose console is watched in turns.
type consoles struct {
	steadfastv1connect.UnimplementedMachineServiceHandler
	turns []func(*connect.ServerStream[steadfastv1.WatchConsoleResponse]) error
	// states are the machine's, for each turn that is over.
	states []string

	mu    sync.Mutex
	turn  int
	typed bytes.Buffer
}

// GetMachine implements the API's call.
func (c *consoles) GetMachine(context.Context, *steadfastv1.GetMachineRequest) (*steadfastv1.GetMachineResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &steadfastv1.GetMachineResponse{Machine: &steadfastv1.Machine{Name: "m", State: c.states[c.turn]}}, nil
}

// WatchConsole implements the API's call.
func (c *consoles) WatchConsole(_ context.Context, _ *steadfastv1.WatchConsoleRequest, out *connect.ServerStream[steadfastv1.WatchConsoleResponse]) error {
	c.mu.Lock()
	f := c.turns[c.turn]
	c.mu.Unlock()
	err := f(out)
	c.mu.Lock()
	c.turn++
	c.mu.Unlock()
	return apierror.ToConnect(err)
}

// TypeConsole implements the API's call.
func (c *consoles) TypeConsole(_ context.Context, r *steadfastv1.TypeConsoleRequest) (*steadfastv1.TypeConsoleResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.typed.Write(r.Data)
	return &steadfastv1.TypeConsoleResponse{}, nil
}

// serveConsoles serves it at a socket.
func serveConsoles(t *testing.T, c steadfastv1connect.MachineServiceHandler) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(steadfastv1connect.NewMachineServiceHandler(c))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return socket
}

// TestVMConsole: a console waits for a machine that is to run, goes on when the machine's host
// was lost and another one runs it, types in order, and ends with the machine.
func TestVMConsole(t *testing.T) {
	send := func(text string) func(*connect.ServerStream[steadfastv1.WatchConsoleResponse]) error {
		return func(out *connect.ServerStream[steadfastv1.WatchConsoleResponse]) error {
			return out.Send(&steadfastv1.WatchConsoleResponse{Data: []byte(text)})
		}
	}
	typed := make(chan struct{})
	c := &consoles{states: []string{"waiting", "waiting", "running", "stopped"}}
	c.turns = []func(*connect.ServerStream[steadfastv1.WatchConsoleResponse]) error{
		func(*connect.ServerStream[steadfastv1.WatchConsoleResponse]) error {
			return fault.New(fault.Busy, "it waits")
		},
		func(out *connect.ServerStream[steadfastv1.WatchConsoleResponse]) error {
			if err := send("")(out); err != nil {
				return err
			}
			if err := send("one ")(out); err != nil {
				return err
			}
			<-typed
			return fault.New(fault.Unreachable, "its host does not answer")
		},
		send("two"),
	}
	in, keys := io.Pipe()
	var out, errs bytes.Buffer
	a := &app{in: in, out: &out, errs: &errs, getenv: os.Getenv}
	go func() {
		_, _ = keys.Write([]byte("first "))
		_, _ = keys.Write([]byte("second"))
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			c.mu.Lock()
			all := c.typed.Len() == len("first second")
			c.mu.Unlock()
			if all {
				break
			}
		}
		close(typed)
	}()
	status := a.run(t.Context(), []string{"--socket", serveConsoles(t, c), "vm", "console", "m"})
	_ = keys.Close()
	if status != 0 || out.String() != "one two" || c.typed.String() != "first second" {
		t.Errorf("status %d, shown %q, typed %q", status, out.String(), c.typed.String())
	}
	for _, want := range []string{"its host does not answer", `attached to machine "m" again`, `machine "m" does not run any more: stopped`} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("no %q in %s", want, errs.String())
		}
	}
}

// TestVMConsoleLeft: the end of what is typed leaves the console, and the machine runs on.
func TestVMConsoleLeft(t *testing.T) {
	c := &consoles{states: []string{"running", "running"}}
	left := make(chan struct{})
	c.turns = []func(*connect.ServerStream[steadfastv1.WatchConsoleResponse]) error{
		func(out *connect.ServerStream[steadfastv1.WatchConsoleResponse]) error {
			err := out.Send(&steadfastv1.WatchConsoleResponse{})
			<-left
			return err
		},
	}
	var out, errs bytes.Buffer
	a := &app{in: strings.NewReader("halt\n"), out: &out, errs: &errs, getenv: os.Getenv}
	status := a.run(t.Context(), []string{"--socket", serveConsoles(t, c), "vm", "console", "m"})
	close(left)
	if status != 0 || c.typed.String() != "halt\n" {
		t.Errorf("status %d, typed %q: %s", status, c.typed.String(), errs.String())
	}
}
