package placement

import (
	"fmt"
	"testing"
	"time"

	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
)

// full is an inventory with as many hosts and machines as there may be; those with fault
// tolerance have a secondary, or look for one that no host can take.
func full(paired bool) (*inventory.View, []Heard) {
	v := &inventory.View{
		Clusters: map[string]*inventory.Cluster{"c": {Name: "c", HA: true}},
		Hosts:    map[string]*inventory.Host{}, Lives: map[string]*inventory.HostLife{}, Machines: map[string]*inventory.Machine{}, Placements: map[string]*inventory.Placement{},
	}
	heard := Heard{Node: "n", Listening: time.Hour}
	host := func(i int) string { return fmt.Sprintf("h%d", i%inventory.HostsMax) }
	for i := range inventory.HostsMax {
		box := "one"
		if paired {
			box = host(i)
		}
		v.Hosts[host(i)] = &inventory.Host{Name: host(i), Cluster: "c"}
		v.Lives[host(i)] = &inventory.HostLife{Host: host(i), Boot: 1, State: inventory.Up, Memory: 1 << 40, Box: box}
		heard.Hosts = append(heard.Hosts, Report{Host: host(i), Boot: 1})
	}
	for i := range inventory.MachinesMax {
		name := fmt.Sprintf("m%d", i)
		v.Machines[name] = &inventory.Machine{Name: name, Cluster: "c", FT: inventory.FTOn, Desired: inventory.Running, Run: 1, Hardware: inventory.Hardware{Memory: 1 << 30}}
		p := &inventory.Placement{Machine: name, Host: host(i), Boot: 1, Generation: 1, Run: 1}
		if paired {
			p.Second = &inventory.Second{Host: host(i + 1), Boot: 1, Pair: 1, Protected: true}
		}
		v.Placements[name] = p
	}
	return v, []Heard{heard, {Node: quorum.Member("o"), Listening: time.Hour, Hosts: heard.Hosts}}
}

// BenchmarkDecide: a round of the largest site, of which there are two each second.
func BenchmarkDecide(b *testing.B) {
	for name, paired := range map[string]bool{"protected": true, "alone": false} {
		v, heard := full(paired)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				Decide(v, heard, int64(time.Hour))
			}
		})
	}
}
