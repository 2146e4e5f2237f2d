package node

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/node/control"
	"steadfast/node/ha"
)

// Members of the cluster reach machines' volumes as initiators, without anybody's
// mapping: a host those of the machines of its cluster, which it runs; a storage node all
// of the groups that are datastores, for it writes into machines what people give it. Both are
// told by the inventory and the membership, so who is taken out of either is shut
// out by the same decision.

// memberPrefix begins the initiator names of a cluster's members; id is the
// cluster's, and 16 letters of it are as unlikely to be another's as all.
func memberPrefix(id string) string {
	return "iqn.2026-11.io.steadfast:" + id[:min(len(id), 16)] + ":member:"
}

// reach is what members see of groups' volumes. It is not changed once it was made.
type reach struct {
	// views are what each initiator sees, by target; ascending by LUN.
	views map[string]map[string][]control.Mapping
	// known are the members that an initiator's name stands for.
	known map[string]*quorum.Record
}

// deriveReach returns what members see now. before is what they saw, or nil: what was
// reached stays so while a newer program's document may say it, as a machine goes on
// while this program cannot read of it. A volume whose number is no LUN is left out.
//
// LUNs are the volumes' numbers in their group, which are never given again: a host never
// finds another volume where it left one.
func deriveReach(prefix string, specs []*ha.Spec, v *inventory.View, roll quorum.Roll, before *reach) *reach {
	r := &reach{views: map[string]map[string][]control.Mapping{}, known: map[string]*quorum.Record{}}
	groups := map[string]string{} // that are datastores
	for _, d := range v.Datastores {
		groups[d.Group] = d.Name
	}
	used := usedVolumes(v)
	for _, m := range roll.Members {
		name := prefix + string(m.Name)
		host := v.Hosts[string(m.Name)]
		var sees func(*ha.Spec, ha.Volume) bool
		switch {
		case m.Role == quorum.RoleNode:
			sees = func(s *ha.Spec, _ ha.Volume) bool { return groups[s.Name] != "" }
		case m.Role == quorum.RoleHost && host != nil:
			sees = func(s *ha.Spec, vol ha.Volume) bool { return used[clustersVolume{host.Cluster, s.Name, vol.Name}] }
		case m.Role == quorum.RoleHost && slices.Contains(v.Unread, "host/"+string(m.Name)):
			sees = func(*ha.Spec, ha.Volume) bool { return false } // and what it saw before
		default:
			continue
		}
		r.known[name] = m
		for _, s := range specs {
			r.enter(s, name, sees, before.kept(v, m, s.Target, name))
		}
	}
	return r
}

// clustersVolume is a volume of a group, as a cluster's.
type clustersVolume struct{ cluster, group, volume string }

// usedVolumes returns the volumes that machines have.
func usedVolumes(v *inventory.View) map[clustersVolume]bool {
	used := map[clustersVolume]bool{}
	for _, m := range v.Machines {
		d := v.Datastores[m.Datastore]
		if d == nil {
			continue
		}
		for _, name := range m.Volumes() {
			used[clustersVolume{m.Cluster, d.Group, name}] = true
		}
	}
	return used
}

// enter enters what an initiator sees of a group; stays are identifiers of volumes that it
// sees in any case, while the group has them.
func (r *reach) enter(s *ha.Spec, initiator string, sees func(*ha.Spec, ha.Volume) bool, stays map[string]bool) {
	var list []control.Mapping
	for _, vol := range s.Volumes {
		if vol.Number > lunMax || !stays[vol.ID] && !sees(s, vol) {
			continue
		}
		list = append(list, control.Mapping{
			Target: s.Target, Initiator: initiator, LUN: uint16(vol.Number), Volume: vol.ID, VolumeName: vol.Name, Group: s.Name,
		})
	}
	if len(list) == 0 {
		return
	}
	slices.SortFunc(list, func(a, b control.Mapping) int { return int(a.LUN) - int(b.LUN) })
	if r.views[s.Target] == nil {
		r.views[s.Target] = map[string][]control.Mapping{}
	}
	r.views[s.Target][initiator] = list
}

// kept returns the volumes that a member saw through a target, when that may be so still, as
// far as this program can read.
func (r *reach) kept(v *inventory.View, m *quorum.Record, target, initiator string) map[string]bool {
	if r == nil || !unread(v, string(m.Name)) || r.known[initiator] == nil || identityOf(r.known[initiator]) != identityOf(m) {
		return nil
	}
	stays := map[string]bool{}
	for _, o := range r.views[target][initiator] {
		stays[o.Volume] = true
	}
	return stays
}

// unread tells whether a document cannot be read that may say what a member sees.
func unread(v *inventory.View, member string) bool {
	return slices.ContainsFunc(v.Unread, func(key string) bool {
		return strings.HasPrefix(key, "machine/") || strings.HasPrefix(key, "datastore/") || key == "host/"+member
	})
}

// identityOf is what a member proves itself as: one that left and joined again under its
// name is another.
func identityOf(m *quorum.Record) string {
	return string(m.Name) + "\x00" + strconv.FormatUint(m.ID, 10) + "\x00" + string(m.Key)
}

// view returns what members see through a target.
func (r *reach) view(target string) map[string][]control.Mapping {
	if r == nil {
		return nil
	}
	return r.views[target]
}

// changed returns the targets through which members see something else than before, and the
// initiators that are another member's by now.
func (r *reach) changed(before *reach) (targets []string, replaced []string) {
	if before == nil {
		return slices.Sorted(maps.Keys(r.views)), nil
	}
	for name, m := range r.known {
		if old := before.known[name]; old != nil && identityOf(old) != identityOf(m) {
			replaced = append(replaced, name)
		}
	}
	all := map[string]bool{}
	for _, views := range []map[string]map[string][]control.Mapping{r.views, before.views} {
		for target := range views {
			all[target] = true
		}
	}
	for target := range all {
		a, b := r.views[target], before.views[target]
		same := maps.EqualFunc(a, b, func(x, y []control.Mapping) bool { return slices.Equal(x, y) })
		if !same || slices.ContainsFunc(replaced, func(name string) bool { return a[name] != nil }) {
			targets = append(targets, target)
		}
	}
	slices.Sort(targets)
	slices.Sort(replaced)
	return targets, replaced
}
