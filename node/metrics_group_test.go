package node

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/quorum"
	"steadfast/internal/freeport"
	"steadfast/node/config"
	"steadfast/node/ha"
	"steadfast/san/mirror"
	"steadfast/san/mirrorio"
)

// TestGroupMetrics: what is decided of a group and what it is at come out under
// the names that there are, with the labels that those have.
func TestGroupMetrics(t *testing.T) {
	got := map[string]float64{}
	labels := map[string]int{}
	for _, f := range clusterFamilies() {
		labels[f.name] = len(f.labels)
	}
	put := func(name string, v float64, l ...string) {
		if n, ok := labels[name]; !ok || n != len(l) {
			t.Errorf("%s%q has no family with as many labels", name, l)
		}
		got[strings.Join(append([]string{name}, l...), " ")] = v
	}
	a, b := quorum.Incarnation{Member: "a", Boot: 2}, quorum.Incarnation{Member: "b", Boot: 1}
	state := quorum.NewState()
	state.Boots["a"], state.Boots["b"] = 2, 2 // b has been started again
	state.Group["g"] = &quorum.Group{Name: "g", Epoch: 7, Owner: a, Set: []quorum.Incarnation{a, b}, Revived: 1}
	spec := &ha.Spec{Name: "g", Nodes: []ha.Node{{Name: "a"}, {Name: "b"}}}
	collectRecord(put, a, state, spec)
	collectGroup(put, "g", ha.Stats{
		Serving: true, Aliases: 2, Held: 1, LastTakeover: 1500 * time.Millisecond, Takeovers: map[ha.Reason]uint64{ha.Died: 3},
		Mirror: mirrorio.Status{Phase: mirror.Copying, LeftBytes: 8192, Rate: 4096, Left: 2 * time.Second, Slowdown: 150, Peer: &b},
	})
	want := map[string]float64{
		"group_owner g": 1, "group_epoch g": 7, "group_in_sync_members g": 1, "group_redundant g": 0, "group_revived g": 1,
		"group_serving g": 1, "group_aliases g": 2, "group_aliases_held g": 1, "group_last_takeover_seconds g": 1.5, "group_takeovers_total g died": 3,
		"group_resync_phase g": 2, "group_resync_left_bytes g": 8192, "group_resync_bytes_per_second g": 4096, "group_resync_left_seconds g": 2,
		"group_resync_slowdown_ratio g": 1.5, "group_mirror_linked g": 1,
	}
	for name, v := range want {
		if got[name] != v {
			t.Errorf("%s is %v, not %v", name, got[name], v)
		}
	}
}

// TestQuorumMetrics: the first member of a cluster tells what it knows of it.
func TestQuorumMetrics(t *testing.T) {
	dir, err := os.MkdirTemp("", "sfm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := config.Default()
	c.DataDir, c.Socket, c.Drain = filepath.Join(dir, "data"), filepath.Join(dir, "s"), config.Duration(time.Second)
	c.Cluster.HandedAliases = true // nothing is done to the network of who tests
	c.Portals = nil
	n, err := Start(t.Context(), Options{Config: c, Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if text := scrape(t, n); !strings.Contains(text, "\nsteadfast_cluster_member 0\n") || strings.Contains(text, "steadfast_quorum_") {
		t.Error("a node without a cluster tells of one")
	}
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (clusterService{n}).InitCluster(context.Background(), &steadfastv1.InitClusterRequest{Name: "a", Address: address}); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"cluster_member 1", "cluster_hindered 0", "quorum_leader_known 1", "quorum_leads 1", "quorum_members 1", "quorum_voters 1", "quorum_members_reachable 1",
		`quorum_member_reachable{member="a",role="node"} 1`, `quorum_member_life{member="a",role="node"} 1`, `events_total{severity="error"} `,
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		text := scrape(t, n)
		missing := slices.DeleteFunc(slices.Clone(want), func(s string) bool { return strings.Contains(text, "\nsteadfast_"+s) })
		if len(missing) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not there: %q in\n%s", missing, text)
		}
	}
}

func scrape(t *testing.T, n *Node) string {
	t.Helper()
	w := httptest.NewRecorder()
	n.metricsHandler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	b, err := io.ReadAll(w.Body)
	if err != nil || w.Code != 200 {
		t.Fatal(w.Code, err)
	}
	return string(b)
}

// TestAlertsNameMetrics: packaging/alerts.yml stands on metrics that there are,
// and asks for the reasons of takeovers by their names.
func TestAlertsNameMetrics(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "packaging", "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, name := range MetricNames() {
		there[name] = true
	}
	used := regexp.MustCompile(`\bsteadfast_\w+`).FindAllString(string(text), -1)
	if len(used) < 20 {
		t.Errorf("only %d metrics in the rules", len(used))
	}
	for _, name := range used {
		if !there[name] {
			t.Errorf("a rule asks for %s, which no node has", name)
		}
	}
	reasons := map[string]bool{}
	for _, r := range ha.Reasons() {
		reasons[string(r)] = true
	}
	for _, m := range regexp.MustCompile(`reason=~"([^"]+)"`).FindAllStringSubmatch(string(text), -1) {
		for _, r := range strings.Split(m[1], "|") {
			if !reasons[r] {
				t.Errorf("a rule asks for the reason %q, which there is not", r)
			}
		}
	}
}

// TestEventCounts: events are counted by severity, and by kind and group, also
// those that are not kept any more.
func TestEventCounts(t *testing.T) {
	ev := newEvents(slog.New(slog.DiscardHandler))
	for i := range eventsKept + 100 {
		ev.publish(&steadfastv1.Event{Severity: severityInfo, Kind: "k", Group: "g" + strconv.Itoa(i%2)})
	}
	ev.publish(&steadfastv1.Event{Severity: severityError, Kind: "k"})
	got := map[string]uint64{
		"info": ev.countOf(severityInfo), "error": ev.countOf(severityError), "k g0": ev.count("k", "g0"), "k": ev.count("k", ""), "other": ev.count("other", "g0"),
	}
	want := map[string]uint64{"info": eventsKept + 100, "error": 1, "k g0": (eventsKept + 100) / 2, "k": 1, "other": 0}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if names := slices.Sorted(maps.Keys(ev.severities)); len(names) != 2 {
		t.Errorf("severities %q", names)
	}
}
