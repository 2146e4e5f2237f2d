package node

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/compute/host"
	"steadfast/fault"
	"steadfast/node/config"
)

// beginHosting begins to run the machines that are placed on this node, which is a host. It
// waits for nothing: a host that was not added to a cluster of hosts yet, or whose cluster does
// not answer, is there and waits. Fails with fault.Denied, and with fault.Internal where this
// program does not say what it was built from.
func (n *Node) beginHosting(c *cluster) (*host.Host, error) {
	consoles, temp := filepath.Join(n.cfg.DataDir, "consoles"), filepath.Join(n.cfg.DataDir, "tmp")
	kept := filepath.Join(n.cfg.DataDir, "diverged")
	// What a crash has left there is of no use to anybody; the data directory's lock is held.
	err := os.RemoveAll(temp)
	for _, dir := range []string{consoles, temp, kept} {
		if err == nil {
			err = os.MkdirAll(dir, 0o700)
		}
	}
	if err != nil {
		return nil, fault.Wrap(fault.Denied, err, "the machines' folders in data_dir")
	}
	build, err := buildOf(n.version)
	if err != nil {
		return nil, err
	}
	self := c.member.Self()
	nets := &cards{host: string(self.Member), networks: n.cfg.Networks, log: n.log, publish: n.events.publish}
	return host.Open(host.Options{
		Name: string(self.Member), Member: c.member, Boot: self.Boot,
		Program: "steadfast", Build: build, Memory: machinesMemory(n.cfg.Host), CPUs: machinesCPUs(n.cfg.Host),
		Box: hostBox(n.cfg.Host), Private: privateNetworks(n.cfg.Networks),
		Open: c.openVolume, Attach: nets.attach, Dial: c.logging.dialPair, Consoles: consoles, Temp: temp, Kept: kept,
		Log: n.log, Event: n.publishHosted,
	})
}

// leaveTime bounds how long the end of a host waits for the cluster to take it in.
const leaveTime = 2 * time.Second

// endHosting ends what this host runs. Its machines end at once, as with a crash, but that no
// failure is counted and other hosts begin with them at once: what guests are to do at a planned
// stop, maintenance has them do before.
func (n *Node) endHosting(h *host.Host) error {
	var names []string
	for _, m := range h.Known() {
		if m.Phase != host.Ended {
			names = append(names, m.Name)
		}
	}
	if len(names) > 0 {
		n.log.Warn("machines end with this host, as in a power cut; \"steadfast host maintenance\" before a stop shuts their guests down",
			"machines", strings.Join(names, " "))
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	if err := h.Leave(ctx); err != nil {
		n.log.Warn("the cluster does not take in that this host ends: it counts as lost", "error", err)
	}
	return h.Close()
}

// publishHosted tells people of what happened on this host.
func (n *Node) publishHosted(e host.Event) {
	out := &steadfastv1.Event{Severity: severityInfo, Kind: e.Type, Machine: e.Machine, Text: e.Text}
	if e.Trouble {
		out.Severity = severityWarning
	}
	if e.Machine != "" {
		out.Text = "machine \"" + e.Machine + "\": " + e.Text
	}
	n.events.publish(out)
}

// machinesMemory is what all machines of this host may have together, in bytes.
func machinesMemory(h config.Host) uint64 {
	if h.Memory > 0 {
		return uint64(h.Memory)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0 // it takes no machines; the configuration can say what there is
	}
	has := uint64(info.Totalram) * uint64(info.Unit)
	if limit := groupLimit("/proc/self/cgroup", "/sys/fs/cgroup"); limit > 0 {
		has = min(has, uint64(limit))
	}
	return has / 4 * 3
}

// machinesCPUs is how many processors this host says that it has.
func machinesCPUs(h config.Host) int {
	if h.CPUs > 0 {
		return h.CPUs
	}
	return runtime.NumCPU()
}

// hosted returns what this node runs machines with. Fails with fault.NotFound when it is no
// host, and as inCluster does.
func (n *Node) hosted() (*host.Host, error) {
	c, err := n.inCluster()
	if err != nil {
		return nil, err
	}
	if c.hosting == nil {
		return nil, fault.New(fault.NotFound, "this node runs no machines: it is no host")
	}
	return c.hosting, nil
}
