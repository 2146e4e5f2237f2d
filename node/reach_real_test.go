package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/block"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/host"
	"steadfast/compute/initiator"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/node/apierror"
	"steadfast/node/config"
	"steadfast/node/handed"
)

// accessAlias is the address of the tests' group: of this process alone, as several may test on one
// machine.
var accessAlias = fmt.Sprintf("127.%d.%d.93", 64+os.Getpid()>>8&63, os.Getpid()&255)

// startHostNode starts a process that is a host of the cluster.
func startHostNode(t *testing.T, a *Node, name string) *Node {
	t.Helper()
	dir, err := os.MkdirTemp("", "sfh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := config.Default()
	c.DataDir, c.Socket, c.Drain = filepath.Join(dir, "data"), filepath.Join(dir, "s"), config.Duration(time.Second)
	c.Cluster.Host, c.Portals = true, nil
	n, err := Start(t.Context(), Options{Config: c, Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
	})
	join := &steadfastv1.JoinClusterRequest{Token: token(t, a, quorum.RoleHost), Name: name, Address: freeAddress(t)}
	if _, err := (clusterService{n}).JoinCluster(within(t), join); err != nil {
		t.Fatal(err)
	}
	return n
}

// accessWorld is two storage nodes with a datastore and the machine "m" of the cluster k, whose
// volumes are m.home and m.root; the volume "free" is no machine's.
type accessWorld struct {
	a, b *Node
}

func newAccessWorld(t *testing.T) *accessWorld {
	t.Helper()
	a, b := startPair(t)
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
	group, volumes := groupService{a}, volumeService{a}
	_, err := group.CreateGroup(within(t), &steadfastv1.CreateGroupRequest{
		Name: "g", Nodes: []string{"a", "b"}, Pools: []string{"tank"}, Aliases: []*steadfastv1.GroupAlias{{Address: accessAlias + "/8"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the group is served", func() bool {
		r, err := group.GetGroup(within(t), &steadfastv1.GetGroupRequest{Name: "g"})
		return err == nil && r.Group.Owner == "a" && len(r.Group.InSync) == 2
	})
	keeper := handed.NewKeeper(handed.Options{Nodes: sockets, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(keeper.Close)
	if _, err := keeper.Hold(netip.AddrPortFrom(netip.MustParseAddr(accessAlias), config.DefaultPort), "g"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"m.home", "m.root", "free"} {
		if _, err := volumes.CreateVolume(within(t), &steadfastv1.CreateVolumeRequest{Name: name, SizeBytes: 8 << 20, Group: "g"}); err != nil {
			t.Fatal(err)
		}
	}
	w := &accessWorld{a, b}
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateDatacenter("dc") })
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateCluster("k", "dc", true) })
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.CreateCluster("other", "dc", true) })
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.AddDatastore("ds", "dc", "g") })
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) {
		return v.CreateMachine(inventory.Machine{
			Name: "m", ID: strings.Repeat("01", 16), Cluster: "k", Datastore: "ds", Home: "m.home",
			Hardware: inventory.Hardware{Memory: 64 << 20, Disks: []inventory.Disk{{Name: "root", Volume: "m.root", Bytes: 8 << 20}}},
		})
	})
	return w
}

func (w *accessWorld) amend(t *testing.T, rule func(*inventory.View) ([]quorum.Edit, error)) {
	t.Helper()
	if _, err := w.a.amend(within(t), rule); err != nil {
		t.Fatal(err)
	}
}

// host starts a host and adds it to a cluster.
func (w *accessWorld) host(t *testing.T, name, cluster string) *Node {
	t.Helper()
	n := startHostNode(t, w.a, name)
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.AddHost(name, cluster, inventory.Links{}) })
	eventually(t, "the host knows that it is one", func() bool {
		v, err := n.site()
		return err == nil && v.Hosts[name] != nil
	})
	return n
}

// open opens a volume as a member does; each ISID is used once.
func openAs(t *testing.T, n *Node, volume string, isid byte) (host.Volume, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := n.inCluster()
	if err != nil {
		t.Fatal(err)
	}
	for {
		v, err := c.openVolume(ctx, host.At{Group: "g", Volume: volume}, iscsi.ISID{0x80, isid})
		if !fault.Is(err, fault.Busy) && !fault.Is(err, fault.Unreachable) || ctx.Err() != nil {
			return v, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// try logs in by a Config, and returns how that ended.
func try(t *testing.T, cfg initiator.Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	cfg.ISID, cfg.Log = iscsi.ISID{0x80, 0xff}, slog.New(slog.DiscardHandler)
	d, err := initiator.Open(ctx, cfg)
	if err == nil {
		_ = d.Close()
	}
	return err
}

// TestMembersAccess: a host reaches the volumes of its cluster's machines over real sockets,
// with a secret that a storage node gave it, across a move of the group; nobody else's volumes,
// nor as anybody else. A host of another cluster is refused, and so is one that was removed, at
// once. Storage nodes reach all volumes of the datastore.
func TestMembersAccess(t *testing.T) {
	w := newAccessWorld(t)
	h, x := w.host(t, "h", "k"), w.host(t, "x", "other")
	v, err := openAs(t, h, "m.root", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	want, got := bytes.Repeat([]byte("steadfast"), block.SectorSize)[:block.SectorSize], make([]byte, block.SectorSize)
	if err := v.WriteAt(want, 0, block.FUA); err != nil {
		t.Fatal(err)
	}

	// The group moves, and the disk goes on.
	if _, err := (groupService{w.a}).MoveGroup(within(t), &steadfastv1.MoveGroupRequest{Name: "g", To: "b"}); err != nil {
		t.Fatal(err)
	}
	if err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("after a move it reads %.20q, %v", got, err)
	}
	name := memberPrefix(h.cluster.id.Cluster()) + "h"
	sessions, err := (sessionService{w.b}).ListSessions(within(t), &steadfastv1.ListSessionsRequest{})
	if err != nil || !slices.ContainsFunc(sessions.Sessions, func(s *steadfastv1.Session) bool { return s.Initiator == name }) {
		t.Errorf("the sessions are %v, %v", sessions, err)
	}

	// Nobody else's.
	if _, err := h.cluster.findVolume(within(t), host.At{Group: "g", Volume: "free"}); !fault.Is(err, fault.Denied) {
		t.Errorf("a volume that is no machine's: %v", err)
	}
	if _, err := h.cluster.findVolume(within(t), host.At{Group: "g", Volume: "none"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("a volume that is not there: %v", err)
	}
	if _, err := openAs(t, x, "m.root", 1); !fault.Is(err, fault.Denied) {
		t.Errorf("a host of another cluster: %v", err)
	}
	cfg, err := h.cluster.findVolume(within(t), host.At{Group: "g", Volume: "m.home"})
	if err != nil {
		t.Fatal(err)
	}
	if err := try(t, cfg); err != nil {
		t.Errorf("the home volume: %v", err)
	}
	spec, _ := w.a.cluster.groups.Group("g")
	free, _ := spec.Spec().Volume("free")
	wrong := cfg
	wrong.LUN = int(free.Number)
	if err := try(t, wrong); err == nil {
		t.Error("it opens a volume that is no machine's")
	}
	theirs, err := x.cluster.paths.prove(within(t), x.cluster.member.State().Roll.Members["x"])
	if err != nil {
		t.Fatal(err)
	}
	for what, credentials := range map[string][3]string{
		"another host as itself":                {memberPrefix(h.cluster.id.Cluster()) + "x", memberPrefix(h.cluster.id.Cluster()) + "x", theirs},
		"another host under this one's name":    {name, name, theirs},
		"another host by its own CHAP name":     {name, memberPrefix(h.cluster.id.Cluster()) + "x", theirs},
		"a host as a storage node":              {memberPrefix(h.cluster.id.Cluster()) + "a", name, string(cfg.Auth.In.Secret)},
		"somebody whom the cluster never knew":  {memberPrefix(h.cluster.id.Cluster()) + "y", name, string(cfg.Auth.In.Secret)},
		"somebody who has found out its secret": {"iqn.2026-11.example:thief", name, string(cfg.Auth.In.Secret)},
	} {
		as := cfg
		as.Initiator, as.Auth = credentials[0], iscsi.Auth{In: &iscsi.Credentials{Name: credentials[1], Secret: []byte(credentials[2])}}
		if err := try(t, as); !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	none := cfg
	none.Auth = iscsi.Auth{}
	if err := try(t, none); err == nil {
		t.Error("it logs in without a proof")
	}

	// A storage node, the owner or not.
	for i, n := range []*Node{w.a, w.b} {
		d, err := openAs(t, n, "free", byte(i+1))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.WriteAt(want, 0, 0); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}

	// One that is removed.
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.RemoveHost("h") })
	eventually(t, "the host's sessions end", func() bool {
		list, err := (sessionService{w.b}).ListSessions(within(t), &steadfastv1.ListSessionsRequest{})
		return err == nil && !slices.ContainsFunc(list.Sessions, func(s *steadfastv1.Session) bool { return s.Initiator == name })
	})
	if err := try(t, cfg); !fault.Is(err, fault.Denied) {
		t.Errorf("a host that was removed: %v", err)
	}
	if _, err := openAs(t, h, "m.root", 2); !fault.Is(err, fault.Denied) {
		t.Errorf("a host that was removed asks for a volume: %v", err)
	}
}

// TestReplacedHost: a host that leaves, and another that joins under its name before a node looks
// again, are not taken for one another: the session of the old one ends, and its secret is
// worth nothing.
func TestReplacedHost(t *testing.T) {
	w := newAccessWorld(t)
	h := w.host(t, "h", "k")
	v, err := openAs(t, h, "m.root", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	old, err := h.cluster.findVolume(within(t), host.At{Group: "g", Volume: "m.root"})
	if err != nil {
		t.Fatal(err)
	}
	held := func() (ids []int32) {
		list, err := (sessionService{w.a}).ListSessions(within(t), &steadfastv1.ListSessionsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list.Sessions {
			if s.Initiator == old.Initiator {
				ids = append(ids, s.Id)
			}
		}
		return ids
	}
	if len(held()) != 1 {
		t.Fatalf("the host has the sessions %v", held())
	}
	// The owner does not look meanwhile. The other node decides with the host.
	w.a.admin.Lock()
	unlock := sync.OnceFunc(w.a.admin.Unlock)
	defer unlock()
	change := func(rule func(*inventory.View) ([]quorum.Edit, error)) {
		if _, err := w.b.amend(within(t), rule); err != nil {
			t.Fatal(err)
		}
	}
	change(func(v *inventory.View) ([]quorum.Edit, error) { return v.RemoveHost("h") })
	if err := w.b.cluster.member.RemoveMember(within(t), "h"); err != nil {
		t.Fatal(err)
	}
	next := startHostNode(t, w.b, "h")
	change(func(v *inventory.View) ([]quorum.Edit, error) { return v.AddHost("h", "k", inventory.Links{}) })
	if len(held()) != 1 {
		t.Fatal("the owner has looked")
	}
	unlock()
	eventually(t, "the session of the old host ends", func() bool { return len(held()) == 0 })
	if err := try(t, old); !fault.Is(err, fault.Denied) {
		t.Errorf("the old host's secret: %v", err)
	}
	eventually(t, "the new host knows the machine", func() bool {
		v, err := next.site()
		return err == nil && v.Hosts["h"] != nil && v.Machines["m"] != nil
	})
	again, err := openAs(t, next, "m.root", 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// TestGetAccess: a host is told its secret over its own connection to a storage node, and nobody
// else is told anything.
func TestGetAccess(t *testing.T) {
	a, b := startPair(t)
	h := startHostNode(t, a, "h")
	me := func(n *Node) *quorum.Record {
		var r *quorum.Record
		eventually(t, "it knows that it is a member", func() bool {
			r = n.cluster.member.State().Roll.Members[n.cluster.member.Self().Member]
			return r != nil
		})
		return r
	}
	for _, from := range []quorum.Member{"a", "b"} {
		eventually(t, "node "+string(from)+" tells", func() bool {
			secret, err := h.cluster.paths.ask(within(t), from)
			want, err2 := a.cluster.secretOf(me(h))
			if err == nil && (err2 != nil || secret != want || len(secret) < 32) {
				t.Fatalf("%q, %v; want %q, %v", secret, err, want, err2)
			}
			return err == nil
		})
	}
	if s, err := a.cluster.secretOf(me(a)); err != nil || s == "" {
		t.Error(err)
	}
	if _, err := h.cluster.secretOf(me(h)); !fault.Is(err, fault.Denied) {
		t.Errorf("a host makes secrets: %v", err)
	}
	if _, err := b.cluster.paths.ask(within(t), "a"); !fault.Is(err, fault.Denied) {
		t.Errorf("a storage node is told one: %v", err)
	}
	if _, err := a.cluster.paths.ask(within(t), "h"); err == nil {
		t.Error("a host tells one")
	}
	if _, err := (machineService{n: a}).GetAccess(within(t), &steadfastv1.GetAccessRequest{}); !fault.Is(err, fault.Denied) {
		t.Errorf("the node's own socket tells one: %v", err)
	}
	// What one member passes on for others is not its own question.
	for _, passedOn := range []bool{false, true} {
		err := askOver(t, h, "a", passedOn)
		if passedOn != fault.Is(err, fault.Denied) || !passedOn && err != nil {
			t.Errorf("passed on: %v: %v", passedOn, err)
		}
	}
}

// TestMembersNames: initiators of members' names are not made, changed, mapped or unmapped by
// people.
func TestMembersNames(t *testing.T) {
	a := startStorage(t)
	name := "iqn.2026-11.io.steadfast:0123456789abcdef:member:h"
	initiators, volumes := initiatorService{a}, volumeService{a}
	if _, err := initiators.AddInitiator(within(t), &steadfastv1.AddInitiatorRequest{Name: name}); err != nil {
		t.Errorf("in no cluster, and not its own: %v", err)
	}
	if _, err := (clusterService{a}).InitCluster(within(t), &steadfastv1.InitClusterRequest{Name: "a", Address: freeAddress(t)}); err != nil {
		t.Fatal(err)
	}
	if _, err := initiators.RemoveInitiator(within(t), &steadfastv1.RemoveInitiatorRequest{Name: name}); err != nil {
		t.Errorf("another cluster's: %v", err)
	}
	name = memberPrefix(a.cluster.id.Cluster()) + "h"
	for _, name := range []string{name, strings.ToUpper(name[:3]) + name[3:]} {
		_, err := initiators.AddInitiator(within(t), &steadfastv1.AddInitiatorRequest{Name: name})
		_, err2 := initiators.SetInitiator(within(t), &steadfastv1.SetInitiatorRequest{Name: name})
		_, err3 := initiators.RemoveInitiator(within(t), &steadfastv1.RemoveInitiatorRequest{Name: name})
		_, err4 := volumes.UnmapVolume(within(t), &steadfastv1.UnmapVolumeRequest{Volume: "v", Initiator: name})
		_, err5 := a.findInitiatorOrGroup(name) // which mapping asks
		for what, err := range map[string]error{"add": err, "set": err2, "remove": err3, "unmap": err4, "map": err5} {
			if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "a member of the cluster") {
				t.Errorf("%s %s: %v", what, name, err)
			}
		}
	}
}

// askOver calls GetAccess as a member, as it would for itself or for somebody else.
func askOver(t *testing.T, n *Node, to quorum.Member, passedOn bool) error {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return n.cluster.member.Dial(ctx, to, protoAPI)
		},
	}}
	mark := connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			if passedOn {
				req.Header().Set(forwardedHeader, "1")
			}
			return next(ctx, req)
		}
	}))
	_, err := steadfastv1connect.NewMachineServiceClient(client, "http://"+string(to), mark).GetAccess(within(t), &steadfastv1.GetAccessRequest{})
	return apierror.FromConnect(err)
}

// TestEditsReal: a storage node that does not own the group writes into a machine's volumes
// under its lock, by real reservations; another that has a later generation fences it.
func TestEditsReal(t *testing.T) {
	w := newAccessWorld(t)
	id := vmlock.ID{}
	for i := range id {
		id[i] = 1
	}
	home, err := openAs(t, w.b, "m.home", 0x70)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(vmhome.Format(home, id, 0), home.Close()); err != nil {
		t.Fatal(err)
	}
	edit := func(n *Node, isid byte, change func(*vmhome.Home, []block.Device) error) error {
		o := host.EditOptions{ID: strings.Repeat("01", 16), Owner: vmlock.Owner{Host: inventory.EditorNumber, Boot: inventory.EditorBoot}}
		_, err := n.amend(within(t), func(v *inventory.View) (edits []quorum.Edit, err error) {
			o.Generation, edits, err = v.ReserveGeneration("m")
			return edits, err
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range []string{"m.home", "m.root"} {
			v, err := openAs(t, n, name, isid+byte(i))
			if err != nil {
				t.Fatal(err)
			}
			o.Volumes = append(o.Volumes, v)
		}
		return host.Edit(within(t), o, change)
	}
	text := func(s string) []byte { return append([]byte(s), make([]byte, block.SectorSize-len(s))...) }
	err = edit(w.b, 0x10, func(home *vmhome.Home, disks []block.Device) error {
		if home.ID() != id {
			t.Errorf("the home is that of %v", home.ID())
		}
		if err := disks[0].WriteAt(text("first"), 0, 0); err != nil {
			return err
		}
		if err := edit(w.a, 0x20, func(_ *vmhome.Home, disks []block.Device) error { return disks[0].WriteAt(text("second"), 0, 0) }); err != nil {
			t.Errorf("the later one: %v", err)
		}
		return disks[0].WriteAt(text("third"), 0, 0)
	})
	if !fault.Is(err, fault.Fenced) {
		t.Errorf("the one that was fenced: %v", err)
	}
	got := make([]byte, block.SectorSize)
	v, err := openAs(t, w.a, "m.root", 0x30)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(v.ReadAt(got, 0), v.Close()); err != nil || !bytes.Equal(got, text("second")) {
		t.Errorf("the disk has %.20q, %v", got, err)
	}
}
