package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"steadfast/cluster/inventory"
	"steadfast/fault"
)

// Codes of what fault tolerance takes. They are stable: a refusal begins with one.
const (
	CodeAlready  = "FT-ALREADY"
	CodeHA       = "FT-HA"
	CodeType     = "FT-TYPE"
	CodeCPU      = "FT-CPU"
	CodeStorage  = "FT-STORAGE"
	CodeSnapshot = "FT-SNAPSHOT"
	CodeHosts    = "FT-HOSTS"
	CodeBuild    = "FT-BUILD"
	CodeBox      = "FT-BOX"
	CodeNetwork  = "FT-NETWORK"
	CodeLinks    = "FT-LINKS"
	CodeMemory   = "FT-MEMORY"
)

// Prerequisite is something that fault tolerance takes.
type Prerequisite struct {
	Code string
	// What is asked for.
	What string
	// Refusal is why it is not there, and what to do; empty: it is.
	Refusal string
}

// Facts are what the inventory does not say.
type Facts struct {
	// Snapshots is how many a volume of the machine has, by its name.
	Snapshots map[string]int
	// Storage is why the machine's volumes are not served, or their snapshots not known; nil: they
	// are.
	Storage error
	// Heard tells of hosts whether they are heard of; nil: nobody knows.
	Heard map[string]bool
}

// Prerequisites tells of each thing that fault tolerance takes whether it is there for a machine,
// all in one order. What takes two hosts is judged of those that are there by what was judged
// before: each alone may be met by some two hosts, and all by none. now is in nanoseconds since
// 1970, UTC.
func Prerequisites(v *inventory.View, m *inventory.Machine, f Facts, now int64) []Prerequisite {
	list := []Prerequisite{
		{CodeAlready, "fault tolerance is off", alreadyOn(m)},
		{CodeHA, "the cluster restarts machines (HA)", withoutHA(v, m)},
		{CodeType, "a machine type that runs in lockstep", ""}, // all machines are of the one that there is
		{CodeCPU, "one processor", ""},                         // no machine has more
		{CodeStorage, "storage that both hosts reach", notShared(v, m, f)},
		{CodeSnapshot, "no snapshots of its volumes", snapshots(m, f)},
	}
	return append(list, newDecider(v, nil, now).twoHosts(m, f)...)
}

// Refused is the error of the first prerequisite that is not met: fault.Exists for a machine that
// is protected already, else fault.Busy. nil: all are.
func Refused(list []Prerequisite) error {
	for _, p := range list {
		if p.Refusal == "" {
			continue
		}
		kind := fault.Busy
		if p.Code == CodeAlready {
			kind = fault.Exists
		}
		return fault.New(kind, "%s: %s", p.Code, p.Refusal)
	}
	return nil
}

func alreadyOn(m *inventory.Machine) string {
	switch m.FT {
	case inventory.FTOff:
		return ""
	case inventory.FTOn:
		return fmt.Sprintf("the fault tolerance of the machine %q is on already; see \"steadfast ft status %s\"", m.Name, m.Name)
	case inventory.FTDisabled:
	}
	return fmt.Sprintf("the fault tolerance of the machine %q is on, and disabled; enable it: \"steadfast ft enable %s\"", m.Name, m.Name)
}

func withoutHA(v *inventory.View, m *inventory.Machine) string {
	if c := v.Clusters[m.Cluster]; c != nil && c.HA {
		return ""
	}
	return fmt.Sprintf("the cluster %q has no HA, which starts the machine again when both of its hosts are lost; turn it on: \"steadfast cluster set %s --ha\"", m.Cluster, m.Cluster)
}

func notShared(v *inventory.View, m *inventory.Machine, f Facts) string {
	d := v.Datastores[m.Datastore]
	if d == nil {
		return fmt.Sprintf("the datastore %q cannot be read; upgrade this node", m.Datastore)
	}
	for _, name := range m.Volumes() {
		if _, there := v.Groups[d.Group].Volumes[name]; !there {
			return fmt.Sprintf("the volume %q is not in the group %q, by which both hosts reach it; see \"steadfast volume list\"", name, d.Group)
		}
	}
	if f.Storage != nil {
		return f.Storage.Error()
	}
	return ""
}

func snapshots(m *inventory.Machine, f Facts) string {
	for _, name := range m.Volumes() {
		if n := f.Snapshots[name]; n > 0 {
			return fmt.Sprintf("the volume %q has %d snapshots; delete them: \"steadfast snapshot list %s\"", name, n, name)
		}
	}
	return ""
}

// pairOf is two hosts: of the primary and of the secondary.
type pairOf struct{ first, second string }

// step is a prerequisite that two hosts meet or not.
type step struct {
	code, what string
	meets      func(pairOf) bool
	refusal    func([]pairOf) string // of hosts of which no two do
}

// twoHosts judges what takes two hosts.
func (d *decider) twoHosts(m *inventory.Machine, f Facts) (list []Prerequisite) {
	left := d.candidates(m)
	for _, s := range d.steps(m, f) {
		meet := slices.DeleteFunc(slices.Clone(left), func(p pairOf) bool { return !s.meets(p) })
		refusal := ""
		switch {
		case len(meet) > 0:
			left = meet // else the next is judged of those that were left before
		case len(left) == 0 && s.code != CodeHosts:
			refusal = "there are no two hosts to look at; see \"steadfast host list\""
		default:
			refusal = s.refusal(left)
		}
		list = append(list, Prerequisite{s.code, s.what, refusal})
	}
	return list
}

// candidates are all two hosts of a machine's cluster; of one that runs, those with its host. One
// that has a secondary already gives its memory back.
func (d *decider) candidates(m *inventory.Machine) (list []pairOf) {
	p := d.v.Placements[m.Name]
	if p.Active() && p.Second != nil {
		d.free[p.Second.Host] += int64(m.Memory)
	}
	for _, a := range d.hosts {
		if d.v.Hosts[a].Cluster != m.Cluster || p.Active() && a != p.Host {
			continue
		}
		for _, b := range d.hosts {
			if b != a && d.v.Hosts[b].Cluster == m.Cluster {
				list = append(list, pairOf{a, b})
			}
		}
	}
	return list
}

// steps are what two hosts are judged by, in order.
func (d *decider) steps(m *inventory.Machine, f Facts) []step {
	lacks := func(l lack) func(pairOf) bool {
		return func(p pairOf) bool { return d.lacksOnly(m, p, l) }
	}
	tell := func(l lack, todo string) func([]pairOf) string {
		return func(left []pairOf) string { return d.tellLack(l, m, left) + "; " + todo }
	}
	return []step{
		{CodeHosts, "two hosts of its cluster that are up", func(p pairOf) bool { return d.isUp(p.first) && d.isUp(p.second) }, func([]pairOf) string { return d.tooFew(m) }},
		{
			CodeBuild, "hosts of one version and build", lacks(lacksBuild),
			tell(lacksBuild, "have both run one program: upgrade the older one"),
		},
		{
			CodeBox, "hosts in two boxes", lacks(lacksBox),
			tell(lacksBox, "say what dies with each host by box under [host] in its configuration, and have the machine's cluster have hosts in two"),
		},
		{
			CodeNetwork, "networks that go on without a host", lacks(lacksNetwork),
			tell(lacksNetwork, "give the machine a card on a bridge or a switch instead: \"steadfast vm set --help\""),
		},
		{CodeLinks, "links for migration and logging", func(p pairOf) bool { return d.link(p, f) == "" }, func(left []pairOf) string { return d.link(left[0], f) }},
		{
			CodeMemory, "memory on the other host", func(p pairOf) bool { return d.hasRoom(m, p) },
			func(left []pairOf) string { return d.tooSmall(m, left) },
		},
	}
}

// isUp tells whether a host can take machines.
func (d *decider) isUp(host string) bool {
	return d.v.Lives[host] != nil && !d.lost[host] && !d.v.Hosts[host].Maintenance
}

// lacksOnly tells whether two hosts do not lack this.
func (d *decider) lacksOnly(m *inventory.Machine, p pairOf, l lack) bool {
	a, b := d.v.Lives[p.first], d.v.Lives[p.second]
	if a == nil || b == nil {
		return false
	}
	switch l {
	case lacksBuild:
		return a.Build == b.Build && a.Program == b.Program
	case lacksBox:
		return a.Box != "" && b.Box != "" && a.Box != b.Box
	default:
		return privateNet(m, a) == "" && privateNet(m, b) == ""
	}
}

// hasRoom tells whether two hosts have the memory for a machine and its secondary.
func (d *decider) hasRoom(m *inventory.Machine, p pairOf) bool {
	runs := d.v.Placements[m.Name].Active()
	return d.free[p.second] >= int64(m.Memory) && (runs || d.free[p.first] >= int64(m.Memory))
}

// tooSmall says which hosts have no room.
func (d *decider) tooSmall(m *inventory.Machine, left []pairOf) string {
	var list []string
	for _, p := range left {
		hosts := []string{p.second}
		if !d.v.Placements[m.Name].Active() {
			hosts = []string{p.first, p.second}
		}
		for _, host := range hosts {
			if text := d.lackText(lacksMemory, m, host, host); d.free[host] < int64(m.Memory) && !slices.Contains(list, text) && len(list) < toldMax {
				list = append(list, text)
			}
		}
	}
	return strings.Join(list, ", ") + "; stop a machine there, or give the host more: memory under [host] in its configuration"
}

// tooFew says why there are no two hosts.
func (d *decider) tooFew(m *inventory.Machine) string {
	var up, not []string
	for _, name := range d.hosts {
		switch {
		case d.v.Hosts[name].Cluster != m.Cluster:
		case d.isUp(name):
			up = append(up, name)
		case d.v.Hosts[name].Maintenance:
			not = append(not, name+" is in maintenance")
		default:
			not = append(not, name+" is not up")
		}
	}
	there := cmp.Or(strings.Join(up, ", "), "none")
	if p := d.v.Placements[m.Name]; p.Active() && len(up) > 1 {
		there = "not " + p.Host + ", which runs it"
	}
	if len(not) > toldMax {
		not = append(not[:toldMax], fmt.Sprintf("and %d more are not", len(not)-toldMax))
	}
	if len(not) > 0 {
		there += " (" + strings.Join(not, ", ") + ")"
	}
	return fmt.Sprintf("it takes two hosts of the cluster %q that are up and not in maintenance, and there is %s; start or add another: \"steadfast host list\", \"steadfast host add\"", m.Cluster, there)
}

// tellLack says of the first few of these what they lack.
func (d *decider) tellLack(l lack, m *inventory.Machine, left []pairOf) string {
	var list []string
	for _, p := range left {
		if d.v.Lives[p.first] == nil || d.v.Lives[p.second] == nil || p.first > p.second && slices.Contains(left, pairOf{p.second, p.first}) {
			continue
		}
		if t := d.lackText(l, m, p.first, p.second); t != "" && !slices.Contains(list, t) && len(list) < toldMax {
			list = append(list, t)
		}
	}
	return cmp.Or(strings.Join(list, ", "), "the hosts of its cluster are not up")
}

// link says what is wrong with the links of two hosts; empty: nothing that is known. A host without
// a link of its own for something has it go over the management link, and that is as the host comes.
func (d *decider) link(p pairOf, f Facts) string {
	for _, name := range []string{p.first, p.second} {
		links := d.v.Hosts[name].Links
		for _, l := range []struct{ name, at string }{{"management", links.Management}, {"migration", links.Migration}, {"logging", links.Logging}} {
			if l.at != "" && !isAddress(l.at) {
				return fmt.Sprintf("the %s link of the host %q is %q, which is no address and port; correct it: \"steadfast host set %s --%s 10.0.0.1:7501\"", l.name, name, l.at, name, l.name)
			}
		}
		if heard, known := f.Heard[name]; known && !heard {
			return fmt.Sprintf("the host %q is not heard of by any link; see \"steadfast cluster show\"", name)
		}
	}
	return ""
}

// isAddress tells whether text is a host and a port.
func isAddress(text string) bool {
	i := strings.LastIndexByte(text, ':')
	if i <= 0 {
		return false
	}
	port, err := strconv.ParseUint(text[i+1:], 10, 16)
	host, bare := text[:i], strings.Trim(text[:i], "[]")
	return err == nil && port > 0 && bare != "" && (!strings.Contains(host, ":") || host == "["+bare+"]")
}

// SecondaryOn tells why a machine that runs cannot have its secondary on a host; empty: it can.
// now is in nanoseconds since 1970, UTC.
func SecondaryOn(v *inventory.View, m *inventory.Machine, host string, now int64) string {
	p, d := v.Placements[m.Name], newDecider(v, nil, now)
	if l := d.lacks(m, p.Host, host, nil); l != lacksNothing {
		return d.lackText(l, m, p.Host, host)
	}
	return ""
}
