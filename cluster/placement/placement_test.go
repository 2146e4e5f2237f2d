package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a site whose hosts and nodes a script moves about.
type world struct {
	state *quorum.State
	now   time.Duration
	hosts map[string]*host
	nodes map[string]*node
	fatal func(...any)
}

// host is a process that renews its life at the nodes that hear it.
type host struct {
	boot  uint32
	hears map[string]bool
	says  map[string]Machine // by machine
}

// node hears hosts.
type node struct {
	up    bool
	since time.Duration
	heard map[string]word
	first map[string]uint32
}

type word struct {
	at time.Duration
	Report
}

func newWorld(fatal func(...any)) *world {
	w := &world{state: quorum.NewState(), now: time.Hour, hosts: map[string]*host{}, nodes: map[string]*node{}, fatal: fatal}
	w.state.Boots["n"] = 1
	for _, n := range []string{"n1", "n2"} {
		w.nodes[n] = &node{up: true, heard: map[string]word{}, first: map[string]uint32{}}
	}
	return w
}

func (w *world) view() *inventory.View {
	v, err := inventory.Read(w.state.Inventory.Entries)
	if err != nil {
		w.fatal(err)
	}
	return v
}

// put does edits that were made for a revision.
func (w *world) put(base quorum.Revision, edits []quorum.Edit, err error) error {
	if err != nil || len(edits) == 0 {
		return err
	}
	return w.state.Apply(w.state.Index+1, quorum.Command{Kind: quorum.KindEdit, By: quorum.Incarnation{Member: "n", Boot: 1}, Revision: base, Edits: edits})
}

func (w *world) change(edits []quorum.Edit, err error) error {
	return w.put(w.state.Inventory.Revision, edits, err)
}

func (w *world) must(edits []quorum.Edit, err error) {
	if err := w.change(edits, err); err != nil {
		w.fatal(err)
	}
}

// site makes a datacenter with two clusters and a datastore.
func (w *world) site(ha bool, machines ...string) {
	var volumes []string
	for _, m := range machines {
		volumes = append(volumes, fmt.Sprintf(`{"name":"home.%s","size":1048576}`, m))
	}
	w.must([]quorum.Edit{{Key: "group/g", Value: []byte(`{"name":"g","volumes":[` + strings.Join(volumes, ",") + `]}`)}}, nil)
	w.must(w.view().CreateDatacenter("dc"))
	w.must(w.view().CreateCluster("c", "dc", ha))
	w.must(w.view().CreateCluster("other", "dc", ha))
	w.must(w.view().AddDatastore("ds", "dc", "g"))
}

// up begins a life of a host.
func (w *world) up(name string, memory int) {
	h := w.hosts[name]
	if h == nil {
		h = &host{}
		w.hosts[name] = h
	}
	boot, edits, err := w.view().HostUp(inventory.HostLife{Host: name, ID: fmt.Sprint(w.now, w.state.Index), Memory: uint64(memory) << 20}, int64(w.now))
	w.must(edits, err)
	h.boot, h.hears, h.says = boot, map[string]bool{"n1": true, "n2": true}, map[string]Machine{}
	w.renew()
}

// vm makes a machine.
func (w *world) vm(name, cluster string, memory int, preferred string, policy inventory.Policy) {
	m := inventory.Machine{Name: name, ID: fmt.Sprintf("%032x", name), Cluster: cluster, Datastore: "ds", Home: "home." + name, Host: preferred, Policy: policy}
	m.Memory = uint64(memory) << 20
	w.must(w.view().CreateMachine(m))
}

// renew has the hosts speak to the nodes that hear them.
func (w *world) renew() {
	for name, h := range w.hosts {
		r := Report{Host: name, Boot: h.boot}
		for _, m := range slices.Sorted(maps.Keys(h.says)) {
			r.Machines = append(r.Machines, h.says[m])
		}
		for n, hears := range h.hears {
			if hears && w.nodes[n].up {
				w.nodes[n].heard[name] = word{w.now, r}
				if _, known := w.nodes[n].first[name]; !known {
					w.nodes[n].first[name] = h.boot
				}
			}
		}
	}
}

// heard is what some nodes report; all that are up for none.
func (w *world) heard(of ...string) (list []Heard) {
	for _, name := range slices.Sorted(maps.Keys(w.nodes)) {
		n := w.nodes[name]
		if !n.up || len(of) > 0 && !slices.Contains(of, name) {
			continue
		}
		h := Heard{Node: quorum.Member(name), Listening: w.now - n.since, First: n.first}
		for _, host := range slices.Sorted(maps.Keys(n.heard)) {
			r := n.heard[host].Report
			r.Age = w.now - n.heard[host].at
			h.Hosts = append(h.Hosts, r)
		}
		list = append(list, h)
	}
	return list
}

// text renders a decision.
func text(d Decision) string {
	switch d := d.(type) {
	case Lost:
		return fmt.Sprintf("%s boot %d is lost: silent for %v", d.Host, d.Boot, d.Silence)
	case Evict:
		return fmt.Sprintf("%s boot %d is told that it was lost", d.Host, d.Boot)
	case Place:
		return fmt.Sprintf("%s on %s boot %d, generation %d, restarts %d: %s", d.Machine, d.Host, d.Boot, d.Generation, d.Restarts, d.Reason)
	case Leave:
		return fmt.Sprintf("%s leaves its host", d.Machine)
	case End:
		return fmt.Sprintf("%s ended (%s): %s", d.Machine, d.Why, d.Detail)
	case Wait:
		return fmt.Sprintf("%s waits: %s", d.Machine, d.Why)
	}
	return fmt.Sprintf("what is a %T?", d)
}

var outcomes = map[string]Outcome{"runs": Runs, "shutdown": Shutdown, "panicked": Panicked, "stopped": Stopped, "failed": Failed, "superseded": Superseded}

// play does one line of a script.
func (w *world) play(out *strings.Builder, line string) {
	named := map[string]string{}
	var f []string
	for _, x := range strings.Fields(line) {
		if k, v, ok := strings.Cut(x, "="); ok {
			named[k] = v
		} else {
			f = append(f, x)
		}
	}
	number := func(key string) int { n, _ := strconv.Atoi(named[key]); return n }
	say := func(err error) {
		if err != nil {
			fmt.Fprintf(out, "%v: %v\n", fault.KindOf(err), err)
		}
	}
	switch f[0] {
	case "site":
		w.site(named["ha"] == "yes", f[1:]...)
	case "host":
		w.must(w.view().AddHost(f[1], cmp.Or(named["cluster"], "c"), inventory.Links{}))
		w.up(f[1], number("memory"))
	case "up": // a new life
		w.up(f[1], number("memory"))
	case "vm":
		w.vm(f[1], "c", number("memory"), named["host"], inventory.Policy(named["policy"]))
	case "start":
		say(w.change(w.view().Start(f[1])))
	case "stop":
		say(w.change(w.view().Stop(f[1])))
	case "reset":
		say(w.change(w.view().Reset(f[1])))
	case "maintenance":
		say(w.change(w.view().SetMaintenance(f[1], named["on"] != "no")))
	case "says":
		m := w.view().Placements[f[2]]
		w.hosts[f[1]].says[f[2]] = Machine{f[2], m.Generation, outcomes[f[3]], named["detail"], uint64(number("found"))}
		w.renew()
	case "cut", "heal":
		nodes := f[2:]
		if len(nodes) == 0 {
			nodes = []string{"n1", "n2"}
		}
		for _, n := range nodes {
			w.hosts[f[1]].hears[n] = f[0] == "heal"
		}
		w.renew()
	case "node":
		n := w.nodes[f[1]]
		n.up = f[2] == "up"
		n.since, n.heard, n.first = w.now, map[string]word{}, map[string]uint32{}
	case "pass":
		d, err := time.ParseDuration(f[1])
		if err != nil {
			w.fatal(err)
		}
		w.now += d
		w.renew()
	case "decide":
		v := w.view()
		decisions := Decide(v, w.heard(f[1:]...), int64(w.now))
		for _, d := range decisions {
			fmt.Fprintln(out, text(d))
		}
		edits, err := Edits(v, decisions, int64(w.now))
		say(w.change(edits, err))
	case "show":
		v := w.view()
		for _, name := range slices.Sorted(maps.Keys(v.Machines)) {
			m, p := v.Machines[name], v.Placements[name]
			switch {
			case p == nil:
				fmt.Fprintf(out, "%s: %s, run %d\n", name, m.Desired, m.Run)
			case p.Active():
				fmt.Fprintf(out, "%s: %s, run %d, on %s generation %d\n", name, m.Desired, m.Run, p.Host, p.Generation)
			default:
				fmt.Fprintf(out, "%s: %s, run %d, %s\n", name, m.Desired, m.Run, p.Ended.Text())
			}
		}
	default:
		fmt.Fprintf(out, "what is %q?\n", line)
	}
}

// TestScenarios plays scripts: the timeline is the test.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		w := newWorld(t.Fatal)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			w.fatal = t.Fatal
			var out strings.Builder
			for line := range strings.Lines(d.Input) {
				if strings.TrimSpace(line) != "" {
					w.play(&out, line)
				}
			}
			return out.String()
		})
	})
}

// uses tells whether a placement takes memory of its host: not one of a life
// that is over, nor one that its host says does not run.
func (w *world) uses(v *inventory.View, p *inventory.Placement) bool {
	said, ok := w.hosts[p.Host].says[p.Machine]
	return p.Active() && v.Lives[p.Host].Boot == p.Boot && (!ok || said.Generation != p.Generation || said.Outcome == Runs)
}

// used is the memory in bytes that each host's machines take.
func (w *world) used(v *inventory.View) map[string]uint64 {
	used := map[string]uint64{}
	for name, p := range v.Placements {
		if w.uses(v, p) {
			used[p.Host] += v.Machines[name].Memory
		}
	}
	return used
}

// judge watches placements for as long as a world goes on.
type judge struct {
	placed map[string]string // machine and generation -> host and boot
	newest map[string]uint64
}

// judged holds decisions to the rules, against the view that they were made from.
func (j *judge) judged(fatal func(string, ...any), w *world, v *inventory.View, decisions []Decision) {
	lost, about := map[string]bool{}, map[string]int{}
	used := w.used(v)
	for _, d := range decisions {
		switch d := d.(type) {
		case Lost:
			lost[d.Host] = true
		case End:
			about[d.Machine]++
		case Leave:
			about[d.Machine]++
		case Wait:
			about[d.Machine]++
		case Place:
			about[d.Machine]++
			if p := v.Placements[d.Machine]; p != nil && w.uses(v, p) {
				used[p.Host] -= v.Machines[d.Machine].Memory
			}
		case Evict:
		}
	}
	for m, n := range about {
		if n > 1 {
			fatal("%d decisions about %s", n, m)
		}
	}
	for _, d := range decisions {
		p, ok := d.(Place)
		if !ok {
			continue
		}
		h, l, m := v.Hosts[p.Host], v.Lives[p.Host], v.Machines[p.Machine]
		used[p.Host] += m.Memory
		switch {
		case lost[p.Host] || l.State != inventory.Up || l.Boot != p.Boot:
			fatal("%s on a host that is lost", text(d))
		case h.Maintenance || h.Cluster != m.Cluster:
			fatal("%s on a host that takes none of its kind", text(d))
		case used[p.Host] > l.Memory:
			fatal("%s on a host that is full", text(d))
		case m.Desired != inventory.Running:
			fatal("%s, and it is not wanted", text(d))
		case p.Restarts > restartsMax:
			fatal("%s was restarted too often", text(d))
		}
	}
}

// entered notes what the inventory holds after a change.
func (j *judge) entered(fatal func(string, ...any), v *inventory.View) {
	if err := v.Check(); err != nil {
		fatal("%v", err)
	}
	for name, p := range v.Placements {
		key, where := fmt.Sprintf("%s %d", name, p.Generation), fmt.Sprintf("%s %d", p.Host, p.Boot)
		if was, ok := j.placed[key]; ok && was != where {
			fatal("%s was placed on %s and on %s", key, was, where)
		}
		if p.Generation < j.newest[name] {
			fatal("%s after generation %d", key, j.newest[name])
		}
		j.placed[key], j.newest[name] = where, p.Generation
	}
}

// carryOut has the hosts do what their placements say.
func (w *world) carryOut() {
	v := w.view()
	for name, p := range v.Placements {
		h := w.hosts[p.Host]
		if p.Active() && h.boot == p.Boot && (p.Leave || v.Machines[name].Desired == inventory.Stopped) {
			h.says[name] = Machine{Name: name, Generation: p.Generation, Outcome: Stopped}
		}
	}
	w.renew()
}

// TestAnything: hosts come, go and stammer, people change their minds, and two
// nodes decide from what they saw at other times; then it stops, and all that
// can run runs.
func TestAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t.Fatal)
		hosts, machines := []string{"h1", "h2", "h3"}, []string{"m1", "m2", "m3", "m4"}
		w.site(rapid.Bool().Draw(t, "ha"), machines...)
		for i, h := range hosts {
			w.must(w.view().AddHost(h, "c", inventory.Links{}))
			w.up(h, 256<<i)
		}
		for i, m := range machines {
			w.vm(m, "c", 64<<i, rapid.SampledFrom([]string{"", "h1", "h3"}).Draw(t, "prefers"), rapid.SampledFrom([]inventory.Policy{"restart", "leave"}).Draw(t, "policy"))
		}
		j := &judge{map[string]string{}, map[string]uint64{}}
		// What a node decided and has not entered yet.
		type pending struct {
			base  quorum.Revision
			edits []quorum.Edit
		}
		var late []pending
		decide := func(of ...string) []Decision {
			v := w.view()
			decisions := Decide(v, w.heard(of...), int64(w.now))
			j.judged(t.Fatalf, w, v, decisions)
			edits, err := Edits(v, decisions, int64(w.now))
			if err != nil {
				t.Fatal(err)
			}
			late = append(late, pending{w.state.Inventory.Revision, edits})
			return decisions
		}
		enter := func() {
			for _, p := range late {
				if err := w.put(p.base, p.edits, nil); err != nil && !fault.Is(err, fault.Stale) {
					t.Fatal(err)
				}
				j.entered(t.Fatalf, w.view())
			}
			late = nil
		}
		for range 80 {
			h, m := rapid.SampledFrom(hosts).Draw(t, "host"), rapid.SampledFrom(machines).Draw(t, "machine")
			n := rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "node")
			switch rapid.IntRange(0, 15).Draw(t, "what") {
			case 0:
				w.hosts[h].hears[n] = !w.hosts[h].hears[n]
			case 1:
				w.hosts[h].hears = map[string]bool{}
			case 2:
				w.up(h, rapid.SampledFrom([]int{128, 512, 1024}).Draw(t, "memory"))
			case 3:
				w.nodes[n].up = !w.nodes[n].up
				w.nodes[n].since, w.nodes[n].heard = w.now, map[string]word{}
			case 4, 5:
				_ = w.change(w.view().Start(m)) // it may be busy
			case 6:
				_ = w.change(w.view().Stop(m))
			case 7:
				_ = w.change(w.view().SetMaintenance(h, rapid.Bool().Draw(t, "on")))
			case 8:
				if p := w.view().Placements[m]; p != nil {
					o := Outcome(rapid.IntRange(0, 5).Draw(t, "outcome"))
					w.hosts[p.Host].says[m] = Machine{m, p.Generation, o, "", p.Generation + 2}
				}
			case 9, 10:
				decide(n)
			case 11:
				decide("n1")
				decide("n2")
				enter()
			case 12, 13:
				enter()
			case 14:
				w.now += time.Duration(rapid.IntRange(0, 4000).Draw(t, "ms")) * time.Millisecond
			case 15:
				w.carryOut()
			}
			w.renew()
		}
		// No more faults: nodes listen, hosts speak, each under a life that is not lost.
		enter()
		for _, n := range []string{"n1", "n2"} {
			w.nodes[n].up = true
		}
		for _, h := range hosts {
			if l := w.view().Lives[h]; l.State == inventory.Lost {
				w.up(h, int(l.Memory>>20))
			}
			w.hosts[h].hears = map[string]bool{"n1": true, "n2": true}
			w.hosts[h].says = map[string]Machine{}
		}
		var rest []Decision
		for range 30 {
			w.renew()
			rest = decide()
			enter()
			w.carryOut()
			w.now += time.Second
		}
		v := w.view()
		waits := map[string]bool{}
		for _, d := range rest {
			x, ok := d.(Wait)
			if !ok {
				t.Fatalf("it does not come to rest: %s", text(d))
			}
			waits[x.Machine] = true
		}
		used := w.used(v)
		for name, m := range v.Machines {
			p := v.Placements[name]
			switch {
			case m.Desired == inventory.Stopped && p.Active():
				t.Fatalf("%s is stopped and runs", name)
			case m.Desired == inventory.Stopped, p.Active() && !v.Hosts[p.Host].Maintenance && v.Standing(p.Host, p.Boot):
			case !waits[name]:
				t.Fatalf("%s shall run, does not, and nobody says why", name)
			default:
				for _, h := range hosts {
					if !v.Hosts[h].Maintenance && v.Lives[h].Memory >= used[h]+m.Memory && !waiting(waits, v, m) {
						t.Fatalf("%s waits, and %s has room", name, h)
					}
				}
			}
		}
	})
}

// waiting tells whether another machine waits, too: what room there is may be
// kept for that one.
func waiting(waits map[string]bool, v *inventory.View, m *inventory.Machine) bool {
	for name := range waits {
		if name != m.Name {
			return true
		}
	}
	// Or for one that leaves its host.
	return slices.ContainsFunc(slices.Collect(maps.Values(v.Placements)), func(p *inventory.Placement) bool { return p.Active() && p.Leave })
}
