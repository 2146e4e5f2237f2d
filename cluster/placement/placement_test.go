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

// up begins a life of a host, in a box of its own.
func (w *world) up(name string, memory int) {
	w.upAs(inventory.HostLife{Host: name, Memory: uint64(memory) << 20, Box: "box-of-" + name})
}

func (w *world) upAs(life inventory.HostLife) {
	name := life.Host
	h := w.hosts[name]
	if h == nil {
		h = &host{}
		w.hosts[name] = h
	}
	life.ID = fmt.Sprint(w.now, w.state.Index)
	boot, edits, err := w.view().HostUp(life, int64(w.now))
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
	case Pair:
		return fmt.Sprintf("%s gets its secondary on %s boot %d", d.Machine, d.Host, d.Boot)
	case Part:
		return fmt.Sprintf("%s loses its secondary %d (%s): %s", d.Machine, d.Pair, d.Why, d.Detail)
	case Wait:
		return fmt.Sprintf("%s waits: %s", d.Machine, d.Why)
	}
	return fmt.Sprintf("what is a %T?", d)
}

var outcomes = map[string]Outcome{"runs": Runs, "shutdown": Shutdown, "panicked": Panicked, "stopped": Stopped, "failed": Failed, "superseded": Superseded}

// tells is what a pair's hosts tell of a machine.
func (w *world) tells(what, machine string, why inventory.PartReason) ([]quorum.Edit, error) {
	v := w.view()
	p := v.Placements[machine]
	if p == nil || p.Second == nil {
		return nil, fault.New(fault.Stale, "%s has no secondary", machine)
	}
	switch what {
	case "protected":
		return v.Protected(machine, p.Generation, p.Second.Pair, int64(w.now))
	case "part":
		return v.Part(machine, p.Generation, p.Second.Pair, why, "", int64(w.now))
	}
	return v.TookOver(machine, p.Generation, p.Second.Pair, why, "", int64(w.now))
}

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
		w.must(w.view().AddHost(f[1], cmp.Or(named["cluster"], "c"), inventory.Links{Logging: named["logging"]}))
		fallthrough
	case "up": // a new life
		life := inventory.HostLife{Host: f[1], Memory: uint64(number("memory")) << 20, Box: cmp.Or(named["box"], "box-of-"+f[1]), Build: named["build"]}
		if life.Box == "none" {
			life.Box = ""
		}
		if named["private"] != "" {
			life.Private = []string{named["private"]}
		}
		w.upAs(life)
	case "vm":
		w.vm(f[1], "c", number("memory"), named["host"], inventory.Policy(named["policy"]))
	case "ha":
		w.must(w.view().SetHA("c", f[1] == "on"))
	case "net":
		w.must(w.view().ChangeMachine(f[1], func(m *inventory.Machine) error {
			m.Nets = []inventory.Net{{MAC: "02:00:5e:00:53:01", Network: f[2]}}
			return nil
		}))
	case "ft":
		say(w.change(w.view().SetFT(f[1], map[string]inventory.FT{"on": inventory.FTOn, "disabled": inventory.FTDisabled}[f[2]], int64(w.now))))
	case "protected", "part", "takeover":
		say(w.change(w.tells(f[0], f[1], inventory.PartReason(strings.ReplaceAll(named["why"], "-", " ")))))
	case "check":
		v := w.view()
		facts := Facts{Snapshots: map[string]int{"home." + f[1]: number("snapshots")}}
		if named["silent"] != "" {
			facts.Heard = map[string]bool{named["silent"]: false}
		}
		for _, p := range Prerequisites(v, v.Machines[f[1]], facts, int64(w.now)) {
			if p.Refusal != "" || named["all"] != "" {
				fmt.Fprintf(out, "%s (%s): %s\n", p.Code, p.What, cmp.Or(p.Refusal, "ok"))
			}
		}
		if err := Refused(Prerequisites(v, v.Machines[f[1]], facts, int64(w.now))); err != nil {
			code, _, _ := strings.Cut(err.Error(), ":")
			fmt.Fprintf(out, "refused, %s: %s\n", fault.KindOf(err), code)
		}
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
				fmt.Fprintf(out, "%s: %s, run %d, on %s generation %d", name, m.Desired, m.Run, p.Host, p.Generation)
				if s := p.Second; s != nil {
					fmt.Fprintf(out, ", secondary %d on %s boot %d, protected %t", s.Pair, s.Host, s.Boot, s.Protected)
				}
				fmt.Fprintln(out)
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
		if w.seconds(v, p) {
			used[p.Second.Host] += v.Machines[name].Memory
		}
	}
	return used
}

// seconds tells whether a placement takes memory of its secondary's host.
func (w *world) seconds(v *inventory.View, p *inventory.Placement) bool {
	return p.Active() && p.Second != nil && v.Lives[p.Second.Host].Boot == p.Second.Boot
}

// judge watches placements for as long as a world goes on.
type judge struct {
	placed map[string]seen // by machine and generation
	newest map[string]uint64
}

// seen is what was seen last of a placement.
type seen struct {
	where, second string // host and boot
	pairs         uint64
	failovers     int
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
		case Pair:
			about[d.Machine]++
		case Part:
			about[d.Machine]++
		case Place:
			about[d.Machine]++
			if p := v.Placements[d.Machine]; p != nil && w.uses(v, p) {
				used[p.Host] -= v.Machines[d.Machine].Memory
			}
			if p := v.Placements[d.Machine]; p != nil && w.seconds(v, p) {
				used[p.Second.Host] -= v.Machines[d.Machine].Memory
			}
		case Evict:
		}
	}
	for m, n := range about {
		if n > 1 {
			fatal("%d decisions about %s", n, m)
		}
	}
	j.secondaries(fatal, w, v, decisions, lost, used)
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

// secondaries holds what is decided of machines on two hosts to the rules.
func (j *judge) secondaries(fatal func(string, ...any), w *world, v *inventory.View, decisions []Decision, lost map[string]bool, used map[string]uint64) {
	stands := func(machine string) bool {
		p := v.Placements[machine]
		return p.Active() && p.Second != nil && v.Standing(p.Second.Host, p.Second.Boot) && !lost[p.Second.Host]
	}
	for _, d := range decisions {
		switch d := d.(type) {
		case Place:
			if !stands(d.Machine) {
				continue
			}
			if said := w.hosts[v.Placements[d.Machine].Host].says[d.Machine]; said.Outcome != Superseded || said.Found <= said.Generation {
				fatal("%s, and its secondary is there", text(d))
			}
		case End:
			if stands(d.Machine) && (d.Why == inventory.EndedHostLost || d.Why == inventory.EndedFailed) {
				fatal("%s, and its secondary is there", text(d))
			}
		case Leave:
			if p := v.Placements[d.Machine]; stands(d.Machine) && !p.Second.Protected {
				fatal("%s, and its secondary is not ready", text(d))
			}
		case Pair:
			m, p := v.Machines[d.Machine], v.Placements[d.Machine]
			h, l, own := v.Hosts[d.Host], v.Lives[d.Host], v.Lives[p.Host]
			used[d.Host] += m.Memory
			switch {
			case m.FT != inventory.FTOn || m.Desired != inventory.Running || !p.Active() || p.Generation != d.Generation:
				fatal("%s, and it is not wanted", text(d))
			case lost[d.Host] || lost[p.Host] || !v.Standing(d.Host, d.Boot) || !v.Standing(p.Host, p.Boot):
				fatal("%s, with a host that is lost", text(d))
			case d.Host == p.Host || h.Maintenance || h.Cluster != m.Cluster || l.Box == own.Box || l.Box == "" || l.Build != own.Build:
				fatal("%s, which takes none of its kind", text(d))
			case used[d.Host] > l.Memory:
				fatal("%s, which is full", text(d))
			case p.Second != nil && !v.Hosts[p.Second.Host].Maintenance:
				fatal("%s, and it has one", text(d))
			}
		}
	}
}

// entered notes what the inventory holds after a change.
func (j *judge) entered(fatal func(string, ...any), v *inventory.View) {
	if err := v.Check(); err != nil {
		fatal("%v", err)
	}
	for name, p := range v.Placements {
		key, is := fmt.Sprintf("%s %d", name, p.Generation), seen{where: fmt.Sprintf("%s %d", p.Host, p.Boot), pairs: p.Pairs, failovers: p.Failovers}
		if p.Second != nil {
			is.second = fmt.Sprintf("%s %d", p.Second.Host, p.Second.Boot)
		}
		was, ok := j.placed[key]
		if ok && was.where != is.where && (is.failovers != was.failovers+1 || is.where != was.second) {
			fatal("%s was placed on %s and on %s", key, was.where, is.where)
		}
		if is.pairs < was.pairs || is.failovers < was.failovers {
			fatal("%s: %+v after %+v", key, is, was)
		}
		if p.Generation < j.newest[name] {
			fatal("%s after generation %d", key, j.newest[name])
		}
		j.placed[key], j.newest[name] = is, p.Generation
	}
}

// carryOut has the hosts do what their placements say.
func (w *world) carryOut() {
	v := w.view()
	for name, p := range v.Placements {
		h := w.hosts[p.Host]
		if w.pairActs(v, p) {
			continue
		}
		if p.Active() && h.boot == p.Boot && (p.Leave || v.Machines[name].Desired == inventory.Stopped) {
			h.says[name] = Machine{Name: name, Generation: p.Generation, Outcome: Stopped}
		}
	}
	w.renew()
}

// pairActs has a pair's hosts tell what they see of one another, at most one thing.
func (w *world) pairActs(v *inventory.View, p *inventory.Placement) bool {
	if !p.Active() || p.Second == nil {
		return false
	}
	s := p.Second
	there := func(host string, boot uint32) bool { return w.hosts[host].boot == boot && v.Standing(host, boot) }
	said := w.hosts[p.Host].says[p.Machine]
	gone := said.Generation == p.Generation && (said.Outcome == Failed || said.Outcome == Stopped || said.Outcome == Superseded)
	what := ""
	switch first, second := there(p.Host, p.Boot) && !gone, there(s.Host, s.Boot); {
	case first && v.Machines[p.Machine].Desired == inventory.Stopped:
		return false // it stops, and says so
	case first && !second:
		what = "part"
	case first && !s.Protected:
		what = "protected"
	case first && p.Leave, !first && second && s.Protected:
		what = "takeover"
	case !first && second:
		what = "part" // it was not ready
	default:
		return false
	}
	w.must(w.tells(what, p.Machine, inventory.PartLostConnection))
	return true
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
		j := &judge{map[string]seen{}, map[string]uint64{}}
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
			switch rapid.IntRange(0, 17).Draw(t, "what") {
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
					w.hosts[p.Host].says[m] = Machine{m, p.Generation, o, "", p.Generation + rapid.SampledFrom([]uint64{0, 2}).Draw(t, "found")}
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
				j.entered(t.Fatalf, w.view())
			case 16:
				w.must(w.view().SetFT(m, rapid.SampledFrom([]inventory.FT{inventory.FTOn, inventory.FTOn, inventory.FTOff, inventory.FTDisabled}).Draw(t, "ft"), int64(w.now)))
			case 17:
				// What a pair's hosts see of one another by themselves; it may be over already.
				_ = w.change(w.tells(rapid.SampledFrom([]string{"protected", "part", "takeover"}).Draw(t, "tells"), m, rapid.SampledFrom([]inventory.PartReason{
					inventory.PartUser, inventory.PartDivergence, inventory.PartLostConnection,
				}).Draw(t, "why")))
				j.entered(t.Fatalf, w.view())
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
			j.entered(t.Fatalf, w.view())
			w.now += time.Second
		}
		v := w.view()
		waits, alone := map[string]bool{}, map[string]bool{}
		for _, d := range rest {
			x, ok := d.(Wait)
			if !ok {
				t.Fatalf("it does not come to rest: %s", text(d))
			}
			if strings.HasPrefix(x.Why, "for a secondary") {
				alone[x.Machine] = true
			} else {
				waits[x.Machine] = true
			}
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
			if m.FT != inventory.FTOn || m.Desired != inventory.Running || !p.Active() || v.Hosts[p.Host].Maintenance || !v.Standing(p.Host, p.Boot) {
				continue
			}
			if s := p.Second; s != nil {
				if !s.Protected || !v.Standing(s.Host, s.Boot) || v.Hosts[s.Host].Maintenance {
					t.Fatalf("%s has a secondary that cannot go on: %+v", name, *s)
				}
				continue
			}
			if !alone[name] && !waits[name] {
				t.Fatalf("%s has no secondary, and nobody says why", name)
			}
			for _, h := range hosts {
				if h != p.Host && !v.Hosts[h].Maintenance && v.Lives[h].Memory >= used[h]+m.Memory && !waiting(waits, v, m) && !p.Leave {
					t.Fatalf("%s has no secondary, and %s has room", name, h)
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
