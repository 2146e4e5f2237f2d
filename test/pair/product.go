package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"steadfast/test/testbed"
)

// This file has every command by which the harness drives the product.

// Names of what the harness makes.
const (
	groupName = "g1"
	poolName  = "p"
)

// product is two nodes and a witness of this tree.
type product struct {
	world  *world
	bin    string
	volume []Volume
	// paths: the group is reached through the nodes' own portals, too.
	paths   bool
	members map[Member]*testbed.Daemon
}

func newProduct(w *world, bin string, volumes int, size int64, paths bool) *product {
	p := &product{world: w, bin: bin, paths: paths, members: map[Member]*testbed.Daemon{}}
	for range volumes {
		p.volume = append(p.volume, Volume{Size: size})
	}
	return p
}

// add makes a member's daemon, which does not run yet.
func (p *product) add(m Member) error {
	log, err := p.world.log(string(m))
	if err != nil {
		return err
	}
	d := &testbed.Daemon{Name: string(m), Space: p.world.spaces[m], Dir: p.world.dir(m), Bin: p.bin, Log: log}
	p.members[m] = d
	if m == Witness {
		d.Args = []string{"witness", "--data-dir", d.Data(), "--socket", d.Socket()}
		return nil
	}
	d.Args = []string{"node", "--config", d.Config()}
	return os.WriteFile(d.Config(), []byte(p.settings(m)), 0o600)
}

// settings is a node's configuration file. Its own portal is not the group's,
// which is on the alias, but for groups with several paths: then each node's has a
// tag of its own.
func (p *product) settings(m Member) string {
	tag := map[Member]int{NodeA: 1, NodeB: 2}[m]
	return fmt.Sprintf("data_dir = %q\nsocket = %q\ncache_size = \"64M\"\n[[portal]]\naddress = \"%s:3260\"\ngroup = %d\n",
		p.members[m].Data(), p.members[m].Socket(), address(m, front), tag)
}

// cluster makes one cluster of the three: a begins, the others join.
func (p *product) cluster(ctx context.Context) error {
	at := func(m Member) string { return address(m, back) + ":7400" }
	if _, err := p.members[NodeA].CLI(ctx, "cluster", "init", "--name", string(NodeA), "--address", at(NodeA)); err != nil {
		return err
	}
	for m, role := range map[Member]string{NodeB: "node", Witness: "witness"} {
		token, err := p.members[NodeA].CLI(ctx, "cluster", "token", "--role", role)
		if err != nil {
			return err
		}
		token, _, _ = strings.Cut(token, "\n")
		if _, err := p.members[m].CLI(ctx, "cluster", "join", "--name", string(m), "--address", at(m), token); err != nil {
			return err
		}
	}
	return nil
}

// storage makes pools, the group and its volumes.
func (p *product) storage(ctx context.Context) error {
	for _, m := range []Member{NodeA, NodeB} {
		if _, err := p.members[m].CLI(ctx, "pool", "create", poolName, p.world.poolPath(m), "--size", strconv.FormatInt(driveBytes, 10)); err != nil {
			return err
		}
	}
	create := []string{"group", "create", groupName, "--nodes", "a,b", "--pool", poolName, "--alias", aliasAddress + "/24%" + front}
	if p.paths {
		create = append(create, "--multipath")
	}
	if _, err := p.members[NodeA].CLI(ctx, create...); err != nil {
		return err
	}
	if _, err := p.members[NodeA].CLI(ctx, "initiator", "add", initiatorName); err != nil {
		return err
	}
	for i, v := range p.volume {
		name := fmt.Sprintf("v%d", i+1)
		_, err := p.members[NodeA].CLI(ctx, "volume", "create", name, "--size", strconv.FormatInt(v.Size, 10), "--group", groupName)
		if err != nil {
			return err
		}
		if _, err := p.members[NodeA].CLI(ctx, "volume", "map", name, "--initiator", initiatorName, "--lun", strconv.Itoa(i+1)); err != nil {
			return err
		}
	}
	return nil
}

// show asks the nodes for their group.
func (p *product) show(ctx context.Context) (testbed.GroupState, error) {
	return testbed.AskGroup(ctx, groupName, p.members[NodeA], p.members[NodeB])
}

// Move implements Pair.
func (p *product) Move(ctx context.Context) error {
	_, err := p.members[NodeA].CLI(ctx, "group", "move", groupName)
	return err
}

// Up implements Pair.
func (p *product) Up(ctx context.Context) error {
	for _, m := range []Member{NodeA, NodeB, Witness} {
		if err := p.add(m); err != nil {
			return err
		}
		if err := p.Start(ctx, m); err != nil {
			return err
		}
	}
	if err := p.cluster(ctx); err != nil {
		return err
	}
	if err := p.storage(ctx); err != nil {
		return err
	}
	if _, err := awaitStatus(ctx, p, time.Minute, func(s Status) bool { return s.Whole }); err != nil {
		return err
	}
	g, err := p.show(ctx)
	if err != nil {
		return err
	}
	for i := range p.volume {
		p.volume[i].URL = fmt.Sprintf("iscsi://%s/%s/%d", portal, g.Target, i+1)
	}
	return nil
}

// Volumes implements Pair.
func (p *product) Volumes() []Volume { return p.volume }

// Status implements Pair.
func (p *product) Status(ctx context.Context) (Status, error) {
	g, err := p.show(ctx)
	s := Status{Owner: Member(g.Owner), Epoch: g.Epoch, Detail: g.Detail}
	s.Whole = g.InSync == 2 && p.members[NodeA].Runs() && p.members[NodeB].Runs() && p.members[Witness].Runs()
	return s, err
}

// Kill implements Pair.
func (p *product) Kill(m Member) error { return p.members[m].Kill() }

// Start implements Pair: it waits until the API answers.
func (p *product) Start(ctx context.Context, m Member) error { return p.members[m].Start(ctx) }

// PID implements Pair.
func (p *product) PID(m Member) int { return p.members[m].PID() }

// Folder implements Pair.
func (p *product) Folder(m Member) string { return p.world.dir(m) }

// Pause implements Pair.
func (p *product) Pause(m Member) error { return p.members[m].Pause() }

// Resume implements Pair.
func (p *product) Resume(m Member) error { return p.members[m].Resume() }

// Cannot implements Pair.
func (p *product) Cannot(string) string { return "" }

// Close implements Pair.
func (p *product) Close() error {
	var err error
	for m := range p.members {
		err = errors.Join(err, p.Kill(m))
	}
	return err
}
