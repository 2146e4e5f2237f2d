package node

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/cluster/identity"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/node/apierror"
)

// stoppedHost answers for a host whose process is stopped when it has shown a little: nothing
// that is asked of it then ends.
type stoppedHost struct {
	steadfastv1connect.UnimplementedMachineServiceHandler
	name string
	over chan struct{}
}

// WatchConsole implements the API's call.
func (h *stoppedHost) WatchConsole(_ context.Context, _ *steadfastv1.WatchConsoleRequest, out *connect.ServerStream[steadfastv1.WatchConsoleResponse]) error {
	err := out.Send(&steadfastv1.WatchConsoleResponse{Data: []byte(h.name)})
	<-h.over
	return err
}

// TypeConsole implements the API's call.
func (h *stoppedHost) TypeConsole(context.Context, *steadfastv1.TypeConsoleRequest) (*steadfastv1.TypeConsoleResponse, error) {
	<-h.over
	return &steadfastv1.TypeConsoleResponse{}, nil
}

// serveStopped has a host's member answer for one that is stopped.
func (h *testHost) serveStopped(t *testing.T) {
	t.Helper()
	s := &stoppedHost{name: h.name, over: make(chan struct{})}
	mux := http.NewServeMux()
	mux.Handle(steadfastv1connect.NewMachineServiceHandler(s))
	l := newAPIListener()
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(l) }) // it ends with the listener
	t.Cleanup(func() {
		close(s.over)
		_ = srv.Close()
		serving.Wait()
	})
	h.down(t)
	h.serve = map[string]func(*tls.Conn, identity.Peer){protoAPI: l.serve}
	h.up(t)
}

// TestConsoleElsewhere: a console whose host is stopped ends when the machine was placed on another
// one, and so does what is typed there; who watches again sees the other one.
func TestConsoleElsewhere(t *testing.T) {
	w := newAccessWorld(t)
	hosts := map[string]*testHost{}
	for _, name := range []string{"h1", "h2"} {
		h := joinHost(t, w.a, name)
		h.serveStopped(t)
		w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.AddHost(name, "k", inventory.Links{}) })
		h.begin(t)
		hosts[name] = h
	}
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Start("m") })
	var p *inventory.Placement
	placed := func() bool {
		v, err := w.a.site()
		if err != nil {
			t.Fatal(err)
		}
		p = v.Placements["m"]
		return p.Active() && v.Standing(p.Host, p.Boot)
	}
	eventually(t, "the machine is placed", placed)
	first := *p
	api := machinesOf(w.a)
	watch := func() *connect.ServerStreamForClient[steadfastv1.WatchConsoleResponse] {
		t.Helper()
		s, err := api.WatchConsole(within(t), &steadfastv1.WatchConsoleRequest{Machine: "m"})
		if err != nil {
			t.Fatal(err)
		}
		if !s.Receive() || string(s.Msg().Data) != p.Host {
			t.Fatalf("the console on %s says %q, %v", p.Host, s.Msg().GetData(), s.Err())
		}
		return s
	}
	stream := watch()
	typed := make(chan error, 1)
	go func() {
		_, err := api.TypeConsole(within(t), &steadfastv1.TypeConsoleRequest{Machine: "m", Data: []byte("x")})
		typed <- err
	}()
	select {
	case err := <-typed:
		t.Fatalf("what was typed at a host that is stopped: %v", err)
	case <-time.After(100 * time.Millisecond): // it waits for the guest
	}
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.HostLost(first.Host, first.Boot, 1) })
	eventually(t, "the machine is placed elsewhere", func() bool { return placed() && p.Host != first.Host })
	over := func(what string, err error) {
		t.Helper()
		if err = apierror.FromConnect(err); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "is not where it was") {
			t.Errorf("%s ended with %v", what, err)
		}
	}
	if stream.Receive() {
		t.Errorf("the console says %q", stream.Msg().Data)
	}
	over("the console", stream.Err())
	over("what was typed", <-typed)
	again := watch()
	if err := errors.Join(stream.Close(), again.Close()); err != nil && !errors.Is(err, context.Canceled) {
		t.Log("closing:", err)
	}
}
