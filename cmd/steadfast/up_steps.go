package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
)

// setUp makes what is not there yet, by the commands that an administrator types,
// and finds how the volumes are reached.
func (p *pair) setUp(ctx context.Context) error {
	for _, do := range []func(context.Context) error{p.makePools, p.makeCluster, p.makeGroup, p.makeVolumes, p.openVolumes} {
		if err := do(ctx); err != nil {
			return err
		}
	}
	return nil
}

// step runs a command of ours, and shows it and what it answered. in is what it
// reads, if anything.
func (p *pair) step(ctx context.Context, member string, in io.Reader, args ...string) error {
	_, err := p.command(ctx, member, in, "", args)
	return err
}

// command runs a command on a member, and returns what it printed; shown is what the
// shell would be told besides (a redirection).
func (p *pair) command(ctx context.Context, member string, in io.Reader, shown string, args []string) (string, error) {
	return p.run(ctx, in, io.Discard, shown, append([]string{"--socket", p.socket(member)}, args...))
}

// run runs a command, and returns what it printed. What it says of its progress goes
// to notes.
func (p *pair) run(ctx context.Context, in io.Reader, notes io.Writer, shown string, args []string) (string, error) {
	p.showHeading()
	p.screen.say("$ %s %s%s", os.Args[0], strings.Join(args, " "), shown)
	var out bytes.Buffer
	sub := &app{in: new(bytes.Reader), out: &out, errs: notes, getenv: p.a.getenv, output: "table"}
	if in != nil {
		sub.in = in
	}
	root := sub.root()
	root.SetArgs(args)
	if err := root.ExecuteContext(ctx); err != nil {
		return "", fault.Wrap(fault.KindOf(err), err, "steadfast "+strings.Join(verb(args), " "))
	}
	text := out.String()
	if !strings.Contains(shown, ">") {
		for line := range strings.Lines(text) {
			p.screen.say("  %s", strings.TrimSuffix(line, "\n"))
		}
	}
	return text, nil
}

// heading names what is done next. It is shown when something is: what is there already needs
// no words.
func (p *pair) heading(text string) { p.next = text }

func (p *pair) showHeading() {
	if p.next != "" {
		p.screen.say("\n%s", p.next)
	}
	p.next = ""
}

// verb are the words of a command that say what is done.
func verb(args []string) []string {
	if len(args) > 2 && args[0] == "--socket" {
		args = args[2:]
	}
	return args[:min(2, len(args))]
}

func (p *pair) makePools(ctx context.Context) error {
	p.heading("Two storage nodes: a pool on each")
	for _, n := range nodes {
		r, err := p.at(n).pools().ListPools(ctx, &steadfastv1.ListPoolsRequest{})
		if err != nil {
			return err
		}
		if len(r.Pools) > 0 {
			continue
		}
		file, err := filepath.Abs(p.path(filepath.Join(n, "pool.img")))
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "cannot tell where "+p.dir+" is")
		}
		if err := p.step(ctx, n, nil, "pool", "create", upPool, file, "--size", flagSize(p.options.poolSize)); err != nil {
			return err
		}
	}
	return nil
}

func (p *pair) makeCluster(ctx context.Context) error {
	p.heading("A cluster: the two nodes and a witness decide together who may act")
	for _, m := range []struct{ name, role string }{{nodes[0], ""}, {nodes[1], "node"}, {upWitness, "witness"}} {
		if _, err := p.makeMember(ctx, m.name, m.role); err != nil {
			return err
		}
	}
	return nil
}

// makeMember makes a member of who is none yet, and tells whether it did; the first has no
// role to be given.
func (p *pair) makeMember(ctx context.Context, name, role string) (made bool, err error) {
	_, err = p.at(name).clusters().GetCluster(ctx, &steadfastv1.GetClusterRequest{})
	switch {
	case err == nil || !fault.Is(err, fault.NotFound):
		return false, err
	case role == "":
		return true, p.step(ctx, name, nil, "cluster", "init", "--name", name, "--address", p.members[name])
	}
	return true, p.join(ctx, name, role)
}

// join makes a member of another than the first. The token is a secret, and is
// handed on unseen.
func (p *pair) join(ctx context.Context, m, role string) error {
	token, err := p.command(ctx, nodes[0], nil, " > token", []string{"cluster", "token", "--role", role})
	if err != nil {
		return err
	}
	_, err = p.command(ctx, m, strings.NewReader(token), " < token", []string{"cluster", "join", "-", "--name", m, "--address", p.members[m]})
	return err
}

func (p *pair) makeGroup(ctx context.Context) error {
	p.heading("An HA pair: a resource group on both nodes, with an alias IP that goes where it is served")
	r, err := p.at(nodes[0]).groups().ListGroups(ctx, &steadfastv1.ListGroupsRequest{})
	if err != nil {
		return err
	}
	fresh := !slices.ContainsFunc(r.Groups, func(g *steadfastv1.Group) bool { return g.Name == upGroup })
	if fresh {
		alias := fmt.Sprintf("%s/8", p.portal.Addr())
		if err := p.step(ctx, nodes[0], nil, "group", "create", upGroup, "--nodes", strings.Join(nodes[:], ","), "--pool", upPool, "--alias", alias); err != nil {
			return err
		}
	}
	g, err := p.awaitGroup(ctx, "served", startTime, func(g *steadfastv1.Group) bool { return g.State == "serving" && g.Owner != "" })
	if err != nil {
		return err
	}
	p.target = g.Target
	if !fresh {
		return nil
	}
	if _, err = p.awaitGroup(ctx, "in sync", syncTime, inSync); err != nil {
		return err
	}
	return p.step(ctx, nodes[0], nil, "group", "show", upGroup)
}

// makeVolumes makes the volume that is verified; and the user's, unless he has had it
// and done away with it.
func (p *pair) makeVolumes(ctx context.Context) error {
	g, err := p.group(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(g.Volumes, upChecked) {
		return nil
	}
	p.heading("Volumes in it: each write is on both nodes before it is answered")
	for _, v := range []struct {
		name string
		size int64
	}{{upVolume, p.options.volumeSize}, {upChecked, upCheckedSize}} {
		if slices.Contains(g.Volumes, v.name) {
			continue
		}
		if err := p.step(ctx, nodes[0], nil, "volume", "create", v.name, "--size", flagSize(v.size), "--group", upGroup); err != nil {
			return err
		}
	}
	return nil
}

// openVolumes opens the volumes to anyone on loopback. There is no command for that.
func (p *pair) openVolumes(ctx context.Context) error {
	g, err := p.group(ctx)
	if err != nil {
		return err
	}
	for _, v := range []string{upVolume, upChecked} {
		if !slices.Contains(g.Volumes, v) {
			continue
		}
		_, lun, err := p.admit(ctx, v)
		if err != nil {
			return fault.Wrap(fault.KindOf(err), err, "volume "+v+" cannot be opened")
		}
		p.screen.say("volume %q is LUN %d of %s, for ANYONE on loopback", v, lun, p.target)
		if v == upVolume {
			p.lun = lun
		} else {
			p.checked = lun
		}
	}
	return nil
}

// flagSize is a size as one types it.
func flagSize(bytes int64) string {
	for i, unit := range []string{"T", "G", "M", "K"} {
		if n := int64(1) << (40 - 10*i); bytes%n == 0 {
			return fmt.Sprintf("%d%s", bytes/n, unit)
		}
	}
	return fmt.Sprint(bytes)
}
