package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"steadfast/cluster/inventory"
)

// siteFamilies are the metrics of hosts and machines, which storage nodes have, as
// families has them.
func siteFamilies() []family {
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	return []family{
		{"hosts", gauge, []string{"cluster", "state"}, "Hosts of a cluster of hosts: up, lost, left (ended in order), unknown (not come yet), maintenance."},
		{"host_lost", gauge, []string{"cluster", "host"}, "1 while the host's newest life was declared lost, and it is not in maintenance."},
		{"machines", gauge, []string{"cluster", "state"}, "Machines of a cluster of hosts: running, stopping, waiting, stopped, panicked, failed."},
		{"machine_protected", gauge, []string{"cluster", "machine"}, "1 while the machine runs on two hosts, so that the death of one is not noticed. Only of machines whose fault tolerance is turned on."},
		{"machine_unprotected", gauge, []string{"cluster", "machine", "why"}, "1 with why the machine is not protected: Starting, Need Secondary VM, Disabled, VM not Running. Only of machines whose fault tolerance is turned on."},
		{"placement_decisions_total", counter, []string{"decision"}, "Decisions of this node that took effect: lost (a host), place, leave, end (a machine), pair, part (its secondary)."},
	}
}

// States of hosts and machines, as metrics have them.
var (
	hostStates    = []string{"up", "lost", "left", "unknown", "maintenance"}
	machineStates = []string{"running", "stopping", "waiting", "stopped", "panicked", "failed"}
)

// hostState is what is decided of a host, in a word.
func hostState(v *inventory.View, h *inventory.Host) string {
	life := v.Lives[h.Name]
	switch {
	case h.Maintenance:
		return "maintenance"
	case life == nil:
		return "unknown"
	}
	return string(life.State)
}

// machineState is what is decided of a machine, in a word. running: a host runs it,
// or is about to; waiting: it shall run, and no host has it; failed: it ended with
// its host, or because that could not run it, and is not started again.
func machineState(v *inventory.View, m *inventory.Machine) string {
	p := v.Placements[m.Name]
	switch {
	case p.Active() && m.Desired != inventory.Running:
		return "stopping"
	case p.Active() && v.Standing(p.Host, p.Boot):
		return "running"
	case p.Active(), m.Desired == inventory.Running:
		return "waiting"
	case p == nil || p.Run != m.Run:
		return "stopped"
	}
	switch p.Ended {
	case inventory.EndedHostLost, inventory.EndedFailed:
		return "failed"
	case inventory.EndedPanic:
		return "panicked"
	case inventory.EndedShutdown, inventory.EndedStopped, inventory.EndedMoved:
	}
	return "stopped"
}

// collectSite puts what is decided of hosts and machines. Each state is there, also
// with none in it: a rule may ask for those that are not.
func collectSite(put putMetric, v *inventory.View, decisions map[string]uint64) {
	hosts, machines := map[[2]string]int{}, map[[2]string]int{}
	for name, h := range v.Hosts {
		state := hostState(v, h)
		hosts[[2]string{h.Cluster, state}]++
		put("host_lost", flag(state == string(inventory.Lost)), h.Cluster, name)
	}
	for _, m := range v.Machines {
		machines[[2]string{m.Cluster, machineState(v, m)}]++
		if is := inventory.ProtectionOf(m, v.Placements[m.Name]); is.On {
			put("machine_protected", flag(is.Protected), m.Cluster, m.Name)
			if !is.Protected {
				put("machine_unprotected", 1, m.Cluster, m.Name, is.Why)
			}
		}
	}
	for cluster := range v.Clusters {
		for _, state := range hostStates {
			put("hosts", float64(hosts[[2]string{cluster, state}]), cluster, state)
		}
		for _, state := range machineStates {
			put("machines", float64(machines[[2]string{cluster, state}]), cluster, state)
		}
	}
	if len(v.Clusters) == 0 {
		return
	}
	for decision, n := range decisions {
		put("placement_decisions_total", float64(n), decision)
	}
}
