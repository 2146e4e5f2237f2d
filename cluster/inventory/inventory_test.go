package inventory

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"steadfast/cluster/quorum"
	"steadfast/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is an inventory that commands change.
type site struct {
	state *quorum.State
	now   int64
}

func newSite() *site { return &site{state: quorum.NewState()} }

func (s *site) view(t testing.TB) *View {
	v, err := Read(s.state.Inventory.Entries)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// put does edits, as the quorum does.
func (s *site) put(edits []quorum.Edit) error {
	if len(edits) == 0 {
		return nil
	}
	s.state.Boots["n"] = 1
	return s.state.Apply(s.state.Index+1, quorum.Command{Kind: quorum.KindEdit, By: quorum.Incarnation{Member: "n", Boot: 1}, Revision: s.state.Inventory.Revision, Edits: edits})
}

// group enters a resource group as its own package would.
func (s *site) group(t testing.TB, name string, volumes map[string]int64) {
	type volume struct {
		Name string `json:"name"`
		Size int64  `json:"size"`
	}
	record := struct {
		Name    string   `json:"name"`
		Target  string   `json:"target"`
		Volumes []volume `json:"volumes"`
	}{Name: name, Target: "iqn"}
	for _, v := range slices.Sorted(maps.Keys(volumes)) {
		record.Volumes = append(record.Volumes, volume{v, volumes[v]})
	}
	b, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.put([]quorum.Edit{{Key: groupPrefix + name, Value: b}}); err != nil {
		t.Fatal(err)
	}
}

// args are a command's words, and what it names as key=value.
type args struct {
	words []string
	named map[string]string
}

func parse(line string) (a args) {
	a.named = map[string]string{}
	for _, f := range strings.Fields(line) {
		if k, v, ok := strings.Cut(f, "="); ok {
			a.named[k] = v
		} else {
			a.words = append(a.words, f)
		}
	}
	return a
}

func (a args) number(name string) int64 {
	n, _ := strconv.ParseInt(a.named[name], 10, 64)
	return n
}

// list is what is named as key=one,two.
func (a args) list(name string) []string {
	return slices.DeleteFunc(strings.Split(a.named[name], ","), func(s string) bool { return s == "" })
}

// id makes an identifier of a name.
func id(name string) string {
	return fmt.Sprintf("%032x", []byte(name)[:min(len(name), 16)])[:32]
}

// disks reads root:volume:bytes,...
func disks(text string) (list []Disk) {
	for d := range strings.SplitSeq(text, ",") {
		f := strings.Split(d, ":")
		n, _ := strconv.ParseInt(f[2], 10, 64)
		list = append(list, Disk{f[0], f[1], n})
	}
	return list
}

// change makes the named changes of a machine.
func (a args) change(m *Machine) {
	for k, v := range a.named {
		switch k {
		case "id":
			m.ID = v
		case "rename":
			m.Name = v
		case "cluster":
			m.Cluster = v
		case "datastore":
			m.Datastore = v
		case "home":
			m.Home = v
		case "memory":
			m.Memory = uint64(a.number("memory")) << 20
		case "cmdline":
			m.CommandLine = v
		case "disks":
			m.Disks = disks(v)
		case "mac":
			m.Nets = []Net{{v, "lan"}}
		case "policy":
			m.Policy = Policy(v)
		case "host":
			m.Host = v
		case "desired":
			m.Desired = Desired(v)
		case "ft":
			m.FT = FT(v)
		case "floor":
			m.Floor = uint64(a.number("floor"))
		}
	}
}

// do does one command and returns its edits.
func (s *site) do(t testing.TB, line string) ([]quorum.Edit, error) {
	v, a := s.view(t), parse(line)
	name := ""
	if len(a.words) > 2 {
		name = a.words[2]
	}
	switch a.words[0] + " " + a.words[1] {
	case "datacenter create":
		return v.CreateDatacenter(name)
	case "datacenter delete":
		return v.DeleteDatacenter(name)
	case "cluster create":
		return v.CreateCluster(name, a.named["datacenter"], a.named["ha"] == "yes")
	case "cluster set":
		return v.SetHA(name, a.named["ha"] == "yes")
	case "cluster delete":
		return v.DeleteCluster(name)
	case "host add":
		return v.AddHost(name, a.named["cluster"], Links{Management: a.named["management"]})
	case "host links":
		return v.SetLinks(name, Links{Management: a.named["management"], Logging: a.named["logging"]})
	case "host maintenance":
		return v.SetMaintenance(name, a.named["on"] != "no")
	case "host remove":
		return v.RemoveHost(name)
	case "host up":
		boot, edits, err := v.HostUp(HostLife{Host: name, ID: a.named["life"], Memory: uint64(a.number("memory")) << 20, Box: a.named["box"], Private: a.list("private")}, s.now)
		if err == nil && strconv.Itoa(int(boot)) != a.named["boot"] {
			err = fault.New(fault.Internal, "boot %d", boot)
		}
		return edits, err
	case "host lost":
		return v.HostLost(name, uint32(a.number("boot")), s.now)
	case "datastore add":
		return v.AddDatastore(name, a.named["datacenter"], a.named["group"])
	case "datastore remove":
		return v.RemoveDatastore(name)
	case "vm create":
		m := Machine{Name: name, ID: id(name)}
		m.Memory = 64 << 20
		a.change(&m)
		return v.CreateMachine(m)
	case "vm set":
		return v.ChangeMachine(name, func(m *Machine) error { a.change(m); return nil })
	case "vm start":
		return v.Start(name)
	case "vm stop":
		return v.Stop(name)
	case "vm off":
		return v.PowerOff(name)
	case "vm reset":
		return v.Reset(name)
	case "vm delete":
		return v.DeleteMachine(name)
	case "vm place":
		return v.Place(Placement{Machine: name, Host: a.named["host"], Boot: uint32(a.number("boot")), Generation: uint64(a.number("generation")), Reason: "a test"}, s.now)
	case "vm leave":
		return v.AskLeave(name, uint64(a.number("generation")))
	case "vm reserve":
		generation, edits, err := v.ReserveGeneration(name)
		if p := v.Placements[name]; err == nil && (p != nil && generation <= p.Generation || generation <= v.Machines[name].Floor) {
			err = fault.New(fault.Internal, "generation %d was there before", generation)
		}
		return edits, err
	case "ft set":
		return v.SetFT(name, FT(a.named["ft"]), s.now)
	case "ft pair":
		return v.Pair(name, uint64(a.number("generation")), a.named["host"], uint32(a.number("boot")), s.now)
	case "ft protected":
		return v.Protected(name, uint64(a.number("generation")), uint64(a.number("pair")), s.now)
	case "ft part":
		return v.Part(name, uint64(a.number("generation")), uint64(a.number("pair")), PartReason(strings.ReplaceAll(a.named["why"], "-", " ")), a.named["detail"], s.now)
	case "ft tookover":
		return v.TookOver(name, uint64(a.number("generation")), uint64(a.number("pair")), PartReason(strings.ReplaceAll(a.named["why"], "-", " ")), a.named["detail"], s.now)
	case "vm end":
		return v.End(name, uint64(a.number("generation")), Ending(strings.ReplaceAll(a.named["why"], "-", " ")), a.named["detail"], s.now)
	}
	return nil, fault.New(fault.Internal, "what is %q?", line)
}

// TestScenarios plays scripts: the transcript is the test.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := newSite()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			var out strings.Builder
			for line := range strings.Lines(d.Input) {
				if strings.TrimSpace(line) == "" {
					continue
				}
				s.now += 1_000_000_000
				f := strings.Fields(line)
				switch f[0] {
				case "group":
					volumes := map[string]int64{}
					for k, v := range parse(line).named {
						volumes[k], _ = strconv.ParseInt(v, 10, 64)
					}
					s.group(t, f[1], volumes)
					continue
				case "protection":
					v := s.view(t)
					fmt.Fprintf(&out, "%+v\n", ProtectionOf(v.Machines[f[1]], v.Placements[f[1]]))
					continue
				case "show":
					for _, key := range f[1:] {
						fmt.Fprintf(&out, "%s\n", s.state.Inventory.Entries[key])
					}
					continue
				}
				edits, err := s.do(t, line)
				if err == nil {
					err = s.put(edits)
				}
				if err == nil {
					err = s.view(t).Check()
				}
				switch {
				case err != nil:
					fmt.Fprintf(&out, "%s: %v\n", fault.KindOf(err), err)
				case len(edits) == 0:
					fmt.Fprintf(&out, "nothing to do\n")
				default:
					for _, e := range edits {
						if len(e.Value) == 0 {
							fmt.Fprintf(&out, "- %s\n", e.Key)
						} else {
							fmt.Fprintf(&out, "+ %s\n", e.Key)
						}
					}
				}
			}
			return out.String()
		})
	})
}

// example is a site with one of each.
func example(t testing.TB) *site {
	s := newSite()
	s.group(t, "g", map[string]int64{"home": 1 << 20, "root": 1 << 30})
	for _, line := range []string{
		"datacenter create dc", "cluster create c datacenter=dc ha=yes", "host add h cluster=c", "datastore add ds datacenter=dc group=g",
		"vm create m cluster=c datastore=ds home=home disks=root:root:1024 mac=02:00:00:00:00:01", "host up h life=x boot=1 memory=1000", "vm start m",
		"vm place m host=h boot=1 generation=1",
	} {
		edits, err := s.do(t, line)
		if err == nil {
			err = s.put(edits)
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	return s
}

// TestNewer: a document of a later version, or with a field that is not known,
// stays as it is, is named, and holds up what depends on it.
func TestNewer(t *testing.T) {
	for key, depends := range map[string][]string{
		"datacenter/dc": {"datacenter create dc", "datacenter delete dc", "cluster create d datacenter=dc", "datastore add e datacenter=dc group=g"},
		"cluster/c":     {"cluster create c datacenter=dc", "cluster set c", "datacenter delete dc", "host add i cluster=c", "vm set m host="},
		"host/h":        {"host add h cluster=c", "host maintenance h", "host remove h", "cluster delete c", "host up h life=y boot=2", "vm set m host=h"},
		"datastore/ds":  {"datastore add ds datacenter=dc group=g", "datastore add e datacenter=dc group=g", "datastore remove ds", "vm set m policy=leave", "datacenter delete dc"},
		"machine/m":     {"ft set m ft=on", "ft pair m host=h boot=1 generation=1", "vm create m", "vm start m", "vm stop m", "vm off m", "vm reset m", "vm delete m", "cluster delete c", "datastore remove ds", "host remove h", "vm place m host=h boot=1 generation=2", "vm create n cluster=c datastore=ds home=home"},
		"placement/m":   {"ft set m ft=on", "ft pair m host=h boot=1 generation=1", "ft protected m pair=1 generation=1", "vm set m policy=leave", "vm off m", "vm delete m", "vm reserve m", "vm place m host=h boot=1 generation=2", "vm end m generation=1 why=stopped", "host remove h", "vm leave m generation=1"},
		"life/h":        {"host up h life=y boot=2", "host lost h boot=1"},
		"group/g":       {"vm set m policy=leave", "datastore add e datacenter=dc group=g"},
		"count/host":    {"host add i cluster=c"},
	} {
		for name, change := range map[string]func([]byte) []byte{
			"version": func(b []byte) []byte { return bytes.Replace(b, []byte(`"version":1`), []byte(`"version":2`), 1) },
			"field":   func(b []byte) []byte { return bytes.Replace(b, []byte(`{`), []byte(`{"colour":"red",`), 1) },
			"broken":  func([]byte) []byte { return []byte("[") },
		} {
			s := example(t)
			was := s.state.Inventory.Entries[key]
			now := change(was)
			if bytes.Equal(now, was) || name == "field" && key == "group/g" {
				continue // another package's, or no document
			}
			v, err := Read(withEntry(s.state.Inventory.Entries, key, now))
			if err == nil || !slices.Equal(v.Unread, []string{key}) || !strings.Contains(err.Error(), key) {
				t.Fatalf("%s of %s: %v, unread %v", name, key, err, v.Unread)
			}
			want := fault.Stale
			if name == "broken" && key != "group/g" {
				want = fault.Corrupt
			}
			if !fault.Is(err, want) {
				t.Errorf("%s of %s is %v: %v", name, key, fault.KindOf(err), err)
			}
			for _, line := range depends {
				lacking := &site{state: &quorum.State{Inventory: quorum.Inventory{Entries: withEntry(s.state.Inventory.Entries, key, now)}}}
				if _, err := lacking.do(lenientTB{t}, line); !fault.Is(err, fault.Stale) {
					t.Errorf("%s of %s: %s: %v", name, key, line, err)
				}
			}
		}
	}
}

func withEntry(entries map[string][]byte, key string, value []byte) map[string][]byte {
	c := maps.Clone(entries)
	c[key] = value
	return c
}

// lenientTB lets a view be incomplete.
type lenientTB struct{ testing.TB }

func (lenientTB) Fatal(...any) {}

// TestUsed: what machines and datastores stand on is known to who deletes it.
func TestUsed(t *testing.T) {
	s := example(t)
	v := s.view(t)
	for _, c := range []struct {
		group, volume, machine string
	}{{"g", "home", "m"}, {"g", "root", "m"}, {"g", "other", ""}, {"h", "root", ""}} {
		if m, used, err := v.UsedBy(c.group, c.volume); err != nil || m != c.machine || used != (m != "") {
			t.Errorf("%v: %q %t %v", c, m, used, err)
		}
	}
	if d, is, err := v.DatastoreOf("g"); err != nil || d != "ds" || !is {
		t.Errorf("datastore %q %t %v", d, is, err)
	}
	if d, is, err := v.DatastoreOf("h"); err != nil || d != "" || is {
		t.Errorf("datastore %q %t %v", d, is, err)
	}
	v, _ = Read(withEntry(s.state.Inventory.Entries, "machine/n", []byte(`{"version":2}`)))
	if _, _, err := v.UsedBy("g", "other"); !fault.Is(err, fault.Stale) {
		t.Errorf("with a machine that cannot be read: %v", err)
	}
}

// TestSize: the largest inventory there may be, of ordinary machines, is within
// the quorum's bounds.
func TestSize(t *testing.T) {
	entries, size := 2*MachinesMax+2*HostsMax+ClustersMax+DatacentersMax+DatastoresMax+1, 0
	s := example(t)
	for key, value := range s.state.Inventory.Entries {
		size += len(key) + len(value)
	}
	// size is of one of each; ordinary machines have twice that.
	if entries > quorum.InventoryEntriesMax*2/3 || 2*size*MachinesMax > quorum.InventoryBytesMax {
		t.Errorf("%d entries; %d bytes for one of each", entries, size)
	}
}

// TestRules: whatever is asked for in whatever order, the documents never
// contradict one another, generations go up, and numbers are given once.
func TestRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tb := rapidTB{t: t}
		s := newSite()
		s.group(tb, "g1", map[string]int64{"a": 1 << 20, "b": 1 << 20, "c": 1 << 20, "d": 1 << 20})
		s.group(tb, "g2", map[string]int64{"a": 1 << 20, "b": 1 << 20})
		pick := func(list ...string) string { return rapid.SampledFrom(list).Draw(t, "of") }
		numbers := map[uint16]string{}
		generations := map[string]uint64{}
		for range 150 {
			x := pick("x", "y")
			line := pick(
				"datacenter create "+x, "datacenter delete "+x, "cluster create "+x+" ha=yes datacenter="+pick("x", "y"), "cluster delete "+x,
				"host add "+x+" cluster="+pick("x", "y"), "host maintenance "+x+" on="+pick("yes", "no"), "host remove "+x,
				"host up "+x+" life="+pick("1", "2", "3")+" memory="+pick("64", "128")+" boot="+pick("1", "2", "3"), "host lost "+x+" boot="+pick("1", "2", "3"),
				"datastore add "+x+" datacenter="+pick("x", "y")+" group="+pick("g1", "g2", "g3"), "datastore remove "+x,
				"vm create "+x+" cluster="+pick("x", "y")+" datastore="+pick("x", "y")+" home="+pick("a", "b")+" disks=d:"+pick("b", "c", "d")+":1024 mac=02:00:00:00:00:0"+pick("1", "2")+" floor="+pick("0", "3"),
				"vm set "+x+" "+pick("memory=128", "host=x", "host=", "cluster=y", "home=c", "disks=d:d:2048", "mac=02:00:00:00:00:03", "policy=leave", "id=0123", "desired=running"),
				"vm start "+x, "vm start "+x, "vm stop "+x, "vm off "+x, "vm reset "+x, "vm delete "+x, "vm reserve "+x,
				"vm place "+x+" host="+pick("x", "y")+" boot="+pick("1", "2")+" generation="+pick("1", "2", "3", "4", "5", "6"), "vm leave "+x+" generation="+pick("1", "2", "4"),
				"ft set "+x+" ft="+pick("on", "on", "on", "disabled", ""),
				"ft pair "+x+" host="+pick("x", "y")+" boot="+pick("1", "2")+" generation="+pick("1", "2", "3", "4", "5"),
				"ft "+pick("protected", "part", "tookover")+" "+x+" why="+pick("divergence", "user-action")+" pair="+pick("1", "2", "3")+" generation="+pick("1", "2", "3", "4", "5"),
				"vm end "+x+" why="+pick("shutdown", "moved", "host-lost", "stopped", "nonsense")+" generation="+pick("1", "2", "3", "4"),
			)
			edits, err := s.do(tb, line)
			if err != nil {
				if fault.Is(err, fault.Internal) && !strings.Contains(err.Error(), "boot") {
					t.Fatalf("%s: %v", line, err)
				}
				continue
			}
			if err := s.put(edits); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			v := s.view(tb)
			if err := v.Check(); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			for name, h := range v.Hosts {
				if strings.HasPrefix(line, "host add "+name) && numbers[h.Number] != "" {
					t.Fatalf("the number %d was given twice", h.Number)
				}
				numbers[h.Number] = name
			}
			for name, p := range v.Placements {
				if p.Generation < generations[p.ID] {
					t.Fatalf("%s: generation %d after %d", line, p.Generation, generations[p.ID])
				}
				generations[p.ID] = p.Generation
				h := v.Hosts[p.Host]
				if strings.HasPrefix(line, "vm place "+name) && (h.Maintenance || !v.Standing(p.Host, p.Boot) || v.Lives[p.Host].Memory < v.Machines[name].Memory) {
					t.Fatalf("%s: on a host that takes none", line)
				}
			}
			for name := range generations {
				if !slices.ContainsFunc(slices.Collect(maps.Values(v.Machines)), func(m *Machine) bool { return m.ID == name }) {
					delete(generations, name) // deleted; another of its name begins anew
				}
			}
		}
	})
}

// rapidTB is as much of testing.TB as the site needs.
type rapidTB struct {
	testing.TB
	t *rapid.T
}

func (r rapidTB) Fatal(args ...any) { r.t.Fatal(args...) }

// FuzzRead: whatever entries hold, nothing panics; what can be read is written
// as it was read.
func FuzzRead(f *testing.F) {
	s := example(f)
	for key, value := range s.state.Inventory.Entries {
		f.Add(key, value)
	}
	f.Add("machine/", []byte("{}"))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		v, err := Read(map[string][]byte{key: value})
		if err != nil {
			return
		}
		for _, m := range v.Machines {
			old := *m
			old.Revision--
			e, err := edit(key, m.clone(), &old)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Read(map[string][]byte{e.Key: e.Value})
			if err != nil || len(again.Machines) != 1 {
				t.Fatalf("%s: %v", e.Value, err)
			}
		}
	})
}

// TestHardware: what no machine can be made up as.
func TestHardware(t *testing.T) {
	good := func() *Hardware {
		return &Hardware{
			Memory: MemoryMin, CommandLine: "root=/dev/vda rw", Disks: []Disk{{"a", "v.a", 512}, {"b", "v.b", 1 << 40}},
			Nets: []Net{{"02:00:00:00:00:01", "lan"}, {"52:54:00:ab:cd:ef", "lan"}},
		}
	}
	if err := good().Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Hardware){
		"little memory":         func(h *Hardware) { h.Memory = MemoryMin - memoryUnit },
		"much memory":           func(h *Hardware) { h.Memory = MemoryMax + memoryUnit },
		"half a page":           func(h *Hardware) { h.Memory++ },
		"a long command line":   func(h *Hardware) { h.CommandLine = strings.Repeat("x", CommandLineMax+1) },
		"two lines":             func(h *Hardware) { h.CommandLine = "a\nb" },
		"many disks":            func(h *Hardware) { h.Disks = make([]Disk, DisksMax+1) },
		"many cards":            func(h *Hardware) { h.Nets = make([]Net, NetsMax+1) },
		"a disk without a name": func(h *Hardware) { h.Disks[0].Name = "" },
		"no volume":             func(h *Hardware) { h.Disks[0].Volume = "" },
		"a volume with a space": func(h *Hardware) { h.Disks[0].Volume = "a b" },
		"an empty disk":         func(h *Hardware) { h.Disks[0].Bytes = 0 },
		"half a sector":         func(h *Hardware) { h.Disks[0].Bytes = 513 },
		"a huge disk":           func(h *Hardware) { h.Disks[0].Bytes = sizeMax + sectorSize },
		"a name twice":          func(h *Hardware) { h.Disks[1].Name = "a" },
		"a volume twice":        func(h *Hardware) { h.Disks[1].Volume = "v.a" },
		"no network":            func(h *Hardware) { h.Nets[0].Network = "" },
		"an address twice":      func(h *Hardware) { h.Nets[1] = h.Nets[0] },
		"a short address":       func(h *Hardware) { h.Nets[0].MAC = "02:00:00:00:00" },
		"no hex":                func(h *Hardware) { h.Nets[0].MAC = "02:00:00:00:00:0g" },
		"a sign":                func(h *Hardware) { h.Nets[0].MAC = "02:00:00:00:00:+1" },
		"other separators":      func(h *Hardware) { h.Nets[0].MAC = "02-00-00-00-00-01" },
		"a group's address":     func(h *Hardware) { h.Nets[0].MAC = "01:00:00:00:00:01" },
		"no address":            func(h *Hardware) { h.Nets[0].MAC = "00:00:00:00:00:00" },
	} {
		h := good()
		change(h)
		if err := h.Check(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if mac, err := good().Nets[1].Address(); err != nil || mac != [6]byte{0x52, 0x54, 0, 0xab, 0xcd, 0xef} {
		t.Errorf("%x, %v", mac, err)
	}
}
