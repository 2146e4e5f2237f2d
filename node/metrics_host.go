package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"steadfast/compute/host"
)

// hostFamilies are the metrics that a host has of the machines on it, as families has them.
func hostFamilies() []family {
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	machine, volume := []string{"machine"}, []string{"machine", "volume"}
	return []family{
		{"host_up", gauge, nil, "1 while this host takes machines: a life of it is entered in its cluster, and was not declared lost."},
		{"host_machines", gauge, []string{"phase"}, "Machines on this host: starting, running, stopping, ended (and the cluster does not know it yet)."},
		{"machine_cpu_seconds_total", counter, machine, "Processor time of the machine's process, which begins anew with each life of its guest."},
		{"machine_guest_restarts_total", counter, machine, "Restarts that the guest wanted, since the machine was placed here."},
		{"machine_full", gauge, machine, "1 while the machine waits because the storage has no space for what it writes."},
		{"machine_volume_paths", gauge, volume, "Ways to the volume that are up."},
		{"machine_volume_waiting_seconds", gauge, volume, "For how long requests have waited without a way to the volume; 0: they do not."},
		{"machine_volume_paused_seconds_total", counter, volume, "Sum of such waits since the volume was opened."},
	}
}

// hostPhases are those of a machine on its host.
var hostPhases = []host.Phase{host.Starting, host.Running, host.Stopping, host.Ended}

// collectHosted puts what a host knows of its machines. None of their processes is asked: one
// that does not answer holds up no scrape.
func collectHosted(put putMetric, s host.State, machines []host.Machine) {
	put("host_up", flag(s.Boot != 0))
	phases := map[host.Phase]int{}
	for _, m := range machines {
		phases[m.Phase]++
		put("machine_cpu_seconds_total", m.CPU.Seconds(), m.Name)
		put("machine_guest_restarts_total", float64(m.Restarts), m.Name)
		put("machine_full", flag(len(m.Full) > 0), m.Name)
		for _, d := range m.Disks {
			up := 0
			for _, p := range d.State.Paths {
				if p.Up && !p.Barred {
					up++
				}
			}
			put("machine_volume_paths", float64(up), m.Name, d.Volume)
			put("machine_volume_waiting_seconds", d.State.Waiting.Seconds(), m.Name, d.Volume)
			put("machine_volume_paused_seconds_total", d.State.Paused.Seconds(), m.Name, d.Volume)
		}
	}
	for _, phase := range hostPhases {
		put("host_machines", float64(phases[phase]), string(phase))
	}
}
