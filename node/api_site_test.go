package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/iscsi"
	"steadfast/node/support"
)

// siteOf returns a client of a node's SiteService, over HTTP as others are.
func siteOf(t *testing.T, n *Node) steadfastv1connect.SiteServiceClient {
	t.Helper()
	s := httptest.NewServer(n.apiMux())
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return steadfastv1connect.NewSiteServiceClient(http.DefaultClient, s.URL)
}

// followed follows a site's events.
type followed struct {
	cancel context.CancelFunc
	lines  chan *steadfastv1.WatchSiteEventsResponse
	seen   map[string]*steadfastv1.EventsSeen
	got    []string
}

func watch(t *testing.T, n *Node, seen map[string]*steadfastv1.EventsSeen) *followed {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	req := &steadfastv1.WatchSiteEventsRequest{}
	w := &followed{cancel: cancel, lines: make(chan *steadfastv1.WatchSiteEventsResponse, 1024), seen: map[string]*steadfastv1.EventsSeen{}}
	for name, s := range seen {
		req.Seen, w.seen[name] = append(req.Seen, s), s
	}
	stream, err := siteOf(t, n).WatchSiteEvents(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(w.lines)
		defer stream.Close()
		for stream.Receive() {
			w.lines <- stream.Msg()
		}
	}()
	return w
}

// until takes what comes until it matches.
func (w *followed) until(t *testing.T, pattern string) {
	t.Helper()
	want := regexp.MustCompile(pattern)
	for end := time.After(patience); ; {
		select {
		case r, ok := <-w.lines:
			if !ok {
				t.Fatalf("it ended before %q came:\n%s", pattern, strings.Join(w.got, "\n"))
			}
			line := ""
			switch {
			case r.Event != nil:
				w.seen[r.Seen.Member] = r.Seen
				line = fmt.Sprintf("%s %s %s", r.Event.Member, r.Event.Kind, r.Event.Text)
			case r.Notice != nil:
				line = fmt.Sprintf("notice %s: %s", r.Notice.Member, r.Notice.Problem)
			default:
				continue
			}
			w.got = append(w.got, line)
			if want.MatchString(line) {
				return
			}
		case <-end:
			t.Fatalf("not within %v: %q; there was\n%s", patience, pattern, strings.Join(w.got, "\n"))
		}
	}
}

func (w *followed) count(part string) (n int) {
	for _, line := range w.got {
		if strings.Contains(line, part) {
			n++
		}
	}
	return n
}

// TestSiteEvents: either node tells of both, of before and as it comes; who asks again is told
// what is new and nothing twice, whichever node is asked; a node that dies is missed, and had
// again with what it tells of its next life.
func TestSiteEvents(t *testing.T) {
	a, b := startPair(t)
	eventually(t, "the nodes hear one another", func() bool { return a.cluster.hears("b") && b.cluster.hears("a") })
	a.publish("one", "", "", "of before, on a")
	b.publish("two", "", "", "of before, on b")
	w := watch(t, a, nil)
	w.until(t, "^b two ")
	if w.count("a one") != 1 {
		t.Errorf("of before, in their order: %v", w.got)
	}
	b.publish("three", "", "", "new, on b")
	w.until(t, "^b three ")
	a.publish("four", "", "", "new, on a")
	w.until(t, "^a four ")
	w.cancel()

	b.publish("five", "", "", "while nobody listens")
	w = watch(t, b, w.seen)
	w.until(t, "^b five ")
	for _, old := range []string{"one", "two", "three", "four"} {
		if w.count(" "+old+" ") > 0 {
			t.Errorf("%s was told again: %v", old, w.got)
		}
	}
	w.cancel()

	w = watch(t, a, w.seen)
	cfg := b.cfg
	if err := b.Stop(); err != nil {
		t.Fatal(err)
	}
	w.until(t, "^notice b: .")
	again, err := Start(t.Context(), Options{Config: cfg, Version: "test", Log: b.log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := again.Stop(); err != nil {
			t.Error(err)
		}
	})
	again.publish("six", "", "", "of its next life")
	w.until(t, "^b six ")
	if w.count("notice b: ") < 2 || w.count(" five ") > 0 {
		t.Errorf("it went and came: %v", w.got)
	}
}

// TestSiteEventsJoin: a node that becomes a member is the one that it was.
func TestSiteEventsJoin(t *testing.T) {
	n := startStorage(t)
	n.publish("one", "", "", "alone")
	w := watch(t, n, nil)
	w.until(t, "^ one ")
	if _, err := (clusterService{n}).InitCluster(within(t), &steadfastv1.InitClusterRequest{Name: "a", Address: freeAddress(t)}); err != nil {
		t.Fatal(err)
	}
	n.publish("two", "", "", "a member")
	w.until(t, "two ")
	time.Sleep(3 * lookEvery) // it is looked for members meanwhile
	n.publish("three", "", "", "a member")
	w.until(t, "^a three ")
	if w.count("notice") > 0 {
		t.Errorf("nobody was away: %v", w.got)
	}
	for _, kind := range []string{"one", "two", "cluster-created"} {
		if w.count(" "+kind+" ") != 1 {
			t.Errorf("%s was not told once: %v", kind, w.got)
		}
	}
}

// TestSite: a member tells of all, a host is among them, and what nobody can say is left out.
func TestSite(t *testing.T) {
	a, b := startPair(t)
	joinHost(t, a, "h1")
	eventually(t, "the nodes hear one another", func() bool { return a.cluster.hears("b") && b.cluster.hears("a") })
	s := a.describeSite(within(t))
	if len(s.Members) != 3 || s.Cluster.Self != "a" {
		t.Fatalf("%v", s)
	}
	for _, m := range s.Members {
		if (m.Status != nil) != (m.Role == "node") || m.Self != (m.Name == "a") {
			t.Errorf("%v", m) // the host is its part in the quorum only, and answers nothing
		}
		if m.Role == "node" && (m.Box == "" || m.Box != s.Members[0].Box) {
			t.Errorf("all are on this computer: %v", m)
		}
	}
	if len(s.Risks) == 0 || s.Risks[0].Subject != "quorum" {
		t.Errorf("two votes, and no risk: %v", s.Risks)
	}
}

// TestProtectionMetrics: whether a machine with fault tolerance is protected, and why not.
func TestProtectionMetrics(t *testing.T) {
	got := map[string]float64{}
	put := func(name string, v float64, l ...string) { got[strings.Join(append([]string{name}, l...), " ")] = v }
	machine := func(name string, ft inventory.FT) *inventory.Machine {
		return &inventory.Machine{Name: name, Cluster: "k", FT: ft, Desired: inventory.Running, Run: 1}
	}
	v := &inventory.View{
		Clusters: map[string]*inventory.Cluster{"k": {Name: "k"}},
		Machines: map[string]*inventory.Machine{
			"both": machine("both", inventory.FTOn), "alone": machine("alone", inventory.FTOn), "soon": machine("soon", inventory.FTOn),
			"not": machine("not", inventory.FTOff), "dis": machine("dis", inventory.FTDisabled),
		},
		Placements: map[string]*inventory.Placement{
			"both": {Host: "h1", Run: 1, Second: &inventory.Second{Host: "h2", Protected: true}}, "alone": {Host: "h1", Run: 1}, "dis": {Host: "h1", Run: 1},
			"soon": {Host: "h1", Run: 1, Second: &inventory.Second{Host: "h2"}},
		},
	}
	collectSite(put, v, nil)
	for name, want := range map[string]float64{
		"machine_protected k both": 1, "machine_protected k alone": 0, "machine_protected k soon": 0, "machine_protected k dis": 0,
		"machine_unprotected k alone Need Secondary VM": 1, "machine_unprotected k soon Starting": 1, "machine_unprotected k dis Disabled": 1,
	} {
		if is, there := got[name]; !there || is != want {
			t.Errorf("%s is %v, there: %v", name, is, there)
		}
	}
	for name := range got {
		if strings.Contains(name, "k not") || strings.HasPrefix(name, "machine_unprotected k both") {
			t.Errorf("%s", name)
		}
	}
}

// TestSupportHasNoSecrets plants secrets of every kind in a pair and collects: none is there, in no
// form; and a person's secret that stands where a name belongs is taken out, and that is said.
func TestSupportHasNoSecrets(t *testing.T) {
	const chap, mutual, discovery = "s3cret-chap-of-alice", "s3cret-mutual-of-node", "s3cret-of-discovery"
	a, b := startPair(t)
	eventually(t, "the nodes hear one another", func() bool { return a.cluster.hears("b") && b.cluster.hears("a") })
	file := filepath.Join(t.TempDir(), "discovery")
	if err := os.WriteFile(file, []byte(discovery+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.cfg.Discovery.User, a.cfg.Discovery.SecretFile = "disco", file
	a.recent = func() []byte { return []byte("a log line\n") }
	initiator, err := iscsi.NormalizeName("iqn.2026-11.com.example:a")
	if err != nil {
		t.Fatal(err)
	}
	_, err = initiatorService{a}.AddInitiator(within(t), &steadfastv1.AddInitiatorRequest{
		Name: initiator, Comment: "s3cret in a comment", Chap: &steadfastv1.Chap{User: "alice", Secret: []byte(chap)}, Mutual: &steadfastv1.Chap{User: "node", Secret: []byte(mutual)},
	})
	if err != nil {
		t.Fatal(err)
	}
	// One in the node's own control state, of before it was a member; a token that is good; and
	// what a person typed where it does not belong.
	if err := os.WriteFile(filepath.Join(a.cfg.DataDir, "secrets", "0123"), []byte("s3cret-of-before"), 0o600); err != nil {
		t.Fatal(err)
	}
	invite := token(t, a, quorum.RoleHost)
	a.publish("typed", "", "", "somebody named a volume %s, %s", chap, hex.EncodeToString([]byte(discovery)))

	var text bytes.Buffer
	files := map[string]int{}
	var left []string
	take := func(r *steadfastv1.CollectSupportResponse) error {
		if r.File == "" {
			left = append(left, r.Member+" "+r.LeftOut)
			return nil
		}
		files[r.Member+"/"+r.File] += len(r.Data)
		text.WriteString(r.File + "\n")
		text.Write(r.Data)
		return nil
	}
	stream, err := siteOf(t, a).CollectSupport(within(t), &steadfastv1.CollectSupportRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
		if err := take(stream.Msg()); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/config.toml", "b/config.toml", "a/events.json", "a/log.txt", "a/metrics.txt", "a/initiators.json", "a/site.json", "b/system/links.txt", "b/goroutines.txt", "a/files.txt"} {
		if files[name] == 0 {
			t.Errorf("%s is not there or empty: %v", name, files)
		}
	}
	if !slices.ContainsFunc(left, func(s string) bool { return strings.Contains(s, "a secret that was in events.json") }) {
		t.Errorf("a secret that somebody had typed was taken out, and that was not said: %v", left)
	}
	secrets := [][]byte{[]byte(chap), []byte(mutual), []byte(discovery), []byte(invite), []byte("s3cret"), []byte("PRIVATE KEY")}
	for _, n := range []*Node{a, b} {
		own := n.ownSecrets()
		if len(own) < 8 {
			t.Errorf("a node knows %d secrets of its own", len(own))
		}
		secrets = append(secrets, own...)
	}
	before := bytes.Count(text.Bytes(), []byte(mark))
	if clean, had := support.NewRedactor(secrets...).Clean(text.Bytes()); had {
		parts := bytes.Split(clean, []byte(mark))
		t.Errorf("%d secrets are in the bundle", len(parts)-1-before)
		for _, p := range parts[:len(parts)-1] {
			t.Logf("after %q", p[max(len(p)-120, 0):])
		}
	}
}

// mark stands where a secret was.
const mark = "(a secret was removed here)"

// TestSupportMachines: a kernel's command line stays out, where people give guests passwords.
func TestSupportMachines(t *testing.T) {
	s := withoutCommandLines(&steadfastv1.Site{Machines: []*steadfastv1.Machine{{Name: "db1", CommandLine: "password=s3cret"}}})
	f, err := messageFile("site.json", s)
	if err != nil || bytes.Contains(f.Data, []byte("s3cret")) || !bytes.Contains(f.Data, []byte("db1")) {
		t.Errorf("%s, %v", f.Data, err)
	}
}

// TestListedMessages: no message that a bundle holds has a field that could be a secret by its
// name or its type: who adds one is stopped here.
func TestListedMessages(t *testing.T) {
	bad := regexp.MustCompile(`secret|password|private|(^|_)key`)
	seen := map[protoreflect.FullName]bool{}
	var look func(protoreflect.MessageDescriptor)
	look = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] {
			return
		}
		seen[m.FullName()] = true
		fields := m.Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			if f.Kind() == protoreflect.BytesKind || bad.MatchString(string(f.Name())) && !f.IsMap() && f.FullName().Parent().Name() != "FullEntry" {
				t.Errorf("%s could be a secret, and would be in a bundle", f.FullName())
			}
			if f.Message() != nil {
				look(f.Message())
			}
		}
	}
	for _, m := range []protoreflect.ProtoMessage{
		&steadfastv1.Site{}, &steadfastv1.Event{}, &steadfastv1.ListVolumesResponse{}, &steadfastv1.ListSnapshotsResponse{}, &steadfastv1.ListTargetsResponse{},
		&steadfastv1.ListInitiatorsResponse{}, &steadfastv1.ListSessionsResponse{}, &steadfastv1.ListDatacentersResponse{}, &steadfastv1.ListDatastoresResponse{},
	} {
		look(m.ProtoReflect().Descriptor())
	}
	if len(seen) < 20 {
		t.Errorf("%d messages were looked at", len(seen))
	}
}
