package node

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/host"
	"steadfast/compute/initiator"
	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/node/apierror"
	"steadfast/node/ha"
)

// accessTime bounds how long one storage node is asked for a host's secret.
const accessTime = 3 * time.Second

// paths are this member's ways to machines' volumes, as an initiator. Its methods may be
// called by several goroutines.
type paths struct {
	c    *cluster
	port uint16 // of the groups' alias portals
	log  *slog.Logger

	mu     sync.Mutex
	secret string // a host's; empty: not fetched yet
	// asking is taken by who fetches it: a host that begins opens all volumes of its machines
	// at once.
	asking chan struct{}
}

func newPaths(c *cluster, port uint16, log *slog.Logger) *paths {
	return &paths{c: c, port: port, log: log, asking: make(chan struct{}, 1)}
}

// findVolume says how this member reaches a volume of a group: all but the ISID. Fails
// with fault.NotFound when there is no such volume, fault.Denied when it is none of this
// member's, fault.Limit when its number is no LUN, and fault.Unreachable for what may be tried
// again.
func (c *cluster) findVolume(ctx context.Context, at host.At) (initiator.Config, error) {
	p := c.paths
	state := c.member.State()
	spec, v, err := specOf(state.Inventory.Entries, at)
	if err != nil {
		return initiator.Config{}, err
	}
	me := state.Roll.Members[c.member.Self().Member]
	if me == nil {
		return initiator.Config{}, fault.New(fault.Unreachable, "this member does not know yet that it is one; it tries again by itself")
	}
	name := memberPrefix(c.id.Cluster()) + string(me.Name)
	if err := mayReach(state, memberPrefix(c.id.Cluster()), name, spec, v); err != nil {
		return initiator.Config{}, err
	}
	secret, err := p.prove(ctx, me)
	if err != nil {
		return initiator.Config{}, err
	}
	cfg := initiator.Config{
		Initiator: name, Target: spec.Target, LUN: int(v.Number), Log: p.log.With("volume", v.Name),
		Auth: iscsi.Auth{In: &iscsi.Credentials{Name: name, Secret: []byte(secret)}},
	}
	for _, a := range spec.Aliases {
		cfg.Portals = append(cfg.Portals, netip.AddrPortFrom(a.Address.Addr(), p.port).String())
	}
	if len(cfg.Portals) == 0 {
		return cfg, fault.New(fault.NotFound, "group %q has no alias address to reach its volumes at; give it one: \"steadfast group set %s --add-alias\"", spec.Name, spec.Name)
	}
	return cfg, nil
}

// specOf returns a volume with its group.
func specOf(entries map[string][]byte, at host.At) (*ha.Spec, ha.Volume, error) {
	specs, err := ha.Specs(entries)
	i := slices.IndexFunc(specs, func(s *ha.Spec) bool { return s.Name == at.Group })
	switch {
	case i < 0 && err != nil:
		return nil, ha.Volume{}, err
	case i < 0:
		return nil, ha.Volume{}, fault.New(fault.NotFound, "group %q does not exist; see \"steadfast group list\"", at.Group)
	}
	v, ok := specs[i].Volume(at.Volume)
	switch {
	case !ok:
		return nil, ha.Volume{}, fault.New(fault.NotFound, "group %q has no volume %q; see \"steadfast volume list\"", at.Group, at.Volume)
	case v.Number > lunMax:
		return nil, ha.Volume{}, fault.New(fault.Limit, "volume %q is number %d of group %q, and hosts reach the first %d that a group ever had; make the machine in a datastore of another group", v.Name, v.Number, at.Group, lunMax)
	}
	return specs[i], v, nil
}

// mayReach fails with fault.Denied when the storage would not show a volume to a member, by what
// this member knows: to try again is of no use then. What a newer program wrote it leaves to the
// storage, which may be able to read of it.
func mayReach(state *quorum.State, prefix, initiator string, spec *ha.Spec, v ha.Volume) error {
	view, _ := inventory.Read(state.Inventory.Entries)
	r := deriveReach(prefix, []*ha.Spec{spec}, view, state.Roll, nil)
	for _, m := range r.view(spec.Target)[initiator] {
		if m.Volume == v.ID {
			return nil
		}
	}
	if unread(view, strings.TrimPrefix(initiator, prefix)) {
		return nil
	}
	if m := r.known[initiator]; m != nil && m.Role == quorum.RoleNode {
		return fault.New(fault.Denied, "group %q is no datastore; make it one: \"steadfast datastore add\"", spec.Name)
	}
	return fault.New(fault.Denied, "volume %q is of no machine of this host's cluster; see \"steadfast host list\"", v.Name)
}

// openVolume opens a volume on a new nexus: host.OpenFunc. What storage nodes refuse is tried
// again with a secret that is fetched anew (fault.Busy): they may not have heard yet of the
// machine, or of this member.
func (c *cluster) openVolume(ctx context.Context, at host.At, isid iscsi.ISID) (host.Volume, error) {
	cfg, err := c.findVolume(ctx, at)
	if err != nil {
		return nil, err
	}
	cfg.ISID = isid
	d, err := initiator.Open(ctx, cfg)
	switch {
	case err == nil:
		return d, nil
	case fault.Is(err, fault.Denied):
		c.paths.forget(string(cfg.Auth.In.Secret))
		return nil, fault.Wrap(fault.Busy, err, "the storage does not let this member in yet")
	case fault.Is(err, fault.NotFound):
		// By the inventory it is there, so a node has yet to follow.
		return nil, fault.Wrap(fault.Busy, err, "the storage does not have the volume yet")
	}
	return nil, err
}

// prove returns this member's secret.
func (p *paths) prove(ctx context.Context, me *quorum.Record) (string, error) {
	if me.Role == quorum.RoleNode {
		return p.c.secretOf(me)
	}
	return p.once(ctx, p.fetch)
}

// once returns the secret that is known, or has one caller at a time fetch it.
func (p *paths) once(ctx context.Context, fetch func(context.Context) (string, error)) (string, error) {
	known := func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.secret
	}
	if secret := known(); secret != "" {
		return secret, nil
	}
	select {
	case p.asking <- struct{}{}:
	case <-ctx.Done():
		return "", fault.Wrap(fault.Unreachable, context.Cause(ctx), "what this host proves to storage nodes is being asked for")
	}
	defer func() { <-p.asking }()
	if secret := known(); secret != "" {
		return secret, nil // another has fetched it meanwhile
	}
	secret, err := fetch(ctx)
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	p.secret = secret
	p.mu.Unlock()
	return secret, nil
}

// forget has a secret that was refused be fetched again.
func (p *paths) forget(secret string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.secret == secret {
		p.secret = ""
	}
}

// fetch asks storage nodes for this host's secret, those first that were heard last. Fails with
// fault.Unreachable.
func (p *paths) fetch(ctx context.Context) (string, error) {
	var nodes []quorum.Member
	for _, r := range p.c.member.State().Roll.Sorted() {
		if r.Role == quorum.RoleNode {
			nodes = append(nodes, r.Name)
		}
	}
	ages := p.c.member.Reachable()
	age := func(m quorum.Member) time.Duration {
		if a, ok := ages[m]; ok {
			return a.Age.Truncate(time.Second)
		}
		return 1<<63 - 1
	}
	slices.SortStableFunc(nodes, func(a, b quorum.Member) int { return cmp.Compare(age(a), age(b)) })
	var failed error
	for _, n := range nodes {
		secret, err := p.ask(ctx, n)
		if err == nil {
			return secret, nil
		}
		failed = errors.Join(failed, fault.Wrap(fault.KindOf(err), err, "node "+string(n)))
	}
	if failed == nil {
		failed = fault.New(fault.NotFound, "the cluster has no storage node")
	}
	return "", fault.Wrap(fault.Unreachable, failed, "no storage node tells this host what it proves to them; it tries again by itself")
}

// ask asks one storage node.
func (p *paths) ask(ctx context.Context, node quorum.Member) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, accessTime)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return p.c.member.Dial(ctx, node, protoAPI)
		},
	}}
	r, err := steadfastv1connect.NewMachineServiceClient(client, "http://"+string(node)).GetAccess(ctx, &steadfastv1.GetAccessRequest{})
	if err != nil {
		return "", apierror.FromConnect(err)
	}
	return r.ChapSecret, nil
}
