package node

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/cluster/identity"
	"steadfast/cluster/inventory"
	"steadfast/cluster/placement"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
	"steadfast/internal/freeport"
	"steadfast/node/config"
	"steadfast/node/ha"
)

// patience is how long a condition may take on a machine that others use too.
const patience = time.Minute

// eventually waits until something is so.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// startStorage starts a storage node without pools and portals, outside of any
// cluster.
func startStorage(t *testing.T) *Node {
	t.Helper()
	dir, err := os.MkdirTemp("", "sfh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := config.Default()
	c.DataDir, c.Socket, c.Drain = filepath.Join(dir, "data"), filepath.Join(dir, "s"), config.Duration(time.Second)
	c.Cluster.HandedAliases = true // nothing is done to the network of who tests
	c.Portals = nil
	n, err := Start(t.Context(), Options{Config: c, Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func freeAddress(t *testing.T) string {
	t.Helper()
	a, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// within bounds one call.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// token makes a token for a joiner.
func token(t *testing.T, n *Node, role quorum.Role) string {
	t.Helper()
	r, err := (clusterService{n}).CreateToken(within(t), &steadfastv1.CreateTokenRequest{Role: string(role)})
	if err != nil {
		t.Fatal(err)
	}
	return r.Token
}

// startPair starts two storage nodes, which are a cluster.
func startPair(t *testing.T) (a, b *Node) {
	t.Helper()
	a, b = startStorage(t), startStorage(t)
	if _, err := (clusterService{a}).InitCluster(within(t), &steadfastv1.InitClusterRequest{Name: "a", Address: freeAddress(t)}); err != nil {
		t.Fatal(err)
	}
	join := &steadfastv1.JoinClusterRequest{Token: token(t, a, quorum.RoleNode), Name: "b", Address: freeAddress(t)}
	if _, err := (clusterService{b}).JoinCluster(within(t), join); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// testHost is a host's part in the quorum, and nothing else of it.
type testHost struct {
	name, dir string
	member    *quorumio.Member // nil while it is down
	serve     map[string]func(*tls.Conn, identity.Peer)
}

// joinHost makes a host, which begins.
func joinHost(t *testing.T, n *Node, name string) *testHost {
	t.Helper()
	h := &testHost{name: name, dir: t.TempDir()}
	tok, err := identity.ParseToken(token(t, n, quorum.RoleHost))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := quorumio.Join(within(t), h.dir, tok, quorum.Member(name), freeAddress(t), quorum.RoleHost); err != nil {
		t.Fatal(err)
	}
	h.up(t)
	t.Cleanup(func() { h.down(t) })
	return h
}

func (h *testHost) up(t *testing.T) {
	t.Helper()
	var err error
	if h.member, err = quorumio.Open(quorumio.Options{Dir: h.dir, Serve: h.serve, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
}

func (h *testHost) down(t *testing.T) {
	t.Helper()
	if h.member == nil {
		return
	}
	if err := h.member.Close(); err != nil {
		t.Error(err)
	}
	h.member = nil
}

// begin enters a new life of the host. It asks until the host knows that it is one.
func (h *testHost) begin(t *testing.T) {
	t.Helper()
	var why error
	eventually(t, "the host "+h.name+" begins a life", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		why = quorumio.Update(ctx, h.member, func(inv quorum.Inventory) ([]quorum.Edit, error) {
			v, err := inventory.Read(inv.Entries)
			if err != nil {
				return nil, err
			}
			_, edits, err := v.HostUp(inventory.HostLife{Host: h.name, ID: fmt.Sprint(h.member.Self().Boot), Memory: 1 << 30}, time.Now().UnixNano())
			return edits, err
		})
		return why == nil
	})
}

// TestHostDies: a machine that is started is placed on one of two real hosts; when the
// process of that ends the machine is placed on the other one, and the nodes tell
// of it; the host comes back under another life. The nodes ask each other over the
// connection between members what they have heard.
func TestHostDies(t *testing.T) {
	a, b := startPair(t)
	site := datacenterService{a}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := site.CreateDatacenter(within(t), &steadfastv1.CreateDatacenterRequest{Name: "dc"})
	must(err)
	_, err = site.CreateHostCluster(within(t), &steadfastv1.CreateHostClusterRequest{Name: "k", Ha: true})
	must(err)
	hosts := map[string]*testHost{}
	for _, name := range []string{"h1", "h2"} {
		hosts[name] = joinHost(t, a, name)
		eventually(t, "a knows the member "+name, func() bool {
			_, err = site.AddHost(within(t), &steadfastv1.AddHostRequest{Name: name})
			return err == nil
		})
		hosts[name].begin(t)
	}

	// A group of other nodes: neither of these has a part in it.
	record, err := json.Marshal(&ha.Spec{Name: "g", Number: 1, Nodes: []ha.Node{{Name: "x"}, {Name: "y"}}, Volumes: []ha.Volume{{Number: 1, Name: "home", Size: 4096}}})
	must(err)
	for _, rule := range []func(*inventory.View) ([]quorum.Edit, error){
		func(*inventory.View) ([]quorum.Edit, error) {
			return []quorum.Edit{{Key: "group/g", Value: record}}, nil
		},
		func(v *inventory.View) ([]quorum.Edit, error) { return v.AddDatastore("ds", "dc", "g") },
		func(v *inventory.View) ([]quorum.Edit, error) {
			return v.CreateMachine(inventory.Machine{
				Name: "m", ID: strings.Repeat("01", 16), Cluster: "k", Datastore: "ds", Home: "home", Hardware: inventory.Hardware{Memory: 64 << 20},
			})
		},
		func(v *inventory.View) ([]quorum.Edit, error) { return v.Start("m") },
	} {
		_, err := a.amend(within(t), rule)
		must(err)
	}
	var p *inventory.Placement
	placed := func() bool {
		v, err := a.site()
		must(err)
		p = v.Placements["m"]
		return p.Active() && v.Standing(p.Host, p.Boot)
	}
	eventually(t, "the machine is placed", placed)
	first := *p
	elsewhere := func(n *Node, other quorum.Member) (heard placement.Heard) {
		eventually(t, "node "+string(other)+" is asked", func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			heard, err = n.cluster.placer.ask(ctx, other)
			return err == nil && len(heard.Hosts) == 2
		})
		return heard
	}
	if h := elsewhere(a, "b"); h.Node != "b" || h.Listening <= 0 || h.First["h1"] != 1 || !slices.ContainsFunc(h.Hosts, func(r placement.Report) bool { return r.Host == "h1" && r.Boot == 1 && r.Age < patience }) {
		t.Errorf("b has heard %+v", h)
	}
	if h := elsewhere(b, "a"); h.Node != "a" {
		t.Errorf("a has heard %+v", h)
	}

	hosts[first.Host].down(t)
	eventually(t, "the machine is placed elsewhere", func() bool { return placed() && p.Host != first.Host })
	if p.Generation <= first.Generation || p.Restarts != 1 {
		t.Errorf("placed as %+v after %+v", p, first)
	}
	eventually(t, "the loss is told", func() bool { return a.events.count("host-lost", "")+b.events.count("host-lost", "") == 1 })
	eventually(t, "both count the loss", func() bool {
		for _, n := range []*Node{a, b} {
			if text := scrape(t, n); !strings.Contains(text, "\nsteadfast_hosts{cluster=\"k\",state=\"lost\"} 1\n") || !strings.Contains(text, "\nsteadfast_machines{cluster=\"k\",state=\"running\"} 1\n") {
				return false
			}
		}
		return true
	})

	hosts[first.Host].up(t)
	hosts[first.Host].begin(t)
	eventually(t, "the host is up in another life", func() bool {
		v, err := a.site()
		must(err)
		return v.Standing(first.Host, 2)
	})
	list, err := site.ListHosts(within(t), &steadfastv1.ListHostsRequest{})
	must(err)
	for _, h := range list.Hosts {
		if want := uint32(1); h.Name == first.Host && h.Boot != 2 || h.Name != first.Host && h.Boot != want || h.State != "up" {
			t.Errorf("host %v", h)
		}
	}
}

// TestMachinesVolumes: the volume of a machine is neither deleted nor renamed, and
// grows; the group that is a datastore is not deleted; all of it goes when the
// machine has gone.
func TestMachinesVolumes(t *testing.T) {
	a, b := startPair(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*Node{a, b} {
		_, err := (poolService{n}).CreatePool(within(t), &steadfastv1.CreatePoolRequest{
			Name: "tank", Drives: []*steadfastv1.NewDrive{{Path: filepath.Join(filepath.Dir(n.cfg.DataDir), "d"), CreateSizeBytes: 256 << 20}},
		})
		must(err)
	}
	group, volumes := groupService{a}, volumeService{a}
	_, err := group.CreateGroup(within(t), &steadfastv1.CreateGroupRequest{
		Name: "g", Nodes: []string{"a", "b"}, Pools: []string{"tank"}, Aliases: []*steadfastv1.GroupAlias{{Address: "127.0.0.50/8"}},
	})
	must(err)
	eventually(t, "the group is served", func() bool {
		r, err := group.GetGroup(within(t), &steadfastv1.GetGroupRequest{Name: "g"})
		return err == nil && r.Group.Owner == "a" && len(r.Group.InSync) == 2
	})
	for _, name := range []string{"home", "other"} {
		_, err := volumes.CreateVolume(within(t), &steadfastv1.CreateVolumeRequest{Name: name, SizeBytes: 32 << 20, Group: "g"})
		must(err)
	}
	for _, rule := range []func(*inventory.View) ([]quorum.Edit, error){
		func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateDatacenter("dc") },
		func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateCluster("k", "dc", true) },
		func(v *inventory.View) ([]quorum.Edit, error) { return v.AddDatastore("ds", "dc", "g") },
		func(v *inventory.View) ([]quorum.Edit, error) {
			return v.CreateMachine(inventory.Machine{
				Name: "m", ID: strings.Repeat("01", 16), Cluster: "k", Datastore: "ds", Home: "home", Hardware: inventory.Hardware{Memory: 64 << 20},
			})
		},
	} {
		_, err := a.amend(within(t), rule)
		must(err)
	}
	rename := func(from, to string) error {
		_, err := volumes.SetVolume(within(t), &steadfastv1.SetVolumeRequest{Name: from, NewName: &to})
		return err
	}
	remove := func(name string) error {
		_, err := volumes.DeleteVolume(within(t), &steadfastv1.DeleteVolumeRequest{Name: name})
		return err
	}
	for what, err := range map[string]error{"renaming": rename("home", "house"), "deleting": remove("home")} {
		if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), `the machine "m"`) {
			t.Errorf("%s the volume of a machine: %v", what, err)
		}
	}
	bytes := int64(64 << 20)
	_, err = volumes.SetVolume(within(t), &steadfastv1.SetVolumeRequest{Name: "home", SizeBytes: &bytes})
	must(err)
	must(rename("other", "another"))
	must(remove("another"))
	_, err = a.amend(within(t), func(v *inventory.View) ([]quorum.Edit, error) { return v.DeleteMachine("m") })
	must(err)
	must(rename("home", "house"))
	must(remove("house"))
	_, err = group.DeleteGroup(within(t), &steadfastv1.DeleteGroupRequest{Name: "g"})
	if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), `the datastore "ds"`) {
		t.Errorf("deleting the group of a datastore: %v", err)
	}
	_, err = a.amend(within(t), func(v *inventory.View) ([]quorum.Edit, error) { return v.RemoveDatastore("ds") })
	must(err)
	_, err = group.DeleteGroup(within(t), &steadfastv1.DeleteGroupRequest{Name: "g"})
	must(err)
}
