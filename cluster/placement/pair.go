package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"steadfast/cluster/inventory"
)

// holdOff is how long a host is not tried again in a life in which it was of a pair that
// ended, unless a person had ended that; and how long none is when triesMax pairs in a row have
// ended before they were ready: what fails then may be the primary's side.
const holdOff = 10 * time.Second

const triesMax = 2

// breath is how long a machine that has lost the other side is left alone: what its clients wait
// for comes before the next secondary, which takes a share of its processor, its drive and its
// network.
const breath = 300 * time.Millisecond

// toldMax is of how many hosts is told why they cannot take a secondary.
const toldMax = 3

// lack is why a host cannot take a machine's secondary.
type lack uint8

const (
	lacksNothing lack = iota
	lacksLife         // it is lost, or has not come
	lacksLeave        // it is in maintenance
	lacksBuild
	lacksBox
	lacksNetwork
	lacksMemory
	lacksRest // a pair ended just now
)

// stands tells whether the host of a secondary is there, in the life that it was chosen in.
func (d *decider) stands(s *inventory.Second) bool {
	return s != nil && !d.lost[s.Host] && d.v.Standing(s.Host, s.Boot)
}

// takesOver tells whether it is for a machine's secondary to say what becomes of it: its primary is
// gone, or failed, or has seen that the secondary has the lock. A primary that ended because its
// host's process does is none that a person has stopped.
func (d *decider) takesOver(m *inventory.Machine, p *inventory.Placement, said Machine, ok bool) bool {
	switch {
	case !ok:
		return d.lost[p.Host] || !d.same(p)
	case said.Outcome == Stopped:
		return m.Desired == inventory.Running && p.Second.Protected && !p.Leave
	case said.Outcome == Superseded:
		return said.Found <= p.Generation
	}
	return said.Outcome == Failed
}

// pairs decides about the secondaries of machines that are protected, or are to be.
func (d *decider) pairs() {
	var list []*inventory.Machine
	for name, m := range d.v.Machines {
		p := d.v.Placements[name]
		if m.FT == inventory.FTOn && m.Desired == inventory.Running && p.Active() && p.Run == m.Run && !d.done[name] && d.v.Hosts[p.Host] != nil {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b *inventory.Machine) int {
		return cmp.Or(cmp.Compare(b.Memory, a.Memory), cmp.Compare(a.Name, b.Name))
	})
	for _, m := range list {
		d.pair(m, d.v.Placements[m.Name])
	}
}

// pair decides about the secondary of a machine that runs.
func (d *decider) pair(m *inventory.Machine, p *inventory.Placement) {
	s, leaves := p.Second, d.v.Hosts[p.Host].Maintenance
	switch {
	case p.Leave:
		d.done[m.Name] = d.stands(s) && s.Protected // which goes on
		return
	case s != nil && !d.isLeft(s.Host):
		if leaves {
			d.leaveBySecond(m, p)
		}
		return
	case leaves && d.parted(p) && time.Duration(d.now-p.Parted.Since) < holdOff:
		return // it failed just now: the machine leaves as one without a secondary does
	case !leaves && s == nil && d.breathes(p):
		return
	}
	host, why := d.second(m, p)
	switch {
	case host != "":
		d.free[host] -= int64(m.Memory)
		d.decide(m.Name, Pair{m.Name, p.Generation, host, d.v.Lives[host].Boot})
	case s != nil:
		d.decide(m.Name, Part{m.Name, p.Generation, s.Pair, inventory.PartUser, why})
	case !leaves:
		d.decide(m.Name, Wait{m.Name, "for a secondary: " + why})
	}
}

// leaveBySecond has a machine leave a host in maintenance without its guest's noticing, when its
// secondary can go on. One whose host is lost the primary gives up by itself.
func (d *decider) leaveBySecond(m *inventory.Machine, p *inventory.Placement) {
	d.done[m.Name] = true
	switch {
	case !d.stands(p.Second):
	case p.Second.Protected:
		d.decide(m.Name, Leave{m.Name, p.Generation})
	default:
		d.decide(m.Name, Wait{m.Name, fmt.Sprintf("it stays on the host %s, which is in maintenance, until its secondary on %s is ready", p.Host, p.Second.Host)})
	}
}

// isLeft tells whether what is on a host is to leave it.
func (d *decider) isLeft(host string) bool {
	h := d.v.Hosts[host]
	return h == nil || h.Maintenance
}

// parted tells whether a placement's last pair ended, and not by a person.
func (d *decider) parted(p *inventory.Placement) bool {
	return p.Parted != nil && p.Parted.Why != inventory.PartUser
}

// breathes tells whether a placement's last pair has ended just now. A time to come is another
// node's clock, which says nothing.
func (d *decider) breathes(p *inventory.Placement) bool {
	if p.Parted == nil {
		return false
	}
	age := time.Duration(d.now - p.Parted.Since)
	return age >= 0 && age < breath
}

// second finds a host for a machine's secondary: the one with the most memory left, else the
// first by name; the one whose pair ended last is the last to be taken. Empty: none, and why.
func (d *decider) second(m *inventory.Machine, p *inventory.Placement) (best, why string) {
	var lacking []string
	more := 0
	rank := func(name string) [2]int64 {
		if d.parted(p) && d.wasOf(p, name) {
			return [2]int64{0, 0}
		}
		return [2]int64{1, d.free[name]}
	}
	for _, name := range d.hosts {
		if name == p.Host || d.v.Hosts[name].Cluster != m.Cluster {
			continue
		}
		if l := d.lacks(m, p.Host, name, p); l != lacksNothing {
			if len(lacking) == toldMax {
				more++
			} else if text := d.lackText(l, m, p.Host, name); !slices.Contains(lacking, text) {
				lacking = append(lacking, text) // else it is the primary's host that lacks something
			}
			continue
		}
		if r, b := rank(name), rank(best); best == "" || r[0] > b[0] || r[0] == b[0] && r[1] > b[1] {
			best = name
		}
	}
	switch {
	case best != "":
		return best, ""
	case len(lacking) == 0:
		return "", fmt.Sprintf("the cluster %s has no other host", m.Cluster)
	case more > 0:
		lacking = append(lacking, fmt.Sprintf("and %d more", more))
	}
	return "", strings.Join(lacking, "; ")
}

// wasOf tells whether a host was of a placement's last pair in its present life.
func (d *decider) wasOf(p *inventory.Placement, host string) bool {
	l := d.v.Lives[host]
	return p.Parted.Host == host && l != nil && p.Parted.Boot == l.Boot
}

// lacks tells why a machine that runs on a host cannot have its secondary on another one of its
// cluster now; p is its placement, or nil for one that does not run.
func (d *decider) lacks(m *inventory.Machine, on, host string, p *inventory.Placement) lack {
	life, own := d.v.Lives[host], d.v.Lives[on]
	switch {
	case life == nil || own == nil || d.lost[host]:
		return lacksLife
	case d.v.Hosts[host].Maintenance:
		return lacksLeave
	case life.Build != own.Build || life.Program != own.Program:
		return lacksBuild
	case life.Box == "" || own.Box == "" || life.Box == own.Box:
		return lacksBox
	case privateNet(m, own) != "" || privateNet(m, life) != "":
		return lacksNetwork
	case d.free[host] < int64(m.Memory):
		return lacksMemory
	case p != nil && d.parted(p) && (d.wasOf(p, host) || p.Parted.Tries >= triesMax):
		// A time to come is another node's clock, which says nothing.
		if age := time.Duration(d.now - p.Parted.Since); age >= 0 && age < holdOff {
			return lacksRest
		}
	}
	return lacksNothing
}

// privateNet is a network of a machine that lives in a host's process; empty: none does.
func privateNet(m *inventory.Machine, life *inventory.HostLife) string {
	for _, n := range m.Nets {
		if slices.Contains(life.Private, n.Network) {
			return n.Network
		}
	}
	return ""
}

// lackText says for people why a host cannot take a secondary.
func (d *decider) lackText(l lack, m *inventory.Machine, on, host string) string {
	life, own := d.v.Lives[host], d.v.Lives[on] // known, but for the first two
	switch l {
	case lacksLife:
		return fmt.Sprintf("the host %s is not up", host)
	case lacksLeave:
		return fmt.Sprintf("the host %s is in maintenance", host)
	case lacksBuild:
		return fmt.Sprintf("the host %s runs %s, and %s runs %s", host, buildOf(life), on, buildOf(own))
	case lacksBox:
		for _, h := range []*inventory.HostLife{own, life} {
			if h.Box == "" {
				return fmt.Sprintf("the host %s does not say what box it is in", h.Host)
			}
		}
		return fmt.Sprintf("the hosts %s and %s are in one box, %s", on, host, own.Box)
	case lacksNetwork:
		for _, h := range []*inventory.HostLife{own, life} {
			if n := privateNet(m, h); n != "" {
				return fmt.Sprintf("the network %s lives in the process of the host %s, and ends with it", n, h.Host)
			}
		}
	case lacksMemory:
		return fmt.Sprintf("the host %s has %d MiB of memory left, and it needs %d MiB", host, max(d.free[host], 0)>>20, m.Memory>>20)
	case lacksRest:
		return fmt.Sprintf("a pair ended just now, and the host %s is tried %v later", host, holdOff)
	case lacksNothing:
	}
	return ""
}

// buildOf names a host's program.
func buildOf(l *inventory.HostLife) string {
	return cmp.Or(strings.TrimSpace(l.Program+" "+l.Build), "a program that says nothing of itself")
}
