package overview

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/node/size"
)

// Levels of a risk.
const (
	// Down: it does not work now.
	Down = "down"
	// Exposed: the next failure would stop it.
	Exposed = "exposed"
)

// Fill levels of pools, in percent of what volumes can fill, as the rules of alerts have them.
const (
	poolFilling = 85
	poolFull    = 95
)

// votesWanted is how many members of a quorum it takes to lose one and go on.
const votesWanted = 3

// Risks returns what does not work, and what would not survive the next failure; what is down
// comes first. The boxes must have been entered.
func Risks(s *steadfastv1.Site) []*steadfastv1.Risk {
	j := &judge{site: s, hosts: map[string]*steadfastv1.Host{}, clusters: map[string]*steadfastv1.HostCluster{}}
	for _, h := range s.Hosts {
		j.hosts[h.Name] = h
	}
	for _, c := range s.HostClusters {
		j.clusters[c.Name] = c
	}
	j.quorum()
	for _, m := range s.Members {
		j.member(m)
	}
	for _, g := range s.Groups {
		j.group(g)
	}
	for _, h := range s.Hosts {
		j.host(h)
	}
	for _, m := range s.Machines {
		j.machine(m)
	}
	slices.SortStableFunc(j.found, func(a, b *steadfastv1.Risk) int { return strings.Compare(a.Level, b.Level) })
	return j.found
}

type judge struct {
	site     *steadfastv1.Site
	hosts    map[string]*steadfastv1.Host
	clusters map[string]*steadfastv1.HostCluster
	found    []*steadfastv1.Risk
}

func (j *judge) risk(level, subject, remedy, format string, args ...any) {
	j.found = append(j.found, &steadfastv1.Risk{Level: level, Subject: subject, Why: fmt.Sprintf(format, args...), Remedy: remedy})
}

// quorum looks at the votes: whether there is a majority, and one without any one of them.
func (j *judge) quorum() {
	c := j.site.Cluster
	switch {
	case c == nil:
		return
	case c.Problem != "":
		j.risk(Down, "quorum", "\"steadfast cluster show\", and this node's log", "this node cannot take part in its cluster: %s", c.Problem)
		return
	}
	votes, heard, silent := 0, 0, []string(nil)
	for _, m := range c.Members {
		switch {
		case !m.Voter:
		case m.Reachable:
			votes, heard = votes+1, heard+1
		default:
			votes++
			silent = append(silent, m.Name)
		}
	}
	majority := votes/2 + 1
	switch {
	case c.Leader == "":
		j.risk(Down, "quorum", startThem(silent), "this node hears %d of %d votes and knows no leader: what is served goes on, nothing is taken over, nothing can be changed, and what this page says may be old", heard, votes)
	case votes < votesWanted:
		j.risk(Exposed, "quorum", "have a witness join: \"steadfast cluster token --role witness\"", "it has %d of the %d votes that it takes: without one member nothing is taken over", votes, votesWanted)
	case heard-1 < majority:
		j.risk(Exposed, "quorum", startThem(silent), "%s does not answer: without one more member nothing is taken over", strings.Join(silent, ", "))
	default:
		j.votesTogether(votes, majority)
	}
}

func startThem(silent []string) string {
	if len(silent) == 0 {
		return "wait for the election; \"steadfast cluster show\""
	}
	return "start " + strings.Join(silent, " or ") + ", and see to the network between the members: TCP, at the addresses of \"steadfast cluster show\""
}

// votesTogether looks for a box whose death takes the majority along.
func (j *judge) votesTogether(votes, majority int) {
	in := map[string][]string{}
	for _, m := range j.site.Cluster.Members {
		if box := j.boxOf(m.Name); m.Voter && box != "" {
			in[box] = append(in[box], m.Name)
		}
	}
	for _, m := range j.site.Members { // in their order
		names := in[m.Box]
		if m.Box == "" || votes-len(names) >= majority {
			continue
		}
		delete(in, m.Box)
		j.risk(Exposed, "quorum", "move one of them to another box: see \"Replacing the witness\" in docs/OPERATING.md", "%s are in the box %s: without that nothing is taken over", strings.Join(names, " and "), m.Box)
	}
}

// member looks at what a member says of itself.
func (j *judge) member(m *steadfastv1.SiteMember) {
	of := ""
	if m.Name != "" {
		of = " of " + m.Name
	}
	if m.Status == nil {
		if m.Heard {
			j.risk(Exposed, m.Role+" "+m.Name, "look at its log: \"journalctl -u steadfast\" there", "it is heard of, and does not say how it is: %s", m.Silent)
		}
		return // else its groups, machines or votes tell
	}
	switch st := m.Status; {
	case st.State == "waiting":
		j.risk(Down, "node"+strings.TrimPrefix(of, " of"), "bring the drives back; \"steadfast pool list\" there", "its portals are shut: %s", st.Problem)
	case st.State != "serving":
		j.risk(Exposed, "node"+strings.TrimPrefix(of, " of"), "wait until it serves", "it is %s", st.State)
	}
	for _, p := range m.Status.Pools {
		j.pool(p, of)
	}
	if n := len(m.Status.Alone); n > 0 {
		why := "they are in no resource group: this node alone has them"
		remedy := "for volumes that live through its death, make a cluster: \"A pair\" in docs/OPERATING.md"
		if m.Name != "" {
			why, remedy = m.Name+" alone has "+themOrIt(n)+": in no resource group", "a volume with \"--group\", copied by its clients, or none if that is meant to be"
		}
		j.risk(Exposed, "volume "+listed(m.Status.Alone, 3), remedy, "%s", why)
	}
}

func themOrIt(n int) string {
	if n == 1 {
		return "it"
	}
	return "them"
}

func listed(names []string, most int) string {
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// pool looks at a pool; of is " of NODE".
func (j *judge) pool(p *steadfastv1.Pool, of string) {
	subject := "pool " + p.Name + of
	show := "\"steadfast pool show " + p.Name + "\" there"
	if p.State != "online" {
		why := "it is " + p.State
		if p.Problem != "" {
			why += ": " + p.Problem
		}
		j.risk(Down, subject, show+"; [failed] in docs/FAULTS.md", "%s", why)
		return
	}
	for _, d := range p.Drives {
		if d.State != "online" && d.State != "evacuating" {
			j.risk(Down, subject, show+"; \"steadfast drive replace\"", "its drive %s is %s", d.Path, d.State)
		}
	}
	if p.CapacityBytes <= 0 {
		return
	}
	remedy := "\"steadfast drive add\", delete, or trim on the clients; of a pair look at both nodes"
	switch percent := 100 * float64(p.UsedBytes) / float64(p.CapacityBytes); {
	case percent >= 100:
		j.risk(Down, subject, remedy, "it is full, and refuses writes")
	case percent >= poolFull:
		j.risk(Exposed, subject, remedy, "it is %.0f %% full: writes are refused soon", percent)
	case percent >= poolFilling:
		j.risk(Exposed, subject, remedy, "it is %.0f %% full", percent)
	}
}

// group looks at a resource group.
func (j *judge) group(g *steadfastv1.Group) {
	subject, show := "group "+g.Name, "\"steadfast group show "+g.Name+"\""
	if g.State != "serving" && g.State != "moving" {
		why := g.Problem
		if why == "" {
			why = "its state is " + g.State
		}
		level := Down
		if g.State == "unknown" { // who has it serves it on; the quorum's line is the one to read
			level = Exposed
		}
		j.risk(level, subject, show+"; \"What fails, what clients see, what to do\" in docs/OPERATING.md", "%s", why)
		return
	}
	lacks := missing(g.Nodes, g.InSync)
	switch {
	case len(lacks) > 0:
		j.outOfSync(g, lacks)
	case g.Problem != "":
		j.risk(Exposed, subject, show, "%s", g.Problem)
	default:
		if len(g.Nodes) == 2 {
			if a, b := j.boxOf(g.Nodes[0]), j.boxOf(g.Nodes[1]); a != "" && a == b {
				j.risk(Exposed, subject, "move one of them to another box: \"Replacing a node\" in docs/OPERATING.md", "%s and %s are in one box, %s", g.Nodes[0], g.Nodes[1], a)
			}
		}
	}
}

// outOfSync tells of a group that lacks nodes.
func (j *judge) outOfSync(g *steadfastv1.Group, lacks []string) {
	why := strings.Join(g.InSync, ", ") + " alone has all of it: " + strings.Join(lacks, ", ") + " is "
	remedy := "start " + strings.Join(lacks, ", ") + ", or replace it: \"Replacing a node\" in docs/OPERATING.md"
	switch g.GetSync().GetState() {
	case "resyncing":
		why += "resynced"
		if left := Left(g); left != "" {
			why += ", " + left
		}
		remedy = "wait; \"steadfast group show " + g.Name + "\""
	case "failed":
		why += "in sync no more: its store has failed"
		remedy = "\"steadfast pool show\" on both"
	default:
		why += "not in sync"
	}
	j.risk(Exposed, "group "+g.Name, remedy, "%s", why)
}

// Left tells how much of a group's resync is left; empty: there is none, or it is not known.
func Left(g *steadfastv1.Group) string {
	s := g.GetSync()
	if s.GetState() != "resyncing" {
		return ""
	}
	var parts []string
	if s.BytesLeft > 0 {
		parts = append(parts, size.Format(s.BytesLeft)+" left")
	}
	if s.SecondsLeft > 0 {
		parts = append(parts, (time.Duration(s.SecondsLeft) * time.Second).String())
	}
	return strings.Join(parts, ", ")
}

// missing returns those of all that are not in some.
func missing(all, some []string) (list []string) {
	for _, name := range all {
		if !slices.Contains(some, name) {
			list = append(list, name)
		}
	}
	return list
}

func (j *judge) boxOf(member string) string {
	for _, m := range j.site.Members {
		if m.Name == member {
			return m.Box
		}
	}
	return ""
}

// host looks at a host that shall take machines.
func (j *judge) host(h *steadfastv1.Host) {
	switch {
	case h.Maintenance:
		j.risk(Exposed, "host "+h.Name, "when the work is done: \"steadfast host maintenance "+h.Name+" --off\"", "it is in maintenance and takes no machines")
	case h.State == "lost":
		j.risk(Exposed, "host "+h.Name, "start it; one that is gone for good: \"steadfast host remove "+h.Name+"\"", "it counts as lost and takes no machines")
	case h.State != "up":
		why := "it has not come yet"
		if h.State == "left" {
			why = "it has ended, in order"
		}
		j.risk(Exposed, "host "+h.Name, "start it", "%s: it takes no machines", why)
	}
}

// machine looks at a machine that shall run.
func (j *judge) machine(m *steadfastv1.Machine) {
	subject, show := "machine "+m.Name, "\"steadfast vm show "+m.Name+"\""
	switch {
	case m.State == "waiting":
		j.risk(Down, subject, show, "it shall run, and no host runs it%s", after(m.Detail))
		return
	case m.State == "failed":
		j.risk(Down, subject, "\"steadfast vm start "+m.Name+"\"", "it is not started again%s", after(m.Detail))
		return
	case m.State == "panicked":
		j.risk(Down, subject, "\"steadfast vm start "+m.Name+"\"; look at its console's log", "its guest has panicked%s", after(m.Detail))
		return
	case m.State != "running":
		return
	}
	j.away(m)
	if p := m.Protection; p != nil {
		j.protection(m, p)
		return
	}
	c := j.clusters[m.Cluster]
	switch {
	case c == nil:
	case !c.Ha:
		j.risk(Exposed, subject, "\"steadfast cluster set "+c.Name+" --ha\"", "the cluster %s has no HA: when its host %s dies it is not started again", c.Name, m.Host)
	case m.Policy == "leave": // as somebody wants it
	case !j.refuge(m):
		j.risk(Exposed, subject, "bring a host back, add one, or give one more memory: \"steadfast host list\"", "no other host has the %s of memory to start it again when %s dies", size.Format(int64(m.Memory)), m.Host)
	}
}

func after(detail string) string {
	if detail == "" {
		return ""
	}
	return ": " + detail
}

// away looks at the volumes of a machine.
func (j *judge) away(m *steadfastv1.Machine) {
	for _, v := range m.GetStatus().GetVolumes() {
		if v.AwaySince != nil {
			j.risk(Down, "machine "+m.Name, "\"steadfast vm show "+m.Name+"\"; the group's state, and the network from host to storage", "it waits for its volume %s, which %s does not reach", v.Volume, m.Host)
			return
		}
	}
	full := m.GetStatus().GetFull()
	for _, disk := range slices.Sorted(maps.Keys(full)) {
		j.risk(Down, "machine "+m.Name, "make room: [full] in docs/FAULTS.md", "it waits for space for its disk %s: %s", disk, full[disk])
	}
}

// protection looks at a machine with fault tolerance.
func (j *judge) protection(m *steadfastv1.Machine, p *steadfastv1.Protection) {
	subject := "machine " + m.Name
	switch {
	case p.Protected:
	case p.Disabled:
		j.risk(Exposed, subject, "\"steadfast ft enable "+m.Name+"\"", "Not Protected: its fault tolerance is disabled")
	default:
		why := "Not Protected: " + p.Why
		if p.Because != "" && p.Because != "initializing" {
			why += " (" + p.Because + ")"
		}
		remedy := "\"steadfast ft status " + m.Name + "\""
		switch {
		case p.Waits != "":
			why += ": " + p.Waits
		case p.Why == "Starting":
			remedy = "wait; " + remedy
		default:
			why += after(p.Detail)
		}
		j.risk(Exposed, subject, remedy, "%s", why)
	}
}

// refuge tells whether another host could take a machine.
func (j *judge) refuge(m *steadfastv1.Machine) bool {
	return slices.ContainsFunc(j.site.Hosts, func(h *steadfastv1.Host) bool {
		return h.Name != m.Host && h.Cluster == m.Cluster && h.State == "up" && !h.Maintenance && h.MemoryGiven+m.Memory <= h.Memory
	})
}
