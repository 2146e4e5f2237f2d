package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"steadfast/cluster/quorum"
	"steadfast/node/ha"
)

// clusterFamilies are the metrics of nodes and witnesses that are in a cluster,
// as families has them.
func clusterFamilies() []family {
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	member, grp := []string{"member", "role"}, []string{"group"}
	return []family{
		{"quorum_leader_known", gauge, nil, "1 while this member knows a leader: the cluster can decide."},
		{"quorum_leads", gauge, nil, "1 while this member leads."},
		{"quorum_members", gauge, nil, "Members of the cluster."},
		{"quorum_voters", gauge, nil, "Members that vote."},
		{"quorum_members_reachable", gauge, nil, "Members that were heard of in the last seconds, this one included."},
		{"quorum_member_reachable", gauge, member, "1 while the member was heard of in the last seconds."},
		{"quorum_member_drained", gauge, member, "1 while the member is drained and takes no groups."},
		{"quorum_member_life", gauge, member, "The member's present life: it grows with each of its starts."},
		{"quorum_index", gauge, nil, "Index of the newest decision that is known here."},
		{"quorum_recovered", gauge, nil, "How often the cluster went on without its quorum."},
		{"alias_hindered", gauge, nil, "1 while alias addresses cannot be held on this node at all."},
		{"group_owner", gauge, grp, "1 while this node is the group's owner, as the quorum decided."},
		{"group_serving", gauge, grp, "1 while clients can use the group on this node."},
		{"group_hindered", gauge, grp, "1 while something keeps the group from what it is to be on this node."},
		{"group_epoch", gauge, grp, "Number of the group's owner: it grows with each change."},
		{"group_in_sync_members", gauge, grp, "Nodes that have every acknowledged write."},
		{"group_redundant", gauge, grp, "1 while all of the group's nodes have every acknowledged write."},
		{"group_revived", gauge, grp, "How often the group went on after every node had died."},
		{"group_promoted", gauge, grp, "How often an administrator had it go on without the newest copy."},
		{"group_mirror_linked", gauge, grp, "1 while the mirror link to the other node is up."},
		{"group_broken", gauge, grp, "1 when this node's store has failed under the group."},
		{"group_out_of_sync_bytes", gauge, grp, "What the other node lacks, as this one knows; 0 when it is not the owner."},
		{"group_receiving", gauge, grp, "1 while this node is being resynced."},
		{"group_resync_phase", gauge, grp, "Of the owner: 0 no stream, 1 what differs is asked, 2 it is copied, 3 it is flushed, 4 in sync."},
		{"group_resync_left_bytes", gauge, grp, "What the resync from here has still to copy."},
		{"group_resync_stuck_bytes", gauge, grp, "What of it waits because it cannot be read on this node."},
		{"group_resync_bytes_per_second", gauge, grp, "How fast the resync copies, over the last seconds."},
		{"group_resync_left_seconds", gauge, grp, "How long the rest takes at that rate; 0 when that is not known."},
		{"group_resync_slowdown_ratio", gauge, grp, "What clients' operations take, over what they take without the resync; 0 when that is not known."},
		{"group_resync_copied_bytes_total", counter, grp, "Bytes copied by resyncs from here since the node started."},
		{"group_healed_bytes_total", counter, grp, "Damaged bytes of this node that were replaced by the other node's."},
		{"group_unreadable_bytes_total", counter, grp, "Damaged bytes of this node that were asked for and had by nobody."},
		{"group_copies_differ_total", counter, grp, "Differences that verifying on this node has found, in MiB."},
		{"group_snapshots_unreadable_total", counter, grp, "Snapshots that resyncs from here ended without, for they cannot be read whole on this node."},
		{"group_takeovers_total", counter, []string{"group", "reason"}, "Times that this node came to serve the group, by why."},
		{"group_last_takeover_seconds", gauge, grp, "How long the newest takeover took here, from its first sign to serving; 0: there was none."},
		{"group_aliases", gauge, grp, "Alias addresses that the group has."},
		{"group_aliases_held", gauge, grp, "Alias addresses of the group that live on this node."},
		{"group_sessions", gauge, grp, "iSCSI sessions by the group's alias addresses on this node."},
		{"group_operations", gauge, grp, "Operations of clients that the mirror has under way here."},
	}
}

// collectCluster puts what there is of the cluster and its groups.
func (n *Node) collectCluster(put putMetric) {
	n.mu.RLock()
	c := n.cluster
	in, problem := c != nil, n.clusterProblem != ""
	n.mu.RUnlock()
	put("cluster_member", flag(in))
	put("cluster_hindered", flag(problem))
	if !in {
		return
	}
	state := c.member.State()
	collectQuorum(put, c, state)
	if c.placer != nil {
		collectSite(put, c.placer.look(state.Inventory), c.placer.decisions())
	}
	if c.hosting != nil {
		collectHosted(put, c.hosting.State(), c.hosting.Known())
	}
	n.mu.RLock()
	groups := c.groups
	n.mu.RUnlock()
	// It was told once, when the node took its part, and stays so.
	put("alias_hindered", flag(groups != nil && c.holder == nil && n.events.count("alias-hindered", "") > 0))
	sessions := map[uint16]int{} // by portal group
	for _, s := range n.targets.Sessions() {
		sessions[s.Group]++
	}
	// A record that cannot be read is told by the groups' own commands.
	specs, _ := ha.Specs(state.Inventory.Entries)
	for _, spec := range specs {
		collectRecord(put, c.member.Self(), state, spec)
		if groups == nil {
			continue
		}
		g, err := groups.Group(spec.Name)
		if err != nil {
			continue // this node has no part in it
		}
		collectGroup(put, spec.Name, g.Stats())
		put("group_sessions", float64(sessions[spec.Tag()]), spec.Name)
		put("group_copies_differ_total", float64(n.events.count("copies-differ", spec.Name)), spec.Name)
		put("group_snapshots_unreadable_total", float64(n.events.count("snapshot-unreadable", spec.Name)), spec.Name)
	}
}

// heardLately is how long a member counts as reachable after its last word: it
// says one each second.
const heardLately = 3 * time.Second

// hears tells whether a member was heard of lately.
func (c *cluster) hears(name quorum.Member) bool {
	word, ok := c.member.Reachable()[name]
	return name == c.member.Self().Member || ok && word.Age < heardLately
}

func collectQuorum(put putMetric, c *cluster, state *quorum.State) {
	me, leader := c.member.Self().Member, c.member.Leader()
	put("quorum_leader_known", flag(leader != ""))
	put("quorum_leads", flag(leader == me))
	put("quorum_index", float64(state.Index))
	put("quorum_recovered", float64(state.Roll.Recovered))
	voters, reachable := 0, 0
	for _, r := range state.Roll.Sorted() {
		there := c.hears(r.Name)
		if there {
			reachable++
		}
		if r.Voter {
			voters++
		}
		name, role := string(r.Name), string(r.Role)
		put("quorum_member_reachable", flag(there), name, role)
		put("quorum_member_drained", flag(ha.Drained(state.Inventory.Entries, r.Name)), name, role)
		put("quorum_member_life", float64(state.Boots[r.Name]), name, role)
	}
	put("quorum_members", float64(len(state.Roll.Members)))
	put("quorum_voters", float64(voters))
	put("quorum_members_reachable", float64(reachable))
}

// collectRecord puts what the quorum has decided of a group.
func collectRecord(put putMetric, me quorum.Incarnation, state *quorum.State, spec *ha.Spec) {
	record := state.Group[spec.Name]
	if record == nil {
		return // nobody has taken it up yet
	}
	inSync := 0
	for _, i := range record.Set {
		if !state.Dead(i) {
			inSync++
		}
	}
	for name, v := range map[string]float64{
		"group_owner": flag(record.Owner == me), "group_epoch": float64(record.Epoch), "group_in_sync_members": float64(inSync),
		"group_redundant": flag(inSync >= len(spec.Nodes)), "group_revived": float64(record.Revived), "group_promoted": float64(record.Promoted),
	} {
		put(name, v, spec.Name)
	}
}

// collectGroup puts what a group is at on this node.
func collectGroup(put putMetric, name string, st ha.Stats) {
	m := st.Mirror
	for metric, v := range map[string]float64{
		"group_serving": flag(st.Serving), "group_hindered": flag(st.Hindered), "group_mirror_linked": flag(m.Peer != nil), "group_broken": flag(m.Broken),
		"group_out_of_sync_bytes": float64(m.OutOfSyncBytes), "group_receiving": flag(m.Receiving),
		"group_resync_phase": float64(m.Phase), "group_resync_left_bytes": float64(m.LeftBytes), "group_resync_stuck_bytes": float64(m.StuckBytes),
		"group_resync_bytes_per_second": float64(m.Rate), "group_resync_left_seconds": m.Left.Seconds(), "group_resync_slowdown_ratio": float64(m.Slowdown) / 100,
		"group_resync_copied_bytes_total": float64(m.CopiedBytes), "group_healed_bytes_total": float64(m.HealedBytes), "group_unreadable_bytes_total": float64(m.UnreadBytes),
		"group_last_takeover_seconds": st.LastTakeover.Seconds(), "group_aliases": float64(st.Aliases), "group_aliases_held": float64(st.Held),
		"group_operations": float64(m.Operations),
	} {
		put(metric, v, name)
	}
	for reason, count := range st.Takeovers {
		put("group_takeovers_total", float64(count), name, string(reason))
	}
}
