package node

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/inventory"
	"steadfast/cluster/placement"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
)

// site is a quorum that storage nodes and hosts of a test share. Times are those of
// a synctest bubble.
type site struct {
	t *testing.T

	mu     sync.Mutex
	state  *quorum.State
	refuse error // of each edit
	nodes  map[quorum.Member]*listener
}

// listener is one storage node's part of a site: what it hears, and its placer.
type listener struct {
	site   *site
	name   quorum.Member
	placer *placer

	mu     sync.Mutex
	heard  map[quorum.Member]time.Time
	said   map[quorum.Member]quorum.Boot // the life that each was in
	deaf   bool                          // hears no host
	cutOff bool                          // knows no leader
	asked  int                           // by others
	looked int                           // at the state
	silent bool                          // does not answer others
	events []string
}

// newSite makes a site with storage nodes, which hear one another.
func newSite(t *testing.T, nodes ...quorum.Member) *site {
	s := &site{t: t, state: quorum.NewState(), nodes: map[quorum.Member]*listener{}}
	for i, name := range nodes {
		s.state.Roll.Members[name] = &quorum.Record{Name: name, ID: uint64(i + 1), Role: quorum.RoleNode}
		l := &listener{site: s, name: name, heard: map[quorum.Member]time.Time{}, said: map[quorum.Member]quorum.Boot{}}
		l.placer = newPlacer(l, slog.New(slog.DiscardHandler), l.publish)
		l.placer.ask = s.ask
		s.nodes[name] = l
	}
	return s
}

// State implements placeMember.
func (l *listener) State() *quorum.State {
	l.change(func() { l.looked++ })
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	return l.site.state
}

// Edit implements placeMember.
func (l *listener) Edit(_ context.Context, base quorum.Revision, edits ...quorum.Edit) error {
	s := l.site
	s.mu.Lock()
	defer s.mu.Unlock()
	inv := s.state.Inventory
	switch {
	case s.refuse != nil:
		return s.refuse
	case inv.Revision != base:
		return fault.New(fault.Stale, "revision %d, not %d", inv.Revision, base)
	}
	next := s.state.Clone()
	next.Inventory = quorum.Inventory{Revision: inv.Revision + 1, Entries: maps.Clone(inv.Entries)}
	for _, e := range edits {
		if next.Inventory.Entries[e.Key] = e.Value; len(e.Value) == 0 {
			delete(next.Inventory.Entries, e.Key)
		}
	}
	s.state = next
	for _, other := range s.nodes {
		other.placer.wake()
	}
	return nil
}

// Self implements placeMember.
func (l *listener) Self() quorum.Incarnation { return quorum.Incarnation{Member: l.name, Boot: 1} }

// Leader implements placeMember.
func (l *listener) Leader() quorum.Member {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cutOff {
		return ""
	}
	return "w"
}

// Reachable implements placeMember.
func (l *listener) Reachable() map[quorum.Member]quorumio.Word {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[quorum.Member]quorumio.Word{}
	for name, at := range l.heard {
		out[name] = quorumio.Word{Age: time.Since(at), Boot: l.said[name]}
	}
	for name := range l.site.nodes {
		out[name] = quorumio.Word{}
	}
	return out
}

func (l *listener) publish(e *steadfastv1.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e.Severity+" "+e.Kind+": "+e.Text)
}

// told returns the events of a kind.
func (l *listener) told(kind string) (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if strings.Contains(e, " "+kind+": ") {
			list = append(list, e)
		}
	}
	return list
}

// change has a listener be as f makes it.
func (l *listener) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func (s *site) ask(ctx context.Context, to quorum.Member) (placement.Heard, error) {
	l := s.nodes[to]
	l.mu.Lock()
	l.asked++
	silent := l.silent
	l.mu.Unlock()
	if silent {
		<-ctx.Done()
		return placement.Heard{}, ctx.Err()
	}
	return l.placer.heard(l.State()), nil
}

// speak is a word of hosts at every node that hears.
func (s *site) speak(hosts ...quorum.Member) {
	for _, l := range s.nodes {
		l.change(func() {
			for _, h := range hosts {
				if !l.deaf {
					l.heard[h] = time.Now()
				}
			}
		})
	}
}

// pass lets time go by in which hosts speak each second.
func (s *site) pass(d time.Duration, hosts ...quorum.Member) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		s.speak(hosts...)
		time.Sleep(min(time.Second, time.Until(end)))
	}
	synctest.Wait()
}

// amend changes the inventory by its rules.
func (s *site) amend(rules ...func(*inventory.View) ([]quorum.Edit, error)) {
	s.t.Helper()
	for _, rule := range rules {
		v, inv := s.view()
		edits, err := rule(v)
		if err == nil {
			for _, l := range s.nodes {
				err = l.Edit(context.Background(), inv.Revision, edits...)
				break
			}
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *site) view() (*inventory.View, quorum.Inventory) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := inventory.Read(s.state.Inventory.Entries)
	if err != nil {
		s.t.Fatal(err)
	}
	return v, s.state.Inventory
}

// built is a cluster with HA of hosts with 1 GiB each, which are up in the first
// life of their members.
func (s *site) built(hosts ...string) {
	s.t.Helper()
	type edits = []quorum.Edit
	s.amend(
		func(v *inventory.View) (edits, error) { return v.CreateDatacenter("dc") },
		func(v *inventory.View) (edits, error) { return v.CreateCluster("k", "dc", true) },
		func(*inventory.View) (edits, error) {
			return edits{{Key: "group/g", Value: []byte(`{"volumes":[{"name":"home1","size":4096},{"name":"home2","size":4096}]}`)}}, nil
		},
		func(v *inventory.View) (edits, error) { return v.AddDatastore("ds", "dc", "g") },
	)
	for _, h := range hosts {
		s.amend(func(v *inventory.View) (edits, error) { return v.AddHost(h, "k", inventory.Links{}) })
		s.begin(h, 1)
	}
}

// begin enters a new life of a host, whose process is a life of its member.
func (s *site) begin(host string, boot quorum.Boot) {
	s.t.Helper()
	s.mu.Lock()
	next := s.state.Clone()
	next.Boots[quorum.Member(host)] = boot
	s.state = next
	s.mu.Unlock()
	s.amend(func(v *inventory.View) ([]quorum.Edit, error) {
		_, e, err := v.HostUp(inventory.HostLife{Host: host, ID: fmt.Sprint(boot), Memory: 1 << 30, Box: "box-of-" + host}, time.Now().UnixNano())
		return e, err
	})
}

// machine makes a machine that shall run.
func (s *site) machine(name, home string, memory uint64) {
	s.t.Helper()
	id := fmt.Sprintf("%032x", len(home)+int(home[len(home)-1]))
	s.amend(
		func(v *inventory.View) ([]quorum.Edit, error) {
			return v.CreateMachine(inventory.Machine{Name: name, ID: id, Cluster: "k", Datastore: "ds", Home: home, Hardware: inventory.Hardware{Memory: memory}})
		},
		func(v *inventory.View) ([]quorum.Edit, error) { return v.Start(name) },
	)
}

// run has all placers run; the function ends them.
func (s *site) run() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, l := range s.nodes {
		running.Go(func() { l.placer.run(ctx) })
		l.placer.wake()
	}
	return func() {
		cancel()
		running.Wait()
	}
}

// host returns where a machine is placed.
func (s *site) host(machine string) string {
	v, _ := s.view()
	if p := v.Placements[machine]; p.Active() {
		return p.Host
	}
	return ""
}

// TestPlaced: a machine that is started is placed at once; when its host falls silent
// it is placed on another one after the silence that counts, once, although both
// nodes decide; and the host that comes back is told.
func TestPlaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, "a", "b")
		s.built("h1", "h2")
		defer s.run()()
		s.pass(10*time.Second, "h1", "h2")
		s.machine("m", "home1", 512<<20)
		s.speak("h1", "h2")
		synctest.Wait()
		first := s.host("m")
		if first == "" {
			t.Fatal("the machine is on no host")
		}
		s.pass(time.Minute, "h1", "h2")
		if s.host("m") != first {
			t.Fatal("it has moved")
		}
		other := map[string]string{"h1": "h2", "h2": "h1"}[first]
		s.pass(1500*time.Millisecond, quorum.Member(other)) // its last word was a second ago
		if s.host("m") != first {
			t.Error("it was placed elsewhere too soon")
		}
		s.pass(2500*time.Millisecond, quorum.Member(other))
		if s.host("m") != other {
			t.Errorf("it is on %q, not on %q", s.host("m"), other)
		}
		s.pass(5*time.Second, "h1", "h2") // the lost one speaks again
		var told []string
		for _, l := range s.nodes {
			told = append(told, l.told("host-lost")...)
			if got := l.told("host-returned"); len(got) != 1 {
				t.Errorf("%s has told of the return: %q", l.name, got)
			}
		}
		if len(told) != 1 || !strings.Contains(told[0], `error host-lost: host "`+first+`"`) {
			t.Errorf("told of the loss: %q", told)
		}
		v, _ := s.view()
		if p := v.Placements["m"]; p.Generation != 2 || p.Restarts != 1 {
			t.Errorf("placed as %+v", p)
		}
		placed := append(s.nodes["a"].told("machine-placed"), s.nodes["b"].told("machine-placed")...)
		if len(placed) != 2 || strings.HasPrefix(placed[0], "warning") == strings.HasPrefix(placed[1], "warning") {
			t.Errorf("told of placements: %q", placed)
		}
		counts := map[string]uint64{}
		for _, l := range s.nodes {
			for d, n := range l.placer.decisions() {
				counts[d] += n
			}
		}
		if d := cmp.Diff(map[string]uint64{"lost": 1, "place": 2, "leave": 0, "end": 0, "pair": 0, "part": 0}, counts); d != "" {
			t.Error(d)
		}
	})
}

// TestHeardElsewhere: a host that only the other node hears is not lost; when that
// node does not answer any more, it is.
func TestHeardElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, "a", "b")
		s.built("h1")
		s.nodes["a"].deaf = true
		s.nodes["b"].cutOff = true // only a decides
		s.nodes["b"].placer.led = time.Now().Add(24 * time.Hour)
		s.nodes["b"].placer.since, s.nodes["b"].placer.marked = time.Now(), time.Now()
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { s.nodes["a"].placer.run(ctx) })
		defer running.Wait()
		defer cancel()
		s.nodes["a"].placer.wake()
		s.pass(time.Minute, "h1")
		if v, _ := s.view(); !v.Standing("h1", 1) {
			t.Fatal("it was declared lost")
		}
		s.nodes["b"].change(func() { s.nodes["b"].silent = true })
		s.pass(4*time.Second, "h1")
		if v, _ := s.view(); v.Standing("h1", 1) {
			t.Error("it was not declared lost")
		}
	})
}

// TestCutOff: a node that was cut off from the quorum, and one whose process was
// stopped, declare nobody lost before they have listened anew.
func TestCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, "a")
		a := s.nodes["a"]
		s.built("h1")
		defer s.run()()
		s.pass(10*time.Second, "h1")
		a.change(func() { a.deaf, a.cutOff = true, true })
		s.pass(time.Minute, "h1")
		a.change(func() { a.cutOff = false })
		s.pass(2*time.Second, "h1") // it is slower to hear the host again
		a.change(func() { a.deaf = false })
		s.pass(10*time.Second, "h1")
		if v, _ := s.view(); !v.Standing("h1", 1) {
			t.Error("the host was declared lost")
		}
		// A clock that jumps stands for a process that did not run.
		if d := a.placer.heard(a.State()).Listening; d < placement.Silence {
			t.Errorf("it has listened for %v", d)
		}
		a.placer.now = func() time.Time { return time.Now().Add(time.Minute) }
		if d := a.placer.heard(a.State()).Listening; d != 0 {
			t.Errorf("after a minute in which it did not run it has listened for %v", d)
		}
	})
}

// TestAnElectionIsNoBreak: a leader that is found within the usual time costs no
// listening: the box that died may have been the leader's and a host.
func TestAnElectionIsNoBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, "a")
		a := s.nodes["a"]
		s.built("h1")
		defer s.run()()
		s.pass(10*time.Second, "h1")
		a.change(func() { a.cutOff = true })
		s.pass(time.Second)
		a.change(func() { a.cutOff = false })
		s.pass(2 * time.Second) // its last word was four seconds ago
		if v, _ := s.view(); v.Standing("h1", 1) {
			t.Error("the host was not declared lost")
		}
	})
}

// TestNoHosts: without hosts nothing is asked or decided; and it begins with the
// first of them, and ends with the last.
func TestNoHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, "a", "b")
		defer s.run()()
		s.pass(time.Hour)
		asked := func() (n int) {
			for _, l := range s.nodes {
				l.change(func() { n += l.asked })
			}
			return n
		}
		if n := asked(); n != 0 {
			t.Errorf("%d questions without hosts", n)
		}
		s.built("h1")
		s.pass(10*time.Second, "h1")
		if n := asked(); n < 30 || n > 60 {
			t.Errorf("%d questions in ten seconds with a host", n)
		}
		s.amend(func(v *inventory.View) ([]quorum.Edit, error) { return v.RemoveHost("h1") })
		s.pass(time.Second)
		before, looks := asked(), s.nodes["a"].looked
		s.pass(time.Hour)
		if n := asked(); n != before || s.nodes["a"].looked != looks {
			t.Errorf("%d questions after the last host was gone, and a looked %d times", n-before, s.nodes["a"].looked-looks)
		}
		for _, l := range s.nodes {
			if l.placer.mark() != 0 {
				t.Error("it counts its listening from before the first host")
			}
		}
	})
}

// TestLivesHeard: a member's word counts for the life of the host that it is of: the
// process that begins anew runs nothing of what the one before did.
func TestLivesHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, "a")
		a := s.nodes["a"]
		s.built("h1", "h2", "h3")
		s.speak("h1", "h2", "x")
		heard := func() (list []string) {
			for _, r := range a.placer.heard(a.State()).Hosts {
				list = append(list, fmt.Sprintf("%s/%d", r.Host, r.Boot))
			}
			slices.Sort(list)
			return list
		}
		if d := cmp.Diff([]string{"h1/1", "h2/1"}, heard()); d != "" {
			t.Error(d)
		}
		// Its process was started again, and has connected before this node applied that its life began.
		a.said["h1"] = 2
		if d := cmp.Diff([]string{"h2/1"}, heard()); d != "" {
			t.Error(d)
		}
		a.said["h1"] = 1
		s.state.Boots["h1"] = 2 // and has not said so to the inventory
		if d := cmp.Diff([]string{"h2/1"}, heard()); d != "" {
			t.Error(d)
		}
		a.said["h1"] = 2
		s.begin("h1", 2)
		if d := cmp.Diff([]string{"h1/2", "h2/1"}, heard()); d != "" {
			t.Error(d)
		}
		for id, want := range map[string]quorum.Boot{"7": 7, "7.2": 7, "x": 1<<64 - 1, "": 1<<64 - 1} {
			if got := memberOf(id); got != want {
				t.Errorf("life %q is of the member's life %d, not %d", id, got, want)
			}
		}
	})
}

// TestWaits: what has no room is told once, shown for as long, and placed when there
// is room; what cannot be decided is told once, too.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, "a")
		a := s.nodes["a"]
		s.built("h1")
		defer s.run()()
		s.pass(5*time.Second, "h1")
		s.machine("m", "home1", 2<<30)
		s.pass(5*time.Second, "h1")
		if got := a.told("machine-waits"); len(got) != 1 || a.placer.waiting()["m"] == "" {
			t.Errorf("told %q, shown %q", got, a.placer.waiting())
		}
		s.amend(
			func(v *inventory.View) ([]quorum.Edit, error) { return v.Stop("m") },
			func(v *inventory.View) ([]quorum.Edit, error) { return v.DeleteMachine("m") },
		)
		s.machine("n", "home2", 64<<20)
		s.pass(time.Second, "h1")
		if len(a.placer.waiting()) != 0 || s.host("n") != "h1" {
			t.Errorf("shown %q; n is on %q", a.placer.waiting(), s.host("n"))
		}
		s.mu.Lock()
		s.refuse = fault.New(fault.Limit, "too much")
		s.mu.Unlock()
		s.pass(10 * time.Second) // its host falls silent
		if got := a.told("placement-hindered"); len(got) != 1 || !strings.HasSuffix(got[0], "too much") {
			t.Errorf("told %q", got)
		}
		s.mu.Lock()
		s.refuse = fault.New(fault.Unreachable, "no quorum")
		s.mu.Unlock()
		s.pass(10 * time.Second)
		if got := a.told("placement-hindered"); len(got) != 1 {
			t.Errorf("told %q", got)
		}
	})
}

// TestEndings: each ending of a machine is told with what it means for people.
func TestEndings(t *testing.T) {
	a := newSite(t, "a").nodes["a"]
	view := &inventory.View{Placements: map[string]*inventory.Placement{"m": {Machine: "m", Host: "h"}}}
	a.placer.tell(view, []placement.Decision{
		placement.End{Machine: "m", Why: inventory.EndedShutdown},
		placement.End{Machine: "m", Why: inventory.EndedPanic},
		placement.End{Machine: "m", Why: inventory.EndedHostLost, Detail: "the cluster has no HA"},
		placement.Leave{Machine: "m"},
	})
	want := []string{
		`info machine-ended: machine "m": stopped by its guest`,
		`warning machine-ended: machine "m": its guest panicked`,
		`error machine-ended: machine "m": its host was lost: the cluster has no HA`,
		`info machine-leaves: machine "m" is asked to shut down, to be started on another host: "h" is in maintenance`,
	}
	if d := cmp.Diff(want, a.events); d != "" {
		t.Error(d)
	}
}

// TestManyAtOnce ends more machines, with the largest documents that there can be,
// than one command of the quorum takes: each change fits, and says something.
func TestManyAtOnce(t *testing.T) {
	const machines, most = 300, 1 << 20 // of a command, as the quorum has it
	v := &inventory.View{Machines: map[string]*inventory.Machine{}, Placements: map[string]*inventory.Placement{}}
	var all []placement.Decision
	for i := range machines {
		name := fmt.Sprintf("m%03d", i)
		v.Machines[name] = &inventory.Machine{
			Name: name, Desired: inventory.Running, Run: 1,
			Hardware: inventory.Hardware{CommandLine: strings.Repeat("x", 4*inventory.CommandLineMax)}, // and all else
		}
		v.Placements[name] = &inventory.Placement{Machine: name, Host: "h1", Boot: 1, Generation: 1, Run: 1}
		all = append(all, placement.End{Machine: name, Generation: 1, Why: inventory.EndedHostLost})
	}
	all = append(all, placement.Wait{Machine: "w", Why: "no memory"})
	rounds := 0
	for left := all; len(left) > 1; rounds++ {
		some, edits, err := fitting(v, left, 1)
		if err != nil {
			t.Fatal(err)
		}
		c := quorum.Command{Kind: quorum.KindEdit, By: quorum.Incarnation{Member: "a", Boot: 1}, Revision: 1, Edits: edits}
		encoded, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if len(encoded) > most || len(edits) == 0 {
			t.Fatalf("a change of %d documents and %d bytes; the quorum takes %d", len(edits), len(encoded), most)
		}
		if some[len(some)-1] != all[machines] {
			t.Fatal("a wait was left out, and would be told again")
		}
		left = left[len(some)-1:]
	}
	if rounds < 2 {
		t.Fatalf("%d rounds: this proves nothing", rounds)
	}
}
