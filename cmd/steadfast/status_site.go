package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/node/overview"
	"steadfast/node/size"
)

const (
	// pageWidth is how wide the page is, in columns.
	pageWidth = 80
	// pageRows is how many lines of a table are shown: those in trouble first.
	pageRows = 12
	// lagShown is what a lockstep interval is rounded to.
	lagShown = 100 * time.Microsecond
)

// siteText is a site on a page.
func siteText(s *steadfastv1.Site) string {
	var b strings.Builder
	self := s.Members[max(slices.IndexFunc(s.Members, func(m *steadfastv1.SiteMember) bool { return m.Self }), 0)]
	if s.Cluster == nil {
		section(&b, false, func(w io.Writer) { nodeRows(w, self.Status) })
	} else {
		section(&b, false, func(w io.Writer) { siteHeadRows(w, s, self) })
		section(&b, true, func(w io.Writer) { siteMemberRows(w, s) })
		if len(s.Groups) > 0 {
			section(&b, true, func(w io.Writer) { siteGroupRows(w, s.Groups) })
		}
		if len(s.Machines) > 0 {
			section(&b, true, func(w io.Writer) { siteMachineRows(w, s.Machines) })
		}
		if slices.ContainsFunc(s.Members, func(m *steadfastv1.SiteMember) bool { return len(m.GetStatus().GetPools()) > 0 }) {
			section(&b, true, func(w io.Writer) { sitePoolRows(w, s) })
		}
	}
	b.WriteString(risksText(s.Risks))
	return b.String()
}

// section writes lines in columns, those of a table cut at the page's edge, and an empty one.
func section(b *strings.Builder, cut bool, lines func(io.Writer)) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	lines(w)
	_ = w.Flush() // to memory
	for line := range strings.Lines(text.String()) {
		line = strings.TrimRight(line, " \n")
		if r := []rune(line); cut && len(r) > pageWidth {
			line = string(r[:pageWidth-1]) + "…"
		}
		b.WriteString(line + "\n")
	}
	b.WriteString("\n")
}

// siteHeadRows are about the cluster as a whole.
func siteHeadRows(w io.Writer, s *steadfastv1.Site, self *steadfastv1.SiteMember) {
	id := s.Cluster.Id
	row(w, "cluster", fmt.Sprintf("%s, as %s sees it at %s", id[:min(len(id), 16)], cmp.Or(self.Name, "this node"), when(s.Time)))
	row(w, "state", self.GetStatus().GetState())
	if p := self.GetStatus().GetProblem(); p != "" {
		row(w, "problem", p)
	}
	row(w, "version", versions(s.Members))
	row(w, "quorum", quorumText(s.Cluster))
}

// quorumText tells of votes and leader.
func quorumText(c *steadfastv1.Cluster) string {
	if c.Problem != "" {
		return "none: " + c.Problem
	}
	var heard, silent []string
	for _, m := range c.Members {
		switch {
		case !m.Voter:
		case m.Reachable:
			heard = append(heard, m.Name)
		default:
			silent = append(silent, m.Name)
		}
	}
	text := fmt.Sprintf("%d of %d votes heard (%s)", len(heard), len(heard)+len(silent), strings.Join(heard, ", "))
	if c.Leader == "" {
		return "NONE: " + text + ", no leader"
	}
	return text + ", leader " + c.Leader
}

// versions tells the members' version, or which have which.
func versions(members []*steadfastv1.SiteMember) string {
	by, order := map[string][]string{}, []string(nil)
	for _, m := range members {
		v := m.GetStatus().GetVersion()
		if v == "" {
			continue
		}
		if by[v] == nil {
			order = append(order, v)
		}
		by[v] = append(by[v], m.Name)
	}
	if len(order) == 1 {
		return order[0]
	}
	for i, v := range order {
		order[i] = v + " on " + strings.Join(by[v], ", ")
	}
	return strings.Join(order, "; ")
}

// siteMemberRows are the boxes with what is in them.
func siteMemberRows(w io.Writer, s *steadfastv1.Site) {
	row(w, "BOX", "MEMBER", "ROLE", "STATE", "RUNS")
	members := slices.Clone(s.Members)
	roles := []string{"node", "host", "witness"}
	slices.SortStableFunc(members, func(a, b *steadfastv1.SiteMember) int {
		// Who is in no known box comes last.
		return cmp.Or(cmp.Compare(cmp.Or(a.Box, "\uffff"), cmp.Or(b.Box, "\uffff")), cmp.Compare(slices.Index(roles, a.Role), slices.Index(roles, b.Role)), cmp.Compare(a.Name, b.Name))
	})
	short(w, members, func(m *steadfastv1.SiteMember) bool { return m.Status != nil }, "steadfast cluster show", func(m *steadfastv1.SiteMember) {
		row(w, clip(m.Box, 16), m.Name, m.Role, memberState(s, m), runs(s, m))
	})
}

// memberState is how a member is, in a few words.
func memberState(s *steadfastv1.Site, m *steadfastv1.SiteMember) string {
	state := m.GetStatus().GetState()
	switch {
	case !m.Heard:
		state = "not heard of"
	case m.Status == nil:
		state = "does not answer"
	}
	for _, h := range s.Hosts {
		switch {
		case h.Name != m.Name:
		case h.Maintenance:
			state += ", maintenance"
		case h.State != "up":
			state += ", " + h.State
		}
	}
	for _, q := range s.GetCluster().GetMembers() {
		if q.Name == m.Name && q.Drained {
			state += ", drained"
		}
	}
	return state
}

// runs tells the groups that a member owns, or the machines on it.
func runs(s *steadfastv1.Site, m *steadfastv1.SiteMember) string {
	var names []string
	for _, g := range s.Groups {
		if g.Owner == m.Name {
			names = append(names, g.Name)
		}
	}
	for _, h := range s.Hosts {
		if h.Name != m.Name {
			continue
		}
		names = append(names, h.Machines...)
		for _, vm := range h.Secondaries {
			names = append(names, vm+" (secondary)")
		}
	}
	if len(names) > 4 {
		names = append(names[:3], fmt.Sprintf("%d more", len(names)-3))
	}
	return strings.Join(names, ", ")
}

// siteGroupRows are the resource groups.
func siteGroupRows(w io.Writer, groups []*steadfastv1.Group) {
	row(w, "GROUP", "STATE", "OWNER", "EPOCH", "IN SYNC", "ALIAS")
	fine := func(g *steadfastv1.Group) bool { return g.State == "serving" && len(g.InSync) >= len(g.Nodes) }
	short(w, groups, fine, "steadfast group list", func(g *steadfastv1.Group) {
		inSync := strings.Join(g.InSync, " ")
		if s := g.GetSync(); len(g.InSync) < len(g.Nodes) && s != nil {
			inSync += ", other " + s.State
			if left := overview.Left(g); left != "" {
				inSync += " (" + left + ")"
			}
		}
		var aliases []string
		for _, a := range g.Aliases {
			address, _, _ := strings.Cut(a.Address, "/")
			aliases = append(aliases, address)
		}
		if len(aliases) > 2 {
			aliases = append(aliases[:1], fmt.Sprintf("%d more", len(aliases)-1))
		}
		row(w, g.Name, g.State, g.Owner, g.Epoch, inSync, strings.Join(aliases, " "))
	})
}

// siteMachineRows are the virtual machines.
func siteMachineRows(w io.Writer, machines []*steadfastv1.Machine) {
	row(w, "VM", "STATE", "HOST", "FAULT TOLERANCE", "SECONDARY", "INTERVAL")
	fine := func(m *steadfastv1.Machine) bool {
		return (m.State == "running" || m.State == "stopped") && (m.Protection == nil || m.Protection.Protected || m.State == "stopped")
	}
	short(w, machines, fine, "steadfast vm list", func(m *steadfastv1.Machine) {
		ft, second := "off", ""
		if p := m.Protection; p != nil {
			if ft, second = "Protected", p.SecondaryHost; !p.Protected {
				ft = p.Why
			}
		}
		lag := ""
		if p := m.GetStatus().GetPair(); p != nil && p.Protected {
			lag = time.Duration(max(p.LagNanoseconds, 0)).Round(lagShown).String()
		}
		row(w, clip(m.Name, 24), m.State, m.Host, ft, second, lag)
	})
}

// sitePoolRows are the pools of all nodes that answer.
func sitePoolRows(w io.Writer, s *steadfastv1.Site) {
	row(w, "POOL", "NODE", "STATE", "USED", "OF", "USE%", "DRIVES", "VOLUMES")
	type poolOf struct {
		*steadfastv1.Pool
		node string
	}
	var pools []poolOf
	for _, m := range s.Members {
		for _, p := range m.GetStatus().GetPools() {
			pools = append(pools, poolOf{p, m.Name})
		}
	}
	fine := func(p poolOf) bool { return p.State == "online" && p.UsedBytes*100 < p.CapacityBytes*85 }
	short(w, pools, fine, "steadfast pool list", func(p poolOf) {
		row(w, p.Name, p.node, p.State, size.Format(p.UsedBytes), size.Format(p.CapacityBytes), share(p.UsedBytes, p.CapacityBytes), len(p.Drives), p.Volumes)
	})
}

// short gives line each of a list, or as many as the page has room for, those that are not fine
// first, and says what shows the others.
func short[T any](w io.Writer, list []T, fine func(T) bool, command string, line func(T)) {
	if len(list) > pageRows {
		trouble := slices.Clone(list)
		slices.SortStableFunc(trouble, func(a, b T) int {
			switch {
			case fine(a) == fine(b):
				return 0
			case fine(b):
				return -1
			}
			return 1
		})
		list = trouble
	}
	for _, one := range list[:min(len(list), pageRows)] {
		line(one)
	}
	if n := len(list) - pageRows; n > 0 {
		left := list[pageRows:]
		what := "all fine"
		if !fine(left[0]) {
			what = "not all fine"
		}
		_, _ = fmt.Fprintf(w, "and %d more, %s: %s\n", n, what, command) // to memory
	}
}

// clip cuts a text that is too long for its column.
func clip(text string, most int) string {
	if r := []rune(text); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return text
}

// risksText tells what does not work and what is not redundant.
func risksText(risks []*steadfastv1.Risk) string {
	if len(risks) == 0 {
		return "all is redundant\n"
	}
	var b strings.Builder
	heads := map[string]string{overview.Down: "does not work:", overview.Exposed: "not redundant:"}
	for i, r := range risks {
		if i == 0 || risks[i-1].Level != r.Level {
			b.WriteString(cmp.Or(heads[r.Level], r.Level) + "\n")
		}
		b.WriteString(wrap("  ", "    ", r.Subject+": "+r.Why))
		if r.Remedy != "" {
			b.WriteString(wrap("    -> ", "       ", r.Remedy))
		}
	}
	return b.String()
}

// wrap breaks a text into lines of the page's width.
func wrap(first, next, text string) string {
	var b strings.Builder
	line := first
	for i, word := range strings.Fields(text) {
		if i > 0 && len([]rune(line))+1+len([]rune(word)) > pageWidth {
			b.WriteString(line + "\n")
			line = next + word
			continue
		}
		if i > 0 {
			line += " "
		}
		line += word
	}
	return b.String() + line + "\n"
}
