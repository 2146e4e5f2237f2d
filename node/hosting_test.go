package node

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/block"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/host"
	"steadfast/compute/initiator"
	"steadfast/compute/machine/machinetest"
	"steadfast/compute/netswitch"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/node/config"
	"steadfast/scsi"
)

// hostConfig is the configuration of a host, with a data directory of its own.
func hostConfig(t *testing.T) config.Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "sfh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := config.Default()
	c.DataDir, c.Socket, c.Drain = filepath.Join(dir, "data"), filepath.Join(dir, "s"), config.Duration(time.Second)
	c.Cluster.Host, c.Portals = true, nil
	c.Host = config.Host{Memory: 256 << 20, CPUs: 3}
	c.Networks = []config.Network{{Name: "lan", User: true}}
	return c
}

// startHosting starts a host's process. stop, which is optional, ends it.
func startHosting(t *testing.T, c config.Config) (n *Node, stop func()) {
	t.Helper()
	n, err := Start(t.Context(), Options{Config: c, Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return n, stop
}

func joinAs(t *testing.T, n, to *Node, name string) {
	t.Helper()
	join := &steadfastv1.JoinClusterRequest{Token: token(t, to, quorum.RoleHost), Name: name, Address: freeAddress(t)}
	if _, err := (clusterService{n}).JoinCluster(within(t), join); err != nil {
		t.Fatal(err)
	}
}

// TestHostEnters: a host's process waits until its host was added, takes machines from then on, as
// its configuration says, and does so under another life when it was started again.
func TestHostEnters(t *testing.T) {
	a, _ := startPair(t)
	cfg := hostConfig(t)
	left := filepath.Join(cfg.DataDir, "tmp", "boot-left")
	if err := os.MkdirAll(filepath.Dir(left), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h, stop := startHosting(t, cfg)
	if _, err := h.hostedStatus(within(t), "m"); !fault.Is(err, fault.NotFound) {
		t.Errorf("of a host in no cluster: %v", err)
	}
	joinAs(t, h, a, "h")
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("what a crash has left is there: %v", err)
	}
	if text := scrape(t, h); !strings.Contains(text, "\nsteadfast_host_up 0\n") || !strings.Contains(text, "\nsteadfast_host_machines{phase=\"running\"} 0\n") {
		t.Errorf("before it was added:\n%s", text)
	}
	site := datacenterService{a}
	for _, rule := range []func(*inventory.View) ([]quorum.Edit, error){
		func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateDatacenter("dc") },
		func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateCluster("k", "dc", true) },
		func(v *inventory.View) ([]quorum.Edit, error) { return v.AddHost("h", "k", inventory.Links{}) },
	} {
		if _, err := a.amend(within(t), rule); err != nil {
			t.Fatal(err)
		}
	}
	up := func(boot uint32, prefix string) {
		t.Helper()
		eventually(t, "the host is up", func() bool {
			v, err := a.site()
			return err == nil && v.Standing("h", boot)
		})
		v, err := a.site()
		if err != nil {
			t.Fatal(err)
		}
		if l := v.Lives["h"]; !strings.HasPrefix(l.ID, prefix) || l.Memory != 256<<20 || l.CPUs != 3 || !strings.HasPrefix(l.Build, "test ") {
			t.Errorf("its life is %+v", l)
		}
	}
	up(1, "1.1.")
	eventually(t, "it says so", func() bool {
		return h.events.count(host.EventHostUp, "") == 1 && strings.Contains(scrape(t, h), "\nsteadfast_host_up 1\n")
	})
	eventually(t, "the storage nodes hear it", func() bool {
		list, err := site.ListHosts(within(t), &steadfastv1.ListHostsRequest{})
		return err == nil && len(list.Hosts) == 1 && list.Hosts[0].State == "up"
	})
	if _, err := h.hostedStatus(within(t), "m"); !fault.Is(err, fault.NotFound) {
		t.Errorf("of a machine that it does not run: %v", err)
	}
	if err := a.hostedType("m", []byte("x")); !fault.Is(err, fault.NotFound) {
		t.Errorf("of a node that is no host: %v", err)
	}

	stop()
	again, _ := startHosting(t, cfg)
	up(2, "2.1.")
	eventually(t, "it says so", func() bool { return again.events.count(host.EventHostUp, "") == 1 })
}

// newMachine makes a machine with one disk and one card in the world's datastore, whose guest
// obeys what is typed.
func (w *accessWorld) newMachine(t *testing.T, name string) {
	t.Helper()
	kernel := machinetest.Obey()
	id := vmlock.ID{7}
	for volume, bytes := range map[string]int64{name + ".home": vmhome.SizeFor(int64(len(kernel)), 0), name + ".root": 1 << 20} {
		bytes = (bytes + 1<<20 - 1) >> 20 << 20
		if _, err := (volumeService{w.a}).CreateVolume(within(t), &steadfastv1.CreateVolumeRequest{Name: volume, SizeBytes: bytes, Group: "g"}); err != nil {
			t.Fatal(err)
		}
	}
	hw := inventory.Hardware{
		Memory: machinetest.ObeyMemory, Disks: []inventory.Disk{{Name: "root", Volume: name + ".root", Bytes: 1 << 20}},
		Nets: []inventory.Net{{MAC: "02:00:5e:00:53:01", Network: "lan"}},
	}
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) {
		return v.CreateMachine(inventory.Machine{Name: name, ID: id.String(), Cluster: "k", Datastore: "ds", Home: name + ".home", Hardware: hw})
	})
	home, err := openAs(t, w.a, name+".home", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = home.Close() }()
	if err := vmhome.Format(home, id, 0); err != nil {
		t.Fatal(err)
	}
	opened, err := vmhome.Open(home)
	if err != nil {
		t.Fatal(err)
	}
	d := vmhome.Definition{Name: name, ID: id.String(), Hardware: hw, Policy: inventory.Restart}
	if err := opened.Save(d, &vmhome.Source{Name: "vmlinux", Bytes: int64(len(kernel)), Reader: bytes.NewReader(kernel)}, nil); err != nil {
		t.Fatal(err)
	}
	root, err := openAs(t, w.a, name+".root", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	sector := make([]byte, block.SectorSize)
	copy(sector, "SECTOR0 and more")
	if err := root.WriteAt(sector, 0, block.FUA); err != nil {
		t.Fatal(err)
	}
}

// screen is what a console has shown.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) show(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(p)
	return nil
}

func (s *screen) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.text.String(), text)
}

// watched watches a machine's console until it ends, or ctx.
func watched(ctx context.Context, n *Node, machine string) (*screen, <-chan error) {
	s, ended := &screen{}, make(chan error, 1)
	go func() {
		err := n.hostedWatch(ctx, machine, s.show)
		for ctx.Err() == nil && (fault.Is(err, fault.Busy) || fault.Is(err, fault.NotFound)) { // it has not begun yet
			time.Sleep(10 * time.Millisecond)
			err = n.hostedWatch(ctx, machine, s.show)
		}
		ended <- err
	}()
	return s, ended
}

// TestMachineRuns: a machine that is started runs on one of two hosts, from its volumes on a
// mirrored group; people see how it does, and type. When the host's guard has said that its process
// has ended, it runs on the other one, with what it has written, and nobody waited for the host's
// silence. When that one's process is ended in order, it runs on the first one again, which is no
// failure. Its guest powers off, and it has ended.
func TestMachineRuns(t *testing.T) {
	w := newAccessWorld(t)
	w.newMachine(t, "n")
	nodes, stops := map[string]*Node{}, map[string]func(){}
	for _, name := range []string{"h1", "h2"} {
		nodes[name], stops[name] = startHosting(t, hostConfig(t))
		joinAs(t, nodes[name], w.a, name)
		w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.AddHost(name, "k", inventory.Links{}) })
		eventually(t, "the host "+name+" is up", func() bool {
			v, err := w.a.site()
			return err == nil && v.Standing(name, 1)
		})
	}
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Start("n") })
	placed := func() *inventory.Placement {
		v, err := w.a.site()
		if err != nil {
			t.Fatal(err)
		}
		return v.Placements["n"]
	}
	eventually(t, "the machine is placed", func() bool { return placed().Active() })
	first := *placed()
	n := nodes[first.Host]
	eventually(t, "the machine runs", func() bool {
		s, err := n.hostedStatus(within(t), "n")
		return err == nil && s.Phase == string(host.Running)
	})
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	screenOf, ended := watched(ctx, n, "n")
	eventually(t, "its guest is up", func() bool { return screenOf.has(machinetest.ObeyUp) })
	left, leaves := context.WithCancel(context.Background())
	other, gone := watched(left, n, "n")
	eventually(t, "another one sees it, too", func() bool { return other.has(machinetest.ObeyUp) })
	leaves()
	if err := <-gone; !fault.Is(err, fault.Canceled) {
		t.Errorf("who leaves a console is told %v", err)
	}
	if err := n.hostedType("n", []byte{machinetest.ObeyDisk}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its guest reads the disk", func() bool { return screenOf.has("SECTOR0 ok\n") })
	s, err := n.hostedStatus(within(t), "n")
	if err != nil || s.Pid == 0 || s.Instructions == 0 || len(s.Volumes) != 2 || s.Volumes[1].Disk != "root" || s.Volumes[1].Volume != "n.root" ||
		len(s.Volumes[1].Paths) != 1 || s.Volumes[1].Paths[0] != "active "+accessAlias+":3260" {
		t.Errorf("it does %v, %v", s, err)
	}
	text := scrape(t, n)
	for _, want := range []string{
		"steadfast_host_machines{phase=\"running\"} 1\n", "steadfast_machine_volume_paths{machine=\"n\",volume=\"n.root\"} 1\n", "steadfast_machine_full{machine=\"n\"} 0\n",
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if n.events.count(host.EventStarted, "") != 1 {
		t.Error("nobody was told that it runs")
	}

	// Its host's guard says that the process has ended. That is not so: what runs there ends, and
	// the host comes back.
	for _, node := range []*Node{w.a, w.b} {
		node.hostDied(quorum.Incarnation{Member: quorum.Member(first.Host), Boot: 1})
	}
	if err := <-ended; err != nil {
		t.Errorf("the console has ended with %v", err)
	}
	eventually(t, "the machine is placed elsewhere", func() bool { return placed().Active() && placed().Host != first.Host })
	second := *placed()
	n = nodes[second.Host]
	screenOf, ended = watched(ctx, n, "n")
	eventually(t, "its guest is up again", func() bool { return screenOf.has(machinetest.ObeyUp) })
	eventually(t, "the first host is back", func() bool {
		v, err := w.a.site()
		return err == nil && v.Standing(first.Host, 2)
	})
	told := func(kind string) (list []string) {
		for _, node := range []*Node{w.a, w.b} {
			events, _ := node.events.after(0)
			for _, e := range events {
				if e.Kind == kind {
					list = append(list, e.Text)
				}
			}
		}
		return list
	}
	if said := told("host-lost"); len(said) != 1 || !strings.Contains(said[0], "its process has ended") {
		t.Errorf("of the loss was told %q", said)
	}
	if said := told("host-returned"); len(said) != 0 {
		t.Errorf("of a host that is gone was told %q", said)
	}

	// The process of the second host ends in order.
	stops[second.Host]()
	if err := <-ended; err != nil {
		t.Errorf("the console has ended with %v", err)
	}
	eventually(t, "the machine is placed on the first host", func() bool { return placed().Active() && placed().Host == first.Host })
	if p := placed(); p.Restarts != second.Restarts || second.Restarts != 1 {
		t.Errorf("placed as %+v after %+v", p, second)
	}
	if v, err := w.a.site(); err != nil || v.Lives[second.Host].State != inventory.Left || len(told("host-lost")) != 1 {
		t.Errorf("the host that has left is %+v, %v; told was %q", v.Lives[second.Host], err, told("host-lost"))
	}
	n = nodes[first.Host]
	screenOf, ended = watched(ctx, n, "n")
	eventually(t, "its guest is up for the third time", func() bool { return screenOf.has(machinetest.ObeyUp) })
	if err := n.hostedType("n", []byte{machinetest.ObeyDisk, machinetest.ObeyPowerOff}); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil || !screenOf.has("SECTOR0 ok\n") {
		t.Errorf("the console has ended with %v", err)
	}
	eventually(t, "the machine has ended", func() bool { return !placed().Active() })
	if p := placed(); p.Ended != inventory.EndedShutdown || p.Generation <= first.Generation {
		t.Errorf("ended as %+v", p)
	}

	// Started again, it is ended by force; its guest would not power off.
	machines := machineService{n: w.a}
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Start("n") })
	eventually(t, "it is placed", func() bool { return placed().Active() })
	n = nodes[placed().Host]
	eventually(t, "it runs", func() bool {
		s, err := n.hostedStatus(within(t), "n")
		return err == nil && s.Phase == string(host.Running)
	})
	screenOf, ended = watched(ctx, n, "n")
	eventually(t, "its guest is up for the last time", func() bool { return screenOf.has(machinetest.ObeyUp) })
	if err := n.hostedType("n", []byte{machinetest.ObeyFlood}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it hears nothing", func() bool { return screenOf.has("####") })
	for _, force := range []bool{false, true} {
		r, err := machines.StopMachine(within(t), &steadfastv1.StopMachineRequest{Name: "n", Force: force})
		if err != nil {
			t.Fatal(err)
		}
		if m := r.Machine; m.Desired != "stopped" || m.State != "stopping" && m.State != "stopped" {
			t.Errorf("by force %v: it is %v", force, m)
		}
	}
	<-ended // as it may be: nobody reads so fast
	eventually(t, "it is off", func() bool { return !placed().Active() })
	if p := placed(); p.Ended != inventory.EndedStopped || !strings.Contains(p.Detail, "by force") {
		t.Errorf("ended as %+v", p)
	}
}

// TestHostDied: what a guard says is believed of the life of the host that it is about, and of
// no other.
func TestHostDied(t *testing.T) {
	a, b := startPair(t)
	h := joinHost(t, a, "h")
	for _, rule := range []func(*inventory.View) ([]quorum.Edit, error){
		func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateDatacenter("dc") },
		func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateCluster("k", "dc", true) },
		func(v *inventory.View) ([]quorum.Edit, error) { return v.AddHost("h", "k", inventory.Links{}) },
	} {
		if _, err := a.amend(within(t), rule); err != nil {
			t.Fatal(err)
		}
	}
	h.begin(t)
	lost := func() bool {
		v, err := a.site()
		return err == nil && v.Lives["h"].State == inventory.Lost
	}
	eventually(t, "b knows the host's life", func() bool {
		v, err := b.site()
		return err == nil && v.Lives["h"] != nil
	})
	boot := h.member.Self().Boot
	for _, other := range []quorum.Incarnation{{Member: "h", Boot: boot + 1}, {Member: "h", Boot: boot - 1}, {Member: "x", Boot: boot}} {
		b.hostDied(other)
	}
	time.Sleep(100 * time.Millisecond) // nothing is to happen
	if lost() {
		t.Fatal("it was declared lost by what was said of another")
	}
	b.hostDied(quorum.Incarnation{Member: "h", Boot: boot})
	eventually(t, "it is declared lost", lost)
	eventually(t, "that is told", func() bool { return b.events.count("host-lost", "") == 1 })
	a.hostDied(quorum.Incarnation{Member: "h", Boot: boot})
	h.down(t)
	h.up(t)
	h.begin(t)
	a.hostDied(quorum.Incarnation{Member: "h", Boot: boot}) // late: of the life before
	time.Sleep(100 * time.Millisecond)
	if lost() || a.events.count("host-lost", "") != 0 {
		t.Error("the next life was declared lost")
	}
}

// TestHostMemory: what a host gives is what is configured, or most of what there is.
func TestHostMemory(t *testing.T) {
	if got := machinesMemory(config.Host{Memory: 5 << 20}); got != 5<<20 {
		t.Error(got)
	}
	if got := machinesMemory(config.Host{}); got < 64<<20 || got > 1<<46 {
		t.Errorf("%d bytes", got)
	}
	if a, b := machinesCPUs(config.Host{CPUs: 7}), machinesCPUs(config.Host{}); a != 7 || b != runtime.NumCPU() {
		t.Error(a, b)
	}
}

// TestCards: a card is attached to the network that it names: to a switch, which may be away
// at first, or to a network of its own; names of interfaces are short, and of one card.
func TestCards(t *testing.T) {
	dir, err := os.MkdirTemp("", "sfh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	events := newEvents(slog.New(slog.DiscardHandler))
	c := &cards{
		host: "h1", log: slog.New(slog.DiscardHandler), publish: events.publish,
		networks: []config.Network{{Name: "lan", Switch: socket}, {Name: "out", User: true}, {Name: "br", Bridge: "sf-no-such"}},
	}
	early, err := c.attach(within(t), "m", 0, inventory.Net{Network: "lan"})
	if err != nil || early.MTU != 0 || events.count(host.EventNetwork, "") != 1 {
		t.Errorf("without a switch: %+v, %v", early, err)
	}
	sw, err := netswitch.Open(netswitch.Options{Socket: socket, MTU: 1400, NoGateway: true})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the card is attached when the switch is there", func() bool { return early.Wire.(*netswitch.Uplink).State().Attached })
	second, err := c.attach(within(t), "m", 1, inventory.Net{Network: "lan"})
	if err != nil || second.MTU != 1400 {
		t.Errorf("with a switch: %+v, %v", second, err)
	}
	elsewhere := *c
	elsewhere.host = "h2"
	third, err := elsewhere.attach(within(t), "m", 1, inventory.Net{Network: "lan"})
	if err != nil || !third.Wire.(*netswitch.Uplink).State().Attached {
		t.Errorf("the same card of another host: %v", err)
	}
	own, err := c.attach(within(t), "m", 2, inventory.Net{Network: "out"})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.Closer{early.Wire, second.Wire, third.Wire, own.Wire, sw} {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.attach(within(t), "m", 0, inventory.Net{Network: "br"}); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "ip link add") {
		t.Errorf("a bridge that there is not: %v", err)
	}
	if _, err := c.attach(within(t), "m", 0, inventory.Net{Network: "dmz"}); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "it has lan, out, br") {
		t.Errorf("a network that there is not: %v", err)
	}
	seen := map[string]bool{}
	for _, h := range []string{"h1", "h2"} {
		for _, m := range []string{"m", "m2", strings.Repeat("m", 63)} {
			for i := range 8 {
				x := cards{host: h}
				for _, name := range []string{x.cardName(m, i), x.portName(m, i)} {
					if seen[name] && len(m) < 63 {
						t.Errorf("%q is the name of two cards", name)
					}
					seen[name] = true
				}
				if len(x.cardName(m, i)) > 15 || len(x.portName(m, i)) > portNameMax {
					t.Errorf("%q and %q are too long", x.cardName(m, i), x.portName(m, i))
				}
			}
		}
	}
}

// TestDescribeHosted: a machine's status says what its host knows, in the API's words.
func TestDescribeHosted(t *testing.T) {
	now := time.Unix(1000, 0)
	m := host.Machine{
		Phase: host.Running, Since: now, PID: 7, CPU: 3 * time.Second, Silent: fault.New(fault.Unreachable, "it takes no requests"),
		Restarts: 1, Resets: 2, Full: map[string]string{"root": "no space"},
		Disks: []host.Disk{
			{Volume: "m.home", State: initiator.State{Paths: []initiator.Path{
				{Portal: "192.0.2.1:3260", Up: true, Access: scsi.ActiveOptimized},
				{Portal: "192.0.2.2:3260", Up: true, Access: scsi.Standby},
				{Portal: "192.0.2.3:3260"},
			}, Portals: map[string]error{"192.0.2.3:3260": fault.New(fault.Unreachable, "connection refused"), "192.0.2.1:3260": fault.New(fault.Failed, "before")}}},
			{Name: "root", Volume: "m.root", State: initiator.State{Waiting: 4 * time.Second, Counters: initiator.Counters{Retries: 5}}},
		},
	}
	s := describeHosted(m, now)
	if s.Phase != "running" || s.Pid != 7 || s.CpuNanoseconds != 3e9 || s.GuestRestarts != 1 || s.Resets != 2 || s.Full["root"] != "no space" || !strings.Contains(s.Step, "it takes no requests") {
		t.Errorf("%v", s)
	}
	if p := strings.Join(s.Volumes[0].Paths, "; "); p != "active 192.0.2.1:3260; standby 192.0.2.2:3260; down 192.0.2.3:3260: connection refused" || s.Volumes[0].AwaySince != nil {
		t.Errorf("%v", s.Volumes[0])
	}
	if v := s.Volumes[1]; v.Disk != "root" || v.Retries != 5 || !v.AwaySince.AsTime().Equal(now.Add(-4*time.Second)) || len(v.Paths) != 1 || !strings.HasPrefix(v.Paths[0], "down") {
		t.Errorf("%v", v)
	}
}

// TestWatchSlow: who does not read what a guest writes is let go, and told why.
func TestWatchSlow(t *testing.T) {
	w := &watcher{send: func([]byte) error { return nil }, closed: make(chan struct{})}
	if n, err := w.Write([]byte("abc")); n != 3 || err != nil {
		t.Error(n, err)
	}
	broken := fault.New(fault.Failed, "the connection has ended")
	w.send = func([]byte) error { return broken }
	if _, err := w.Write(nil); err == nil {
		t.Error("a send that fails is taken for one that does not")
	}
	if err := w.Close(); err != nil || w.late {
		t.Error(err, w.late)
	}
	slow := &watcher{closed: make(chan struct{})}
	slow.send = func([]byte) error { return slow.Close() } // while it is written
	if _, err := slow.Write(nil); err != nil || !slow.late {
		t.Error(err, slow.late)
	}
}
