package node_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/fault"
	"steadfast/internal/freeport"
	"steadfast/node"
	"steadfast/node/apierror"
	"steadfast/node/config"
)

// settings returns a configuration below a fresh directory with a short path.
func settings(t *testing.T) config.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "sfn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := config.Default()
	c.DataDir, c.Socket = filepath.Join(dir, "data"), filepath.Join(dir, "s")
	c.Cache = 16 << 20
	c.Drain = config.Duration(time.Second)
	c.Portals = []config.Portal{{Address: "127.0.0.1:0", Group: 1}}
	return c
}

// start starts a node that is quiet.
func start(t *testing.T, c config.Config, env map[string]string) *node.Node {
	t.Helper()
	n, err := node.Start(t.Context(), node.Options{
		Config: c, Version: "test", Log: slog.New(slog.DiscardHandler), Getenv: func(k string) string { return env[k] },
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func stop(t *testing.T, n *node.Node) {
	t.Helper()
	if err := n.Stop(); err != nil {
		t.Error(err)
	}
}

// dial returns an HTTP client of a node's socket.
func dial(t *testing.T, c config.Config) *http.Client {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.Socket)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func get(t *testing.T, h *http.Client, url string) string {
	t.Helper()
	resp, err := h.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return string(b)
}

// TestStartStop: a node with a pool, a mapping and a watcher goes without a
// trace, and comes back with everything.
func TestStartStop(t *testing.T) {
	defer goleak.VerifyNone(t)
	c := settings(t)
	ctx := t.Context()
	n := start(t, c, nil)
	h := dial(t, c)
	pools := steadfastv1connect.NewPoolServiceClient(h, "http://x")
	volumes := steadfastv1connect.NewVolumeServiceClient(h, "http://x")
	_, err := pools.CreatePool(ctx, &steadfastv1.CreatePoolRequest{
		Name: "tank", Drives: []*steadfastv1.NewDrive{{Path: filepath.Join(filepath.Dir(c.DataDir), "d"), CreateSizeBytes: 256 << 20}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := volumes.CreateVolume(ctx, &steadfastv1.CreateVolumeRequest{Name: "v", SizeBytes: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	first, err := n.AdmitAnyone("v")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := n.AdmitAnyone("v"); err != nil || again.Lun != first.Lun {
		t.Errorf("admitting anyone twice: %v, %v", again, err)
	}
	stream, err := steadfastv1connect.NewNodeServiceClient(h, "http://x").WatchEvents(ctx, &steadfastv1.WatchEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan []string)
	go func() {
		var kinds []string
		for stream.Receive() {
			kinds = append(kinds, stream.Msg().Event.Kind)
		}
		_ = stream.Close()
		seen <- kinds
	}()
	if _, err := volumes.DeleteVolume(ctx, &steadfastv1.DeleteVolumeRequest{Name: "v"}); !fault.Is(apierror.FromConnect(err), fault.Busy) {
		t.Errorf("deleting a mapped volume: %v", err)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"pool-created", "volume-created", "target-created", "volume-mapped"}, <-seen); d != "" {
		t.Error(d)
	}
	if err := n.Stop(); err != nil {
		t.Errorf("a second stop: %v", err)
	}
	if _, err := os.Stat(c.Socket); err == nil {
		t.Error("the socket is still there")
	}

	n = start(t, c, nil)
	v, err := volumes.GetVolume(ctx, &steadfastv1.GetVolumeRequest{Name: "v"})
	if err != nil || len(v.Volume.Mappings) != 1 || v.Volume.Mappings[0].Initiator != "*" {
		t.Errorf("after a restart: %v, %v", v, err)
	}
	if s := n.Status(); s.State != "serving" || len(s.Portals) != 1 {
		t.Errorf("after a restart: %v", s)
	}
	h.CloseIdleConnections()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
}

// TestFailedStart: what cannot start leaves nothing behind.
func TestFailedStart(t *testing.T) {
	defer goleak.VerifyNone(t)
	c := settings(t)
	n := start(t, c, nil)
	defer stop(t, n)
	for name, change := range map[string]func(*config.Config){
		"data directory": func(*config.Config) {},
		"socket":         func(o *config.Config) { o.DataDir += "2" },
		"metrics": func(o *config.Config) {
			o.DataDir += "3"
			o.Socket += "3"
			o.Metrics = config.Address(n.Portals()[0].Address)
		},
		"portal": func(o *config.Config) {
			o.DataDir += "4"
			o.Socket += "4"
			o.Portals[0].Address = config.Address(n.Portals()[0].Address)
		},
	} {
		o := c
		o.Portals = append([]config.Portal(nil), c.Portals...)
		change(&o)
		second, err := node.Start(t.Context(), node.Options{Config: o, Log: slog.New(slog.DiscardHandler)})
		if !fault.Is(err, fault.Busy) {
			t.Errorf("%s in use: %v", name, err)
		}
		if second != nil {
			stop(t, second)
		}
	}
	blocked := settings(t)
	if err := os.WriteFile(blocked.Socket, []byte("not a socket"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Start(t.Context(), node.Options{Config: blocked, Log: slog.New(slog.DiscardHandler)}); !fault.Is(err, fault.Exists) {
		t.Errorf("a file where the socket goes: %v", err)
	}
	secret := settings(t)
	secret.Discovery = config.Discovery{User: "u", SecretFile: "/nonexistent"}
	if _, err := node.Start(t.Context(), node.Options{Config: secret, Log: slog.New(slog.DiscardHandler)}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no discovery secret: %v", err)
	}
}

// TestNotify: the service manager hears of the start, of life, and of the end.
func TestNotify(t *testing.T) {
	defer goleak.VerifyNone(t)
	c := settings(t)
	path := filepath.Join(filepath.Dir(c.DataDir), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	read := func() string {
		t.Helper()
		b := make([]byte, 4096)
		if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	n := start(t, c, map[string]string{"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "20000"})
	for _, want := range []string{"READY=1\nSTATUS=serving", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := read(); got != want {
			t.Errorf("got %q; want %q", got, want)
		}
	}
	stopped := make(chan error)
	go func() { stopped <- n.Stop() }()
	for got := ""; !strings.HasPrefix(got, "STOPPING=1"); {
		if got = read(); got != "WATCHDOG=1" && !strings.HasPrefix(got, "STOPPING=1") {
			t.Errorf("got %q", got)
		}
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestMetrics: every metric that docs/OPERATING.md lists is there, on both
// addresses, and none that it does not list.
func TestMetrics(t *testing.T) {
	defer goleak.VerifyNone(t)
	c := settings(t)
	at, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	c.Metrics = config.Address(at)
	n := start(t, c, nil)
	defer stop(t, n)
	h := dial(t, c)
	defer h.CloseIdleConnections()
	_, err = steadfastv1connect.NewPoolServiceClient(h, "http://x").CreatePool(t.Context(), &steadfastv1.CreatePoolRequest{
		Name: "tank", Drives: []*steadfastv1.NewDrive{{Path: filepath.Join(filepath.Dir(c.DataDir), "d"), CreateSizeBytes: 256 << 20}},
	})
	if err != nil {
		t.Fatal(err)
	}
	volumes := steadfastv1connect.NewVolumeServiceClient(h, "http://x")
	if _, err := volumes.CreateVolume(t.Context(), &steadfastv1.CreateVolumeRequest{Name: "v", SizeBytes: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.AdmitAnyone("v"); err != nil {
		t.Fatal(err)
	}
	text := get(t, h, "http://x/metrics")
	tcp := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if other := get(t, tcp, "http://"+string(c.Metrics)+"/metrics"); !strings.Contains(other, "steadfast_serving 1") {
		t.Error("no metrics over TCP")
	}
	page, err := os.ReadFile(filepath.Join("..", "docs", "OPERATING.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := func(text, pattern string) map[string]bool {
		set := map[string]bool{}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			set[m[1]] = true
		}
		return set
	}
	_, table, _ := strings.Cut(string(page), "| metric | labels | what |")
	listed := names(table, "(?m)^\\| `([a-z_]+)` \\| [a-z_, ]*\\| ")
	all := map[string]bool{}
	for _, name := range node.MetricNames() {
		all[strings.TrimPrefix(name, "steadfast_")] = true
	}
	if d := cmp.Diff(listed, all); d != "" {
		t.Errorf("docs/OPERATING.md (-) and the metrics there may be (+) differ:\n%s", d)
	}
	// What is of a cluster is there for a member only, and what is of hosts and
	// machines where there are clusters of hosts.
	for name := range all {
		switch name {
		case "hosts", "machines", "placement_decisions_total":
			delete(listed, name)
		}
		if strings.HasPrefix(name, "host_") || strings.HasPrefix(name, "machine_") {
			delete(listed, name)
		}
		if strings.HasPrefix(name, "quorum_") || strings.HasPrefix(name, "group_") || name == "alias_hindered" {
			delete(listed, name)
		}
	}
	there := names(text, `(?m)^# TYPE steadfast_(\w+) `)
	if d := cmp.Diff(listed, there); d != "" {
		t.Errorf("docs/OPERATING.md (-) and /metrics (+) differ:\n%s", d)
	}
	if !strings.Contains(text, "\ngo_goroutines ") || !strings.Contains(text, "\nprocess_open_fds ") {
		t.Error("no metrics of the process")
	}
}
