package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/fault"
	"steadfast/node/apierror"
	"steadfast/node/config"
	"steadfast/node/ha"
	"steadfast/node/handed"
)

// machinesAlias is the address of the group of the tests below: of this process alone, as
// accessAlias is.
var machinesAlias = fmt.Sprintf("127.%d.%d.94", 64+os.Getpid()>>8&63, os.Getpid()&255)

// machineStore makes two storage nodes with a datacenter, a cluster of hosts and a datastore
// that is served at an alias.
func machineStore(t *testing.T, alias string) (a, b *Node) {
	t.Helper()
	a, b = startPair(t)
	storeOn(t, a, b, alias)
	return a, b
}

// storeOn is machineStore on two nodes that there are.
func storeOn(t *testing.T, a, b *Node, alias string) {
	t.Helper()
	var sockets []string
	for _, n := range []*Node{a, b} {
		_, err := (poolService{n}).CreatePool(within(t), &steadfastv1.CreatePoolRequest{
			Name: "tank", Drives: []*steadfastv1.NewDrive{{Path: filepath.Join(filepath.Dir(n.cfg.DataDir), "d"), CreateSizeBytes: 256 << 20}},
		})
		if err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, handed.Socket(n.cfg.DataDir))
	}
	_, err := (groupService{a}).CreateGroup(within(t), &steadfastv1.CreateGroupRequest{
		Name: "g", Nodes: []string{"a", "b"}, Pools: []string{"tank"}, Aliases: []*steadfastv1.GroupAlias{{Address: alias + "/8"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the group is served", func() bool {
		r, err := (groupService{a}).GetGroup(within(t), &steadfastv1.GetGroupRequest{Name: "g"})
		return err == nil && r.Group.Owner == "a" && len(r.Group.InSync) == 2
	})
	keeper := handed.NewKeeper(handed.Options{Nodes: sockets, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(keeper.Close)
	if _, err := keeper.Hold(netip.AddrPortFrom(netip.MustParseAddr(alias), config.DefaultPort), "g"); err != nil {
		t.Fatal(err)
	}
	for _, rule := range []func(*inventory.View) ([]quorum.Edit, error){
		func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateDatacenter("dc") },
		func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateCluster("k", "dc", true) },
		func(v *inventory.View) ([]quorum.Edit, error) { return v.AddDatastore("ds", "dc", "g") },
	} {
		if _, err := a.amend(within(t), rule); err != nil {
			t.Fatal(err)
		}
	}
}

// machinesOf is a node's MachineService as its socket has it.
func machinesOf(n *Node) steadfastv1connect.MachineServiceClient {
	return steadfastv1connect.NewMachineServiceClient(&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", n.cfg.Socket)
		},
	}}, "http://steadfast")
}

// level waits until both nodes know the same: what one of them has answered the other may hear of
// a moment later.
func level(t *testing.T, a, b *Node) {
	t.Helper()
	eventually(t, "both nodes know the same", func() bool {
		return a.cluster.member.State().Inventory.Revision == b.cluster.member.State().Inventory.Revision
	})
}

// write writes requests into a machine.
func write(t *testing.T, c steadfastv1connect.MachineServiceClient, list ...*steadfastv1.WriteMachineRequest) error {
	t.Helper()
	s, err := c.WriteMachine(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		r.Machine = "db1"
		if err := s.Send(r); err != nil {
			if errors.Is(err, io.EOF) {
				break // it has answered
			}
			t.Fatal(err)
		}
	}
	_, err = s.CloseAndReceive()
	return apierror.FromConnect(err)
}

// readPart reads a part of the machine; what is left out is zeros.
func readPart(t *testing.T, c steadfastv1connect.MachineServiceClient, part string) (name string, content []byte, err error) {
	t.Helper()
	s, err := c.ReadMachine(within(t), &steadfastv1.ReadMachineRequest{Machine: "db1", Part: part})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	at := 0
	for first := true; s.Receive(); first = false {
		m := s.Msg()
		if first {
			name, content = m.FileName, make([]byte, m.Bytes)
			continue
		}
		if strings.HasPrefix(part, partDisk) {
			at = int(m.Offset)
		}
		at += copy(content[at:], m.Data)
	}
	return name, content, apierror.FromConnect(s.Err())
}

// noise is bytes that are no zeros.
func noise(n int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 5))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(1 + r.IntN(255))
	}
	return p
}

// TestMachines: a machine is made on a real pair, written, shown, changed, read, deleted with its
// volumes kept, found and registered again, and deleted; from either node, and from a host
// that passes all on.
func TestMachines(t *testing.T) {
	a, b := machineStore(t, machinesAlias)
	h := startHostNode(t, a, "h1")
	onA, onB, onH := machinesOf(a), machinesOf(b), machinesOf(h)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(apierror.FromConnect(err))
		}
	}
	refused := func(what string, err error, kind fault.Kind, text string) {
		t.Helper()
		if err = apierror.FromConnect(err); !fault.Is(err, kind) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v; want %s: %q", what, err, kind, text)
		}
	}
	const disk = 8 << 20
	create := &steadfastv1.CreateMachineRequest{
		Name: "db1", Memory: 128 << 20, CommandLine: "console=ttyS0",
		Disks: []*steadfastv1.MachineDisk{{Name: "root", Bytes: disk}}, Nets: []*steadfastv1.MachineNet{{Network: "lan"}},
	}

	// By the host, which knows of storage nodes as soon as it has heard them.
	var made *steadfastv1.CreateMachineResponse
	eventually(t, "the machine is made", func() bool {
		var err error
		made, err = onH.CreateMachine(within(t), create)
		if err != nil && !fault.Is(apierror.FromConnect(err), fault.Unreachable) {
			t.Fatal(err)
		}
		return err == nil
	})
	m := made.Machine
	if m.State != "stopped" || m.Home != "db1.home" || m.Policy != "restart" || m.Disks[0].Volume != "db1.root" || !strings.HasPrefix(m.Nets[0].Mac, "02:53:46:") {
		t.Errorf("it is %v", m)
	}
	_, err := onA.CreateMachine(within(t), create)
	refused("a second one of its name", err, fault.Exists, `machine "db1" exists already`)
	for text, change := range map[string]func(*steadfastv1.CreateMachineRequest){
		"small letters": func(r *steadfastv1.CreateMachineRequest) { r.Name = "DB" },
		`cannot be called "home"`: func(r *steadfastv1.CreateMachineRequest) {
			r.Disks = []*steadfastv1.MachineDisk{{Name: "home", Bytes: disk}}
		},
		"must be a multiple": func(r *steadfastv1.CreateMachineRequest) { r.Memory = 5 },
		"what can happen":    func(r *steadfastv1.CreateMachineRequest) { r.Policy = "hope" },
		"no address of a network": func(r *steadfastv1.CreateMachineRequest) {
			r.Nets = []*steadfastv1.MachineNet{{Network: "lan", Mac: "x"}}
		},
		"must be a multiple of 512": func(r *steadfastv1.CreateMachineRequest) { r.Disks = []*steadfastv1.MachineDisk{{Name: "d", Bytes: 5}} },
	} {
		r := &steadfastv1.CreateMachineRequest{Name: "x", Memory: 128 << 20}
		change(r)
		_, err := onA.CreateMachine(within(t), r)
		refused("one with "+text, err, fault.Invalid, text)
	}
	var names []string
	for _, v := range a.allMirrored() {
		names = append(names, v.Name)
	}
	if slices.Sort(names); !slices.Equal(names, []string{"db1.home", "db1.root"}) {
		t.Errorf("there are the volumes %v", names)
	}

	// What is there is in the way, and named.
	_, err = (volumeService{a}).CreateVolume(within(t), &steadfastv1.CreateVolumeRequest{Name: "x.home", SizeBytes: disk, Group: "g"})
	must(err)
	_, err = onA.CreateMachine(within(t), &steadfastv1.CreateMachineRequest{Name: "x", Memory: 128 << 20})
	refused("a volume in the way", err, fault.Exists, `"steadfast volume delete x.home"`)

	// Content, by the host; a disk first, with zeros over data.
	kernel, initrd, data := noise(3<<20+5), noise(1<<20), noise(2<<20)
	files := func() []*steadfastv1.WriteMachineRequest {
		list := []*steadfastv1.WriteMachineRequest{
			{Part: "disk/root", Offset: 0, Data: data[:1<<19]},
			{Part: "disk/root", Offset: 1 << 20, Data: data[1<<20 : 1<<20+1<<19]},
			{Part: "disk/root", Offset: 1<<20 + 1<<19, ZeroBytes: disk - 1<<20 - 1<<19},
		}
		for _, f := range []struct {
			part string
			p    []byte
		}{{"kernel", kernel}, {"initrd", initrd}} {
			list = append(list, &steadfastv1.WriteMachineRequest{Part: f.part, FileName: "my-" + f.part, FileBytes: int64(len(f.p))})
			for p := range slices.Chunk(f.p, 1<<19) {
				list = append(list, &steadfastv1.WriteMachineRequest{Part: f.part, Data: p})
			}
		}
		return list
	}
	must(write(t, onH, files()...))
	want := make([]byte, disk)
	copy(want, data[:1<<19])
	copy(want[1<<20:], data[1<<20:1<<20+1<<19])
	same := func(c steadfastv1connect.MachineServiceClient) {
		t.Helper()
		for _, f := range []struct {
			part, name string
			p          []byte
		}{{"kernel", "my-kernel", kernel}, {"initrd", "my-initrd", initrd}, {"disk/root", "", want}} {
			name, p, err := readPart(t, c, f.part)
			if err != nil || name != f.name || !bytes.Equal(p, f.p) {
				t.Errorf("%s is %q, %d bytes, %v", f.part, name, len(p), err)
			}
		}
	}
	same(onA)
	same(onH)

	// What is refused, and leaves the kernel as it was.
	for text, list := range map[string][]*steadfastv1.WriteMachineRequest{
		"is no part of a machine": {{Part: "soul", Data: data[:512]}},
		`no disk "none"`:          {{Part: "disk/none", Data: data[:512]}},
		"no whole sectors":        {{Part: "disk/root", Data: data[:5]}},
		"comes after what is for": {{Part: "disk/root", Offset: 1024, Data: data[1024:1536]}, {Part: "disk/root", Data: data[:512]}},
		"let it grow":             {{Part: "disk/root", Offset: disk, Data: data[:512]}},
		"and 512 came":            {{Part: "kernel", FileName: "k", FileBytes: 1024}, {Part: "kernel", Data: data[:512]}},
		"and more came":           {{Part: "kernel", FileName: "k", FileBytes: 100}, {Part: "kernel", Data: data[:512]}},
		"comes a second time":     {{Part: "disk/root", ZeroBytes: 0}, {Part: "initrd", FileBytes: 0}, {Part: "disk/root", ZeroBytes: 0}},
		"at least 1 and at most":  {{Part: "kernel", FileName: "k"}},
		"either data or zeros":    {{Part: "disk/root", Data: data[:512], ZeroBytes: 512}},
	} {
		err := write(t, onA, list...)
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("a write: %v; want %q", err, text)
		}
	}
	same(onB)
	stopped, cancel := context.WithCancel(within(t))
	half, err := onA.WriteMachine(stopped)
	must(err)
	must(half.Send(&steadfastv1.WriteMachineRequest{Machine: "db1", Part: "kernel", FileName: "half", FileBytes: 4}))
	must(half.Send(&steadfastv1.WriteMachineRequest{Machine: "db1", Part: "kernel", Data: []byte("half")}))
	cancel() // the caller has gone
	_, _ = half.CloseAndReceive()
	eventually(t, "the half write is over", func() bool {
		_, p, err := readPart(t, onB, "kernel")
		if err != nil && !fault.Is(err, fault.Busy) { // it came to be written just now
			t.Fatal(err)
		}
		return err == nil && bytes.Equal(p, kernel)
	})

	// Its volumes are its own.
	_, err = (initiatorService{a}).AddInitiator(within(t), &steadfastv1.AddInitiatorRequest{Name: "iqn.2026-11.com.example:x"})
	must(err)
	_, err = (volumeService{a}).MapVolume(within(t), &steadfastv1.MapVolumeRequest{Volume: "db1.root", Initiator: "iqn.2026-11.com.example:x"})
	refused("mapping its volume", err, fault.Busy, `the machine "db1"`)
	readOnly := true
	_, err = (volumeService{a}).SetVolume(within(t), &steadfastv1.SetVolumeRequest{Name: "db1.root", ReadOnly: &readOnly})
	refused("making its volume read-only", err, fault.Busy, `the machine "db1"`)
	_, err = (volumeService{a}).DeleteVolume(within(t), &steadfastv1.DeleteVolumeRequest{Name: "db1.home"})
	refused("deleting its volume", err, fault.Busy, `the machine "db1"`)

	// Changed: a disk more, one larger, more memory, no initial RAM disk.
	memory, policy := uint64(256<<20), "leave"
	set, err := onB.SetMachine(within(t), &steadfastv1.SetMachineRequest{
		Name: "db1", Memory: &memory, Policy: &policy,
		AddDisks:  []*steadfastv1.MachineDisk{{Name: "data", Bytes: disk}},
		GrowDisks: []*steadfastv1.MachineDisk{{Name: "root", Bytes: 2 * disk}},
		AddNets:   []*steadfastv1.MachineNet{{Network: "lan", Mac: "02:00:5E:00:53:01"}},
	})
	must(err)
	m = set.Machine
	if m.Memory != memory || m.Policy != policy || len(m.Disks) != 2 || m.Disks[0].Bytes != 2*disk || m.Disks[1].Volume != "db1.data" || m.Nets[1].Mac != "02:00:5e:00:53:01" {
		t.Errorf("changed, it is %v", m)
	}
	_, err = onA.SetMachine(within(t), &steadfastv1.SetMachineRequest{Name: "db1"})
	refused("no change", err, fault.Invalid, "nothing to change")
	_, err = onA.SetMachine(within(t), &steadfastv1.SetMachineRequest{Name: "db1", GrowDisks: []*steadfastv1.MachineDisk{{Name: "root", Bytes: disk}}})
	refused("a smaller disk", err, fault.Invalid, "cannot shrink")
	_, err = onA.SetMachine(within(t), &steadfastv1.SetMachineRequest{Name: "db1", RemoveDisks: []string{"swap"}})
	refused("a disk that is not there", err, fault.NotFound, `no disk "swap"`)
	_, err = onA.SetMachine(within(t), &steadfastv1.SetMachineRequest{Name: "db1", RemoveDisks: []string{"data"}, RemoveNets: []string{"02:00:5e:00:53:01"}})
	must(err)
	if _, there := b.findMirrored("db1.data"); there {
		eventually(t, "the volume of the disk has gone", func() bool { _, there := b.findMirrored("db1.data"); return !there })
	}
	must(write(t, onA, &steadfastv1.WriteMachineRequest{Part: "initrd"}))
	_, _, err = readPart(t, onA, "initrd")
	refused("an initial RAM disk that was taken away", err, fault.NotFound, "has no initrd")
	want = append(want, make([]byte, disk)...)

	// It is to run: it waits, for there is no host of the cluster that is up.
	started, err := onH.StartMachine(within(t), &steadfastv1.StartMachineRequest{Name: "db1"})
	must(err)
	if started.Machine.Desired != "running" || started.Machine.State != "waiting" {
		t.Errorf("started, it is %v", started.Machine)
	}
	refused("writing into one that is to run", write(t, onA, files()...), fault.Busy, `"steadfast vm stop db1 --wait"`)
	_, _, err = readPart(t, onB, "kernel")
	refused("reading one that is to run", err, fault.Busy, `"steadfast vm stop db1 --wait"`)
	_, err = onA.DeleteMachine(within(t), &steadfastv1.DeleteMachineRequest{Name: "db1"})
	refused("deleting one that is to run", err, fault.Busy, `"steadfast vm stop db1"`)
	_, err = onA.ResetMachine(within(t), &steadfastv1.ResetMachineRequest{Name: "db9"})
	refused("resetting one that is not there", err, fault.NotFound, `did you mean "db1"`)
	watch, err := onA.WatchConsole(within(t), &steadfastv1.WatchConsoleRequest{Machine: "db1"})
	must(err)
	if watch.Receive() {
		t.Errorf("its console says %q", watch.Msg().Data)
	}
	refused("its console", watch.Err(), fault.Busy, "waits")
	_, err = onA.StopMachine(within(t), &steadfastv1.StopMachineRequest{Name: "db1"})
	must(err)
	eventually(t, "every member lists it stopped", func() bool {
		return !slices.ContainsFunc([]steadfastv1connect.MachineServiceClient{onA, onB, onH}, func(c steadfastv1connect.MachineServiceClient) bool {
			r, err := c.ListMachines(within(t), &steadfastv1.ListMachinesRequest{})
			return err != nil || len(r.Machines) != 1 || r.Machines[0].State != "stopped"
		})
	})

	// Deleted, its volumes kept; found and registered again, under another name. Its
	// lock's generations go on.
	kept, err := onA.DeleteMachine(within(t), &steadfastv1.DeleteMachineRequest{Name: "db1", KeepVolumes: true})
	must(err)
	if !slices.Equal(kept.Kept, []string{"db1.home", "db1.root"}) {
		t.Errorf("kept are %v", kept.Kept)
	}
	level(t, a, b)
	homes, err := onB.ListHomes(within(t), &steadfastv1.ListHomesRequest{})
	must(err)
	if len(homes.Homes) != 1 || homes.Homes[0].Volume != "db1.home" || homes.Homes[0].Machine != "db1" || homes.Homes[0].Registered || homes.Homes[0].Problem != "" {
		t.Errorf("homes are %v", homes.Homes)
	}
	_, err = onA.RegisterMachine(within(t), &steadfastv1.RegisterMachineRequest{Home: "x.home"})
	refused("registering what is no home", err, fault.NotFound, "this is no home volume")
	registered, err := onB.RegisterMachine(within(t), &steadfastv1.RegisterMachineRequest{Home: "db1.home", Name: "db2"})
	must(err)
	v, doc, err := b.findMachine("db2")
	must(err)
	if doc.Floor < 2 || doc.ID != m.Id || registered.Machine.Name != "db2" || len(doc.Nets) != 1 {
		t.Errorf("registered it is %v", doc)
	}
	must(v.Check())
	level(t, a, b)
	_, err = onA.RegisterMachine(within(t), &steadfastv1.RegisterMachineRequest{Home: "db1.home"})
	refused("registering it twice", err, fault.Exists, `is that of the machine "db2"`)

	// Snapshots keep it; without them all goes.
	eventually(t, "the volume has a snapshot", func() bool {
		_, err = (snapshotService{a}).CreateSnapshot(within(t), &steadfastv1.CreateSnapshotRequest{Volume: "db1.root", Name: "s1"})
		return err == nil
	})
	_, err = onA.DeleteMachine(within(t), &steadfastv1.DeleteMachineRequest{Name: "db2"})
	refused("deleting one with snapshots", err, fault.Busy, "--with-snapshots")
	_, err = onA.DeleteMachine(within(t), &steadfastv1.DeleteMachineRequest{Name: "db2", WithSnapshots: true})
	must(err)
	if specs, err := ha.Specs(a.cluster.member.State().Inventory.Entries); err != nil || len(specs[0].Volumes) != 1 {
		t.Errorf("the group has %v, %v", specs[0].Volumes, err)
	}
	for _, kind := range []string{"machine-created", "machine-written", "machine-changed", "machine-start", "machine-stop", "machine-deleted", "machine-registered"} {
		if a.events.count(kind, "")+b.events.count(kind, "") == 0 {
			t.Errorf("there was no event %s", kind)
		}
	}
}

// TestMachinesOfOtherNodes: a host's calls that only who serves a machine's group can answer go
// there, and not to another storage node, which could not pass them on.
func TestMachinesOfOtherNodes(t *testing.T) {
	first, a, b := startStorage(t), startStorage(t), startStorage(t)
	if _, err := (clusterService{first}).InitCluster(within(t), &steadfastv1.InitClusterRequest{Name: "first", Address: freeAddress(t)}); err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]*Node{"a": a, "b": b} {
		join := &steadfastv1.JoinClusterRequest{Token: token(t, first, quorum.RoleNode), Name: name, Address: freeAddress(t)}
		r, err := (clusterService{n}).JoinCluster(within(t), join)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(r.Cluster.Members, func(m *steadfastv1.Member) bool { return m.Name == name }) {
			t.Errorf("%s has joined, and knows of %v", name, r.Cluster.Members)
		}
	}
	storeOn(t, a, b, machinesAlias)
	h := startHostNode(t, a, "h1")
	if _, err := machinesOf(a).CreateMachine(within(t), &steadfastv1.CreateMachineRequest{Name: "db1", Memory: 128 << 20}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the host hears of all", func() bool {
		to, err := h.storageNode()
		_, _, err2 := h.findMachine("db1")
		return err == nil && to == "first" && err2 == nil && h.cluster.hears("a") && h.cluster.hears("b")
	})
	onH := machinesOf(h)
	memory := uint64(256 << 20)
	r, err := onH.SetMachine(within(t), &steadfastv1.SetMachineRequest{Name: "db1", Memory: &memory})
	if err != nil || r.Machine.Memory != memory {
		t.Errorf("set: %v, %v", r, apierror.FromConnect(err))
	}
	if _, err := onH.DeleteMachine(within(t), &steadfastv1.DeleteMachineRequest{Name: "none"}); !fault.Is(apierror.FromConnect(err), fault.NotFound) {
		t.Errorf("of no machine: %v", err)
	}
	if _, err := onH.DeleteMachine(within(t), &steadfastv1.DeleteMachineRequest{Name: "db1"}); err != nil {
		t.Errorf("delete: %v", apierror.FromConnect(err))
	}
}

// TestDeleteAsksForSnapshots: who has not opened its copy of a machine's volumes does not take
// them to be without snapshots: the group's owner is asked.
func TestDeleteAsksForSnapshots(t *testing.T) {
	a, b := machineStore(t, machinesAlias)
	if _, err := machinesOf(a).CreateMachine(within(t), &steadfastv1.CreateMachineRequest{Name: "db1", Memory: 128 << 20}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is a snapshot", func() bool {
		_, err := (snapshotService{n: a}).CreateSnapshot(within(t), &steadfastv1.CreateSnapshotRequest{Volume: "db1.home", Name: "s"})
		if err != nil && !fault.Is(err, fault.Busy) {
			t.Fatal(err)
		}
		return err == nil
	})
	eventually(t, "the other node knows the machine", func() bool { _, _, err := b.findMachine("db1"); return err == nil })
	b.mu.Lock()
	pools := b.pools
	b.pools = nil
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.pools = pools
	}()
	_, err := machinesOf(b).DeleteMachine(within(t), &steadfastv1.DeleteMachineRequest{Name: "db1"})
	if err = apierror.FromConnect(err); !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), "snapshots") {
		t.Errorf("a machine with a snapshot, by who has no pool: %v", err)
	}
}

// TestWriteCutShort: what came to a host in part only is not taken for all by the storage node
// that it passes it on to.
func TestWriteCutShort(t *testing.T) {
	a, b := machineStore(t, machinesAlias)
	h := startHostNode(t, a, "h1")
	create := &steadfastv1.CreateMachineRequest{Name: "db1", Memory: 128 << 20, Disks: []*steadfastv1.MachineDisk{{Name: "root", Bytes: 8 << 20}}}
	if _, err := machinesOf(a).CreateMachine(within(t), create); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the host knows the machine", func() bool {
		_, err := h.storageNode()
		_, _, err2 := h.findMachine("db1")
		return err == nil && err2 == nil
	})
	kernel := noise(1000)
	var body []byte
	for _, r := range []*steadfastv1.WriteMachineRequest{
		{Machine: "db1", Part: "kernel", FileName: "half", FileBytes: int64(len(kernel)), Data: kernel},
		{Machine: "db1", Part: "disk/root", Data: noise(1 << 19)},
	} {
		p, err := proto.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		// The Connect protocol's envelope: flags, and the length.
		body = append(binary.BigEndian.AppendUint32(append(body, 0), uint32(len(p))), p...)
	}
	body = append(body, 0, 0, 0, 1, 0, 'x') // of the next one there is no more
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.cfg.Socket)
	}, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(within(t), http.MethodPost, "http://steadfast"+steadfastv1connect.MachineServiceWriteMachineProcedure, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/connect+proto")
	req.Header.Set("Connect-Protocol-Version", "1")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.Body.Close() != nil || !bytes.Contains(answer, []byte("in part only")) {
		t.Errorf("the answer: %q, %v", answer, err)
	}
	// Who comes next finds the kernel that there was: none.
	eventually(t, "it can be read", func() bool {
		_, _, err := readPart(t, machinesOf(b), "kernel")
		if err == nil {
			t.Fatal("the machine has the kernel of half a writing")
		}
		return fault.Is(err, fault.NotFound)
	})
}
