package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
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
	paths bool
	procs map[Member]*testbed.Proc
	apis  map[Member]steadfastv1connect.GroupServiceClient
}

func newProduct(w *world, bin string, volumes int, size int64, paths bool) *product {
	p := &product{world: w, bin: bin, paths: paths, procs: map[Member]*testbed.Proc{}, apis: map[Member]steadfastv1connect.GroupServiceClient{}}
	for range volumes {
		p.volume = append(p.volume, Volume{Size: size})
	}
	return p
}

func (p *product) socket(m Member) string { return filepath.Join(p.world.dir(m), "api.sock") }

func (p *product) config(m Member) string { return filepath.Join(p.world.dir(m), "steadfast.toml") }

// command is a member's daemon.
func (p *product) command(m Member) []string {
	if m == Witness {
		return []string{p.bin, "witness", "--data-dir", filepath.Join(p.world.dir(m), "data"), "--socket", p.socket(m)}
	}
	return []string{p.bin, "node", "--config", p.config(m)}
}

// settings is a node's configuration file. Its own portal is not the group's,
// which is on the alias, but for groups with several paths: then each node's has a
// tag of its own.
func (p *product) settings(m Member) string {
	tag := map[Member]int{NodeA: 1, NodeB: 2}[m]
	return fmt.Sprintf("data_dir = %q\nsocket = %q\ncache_size = \"64M\"\n[[portal]]\naddress = \"%s:3260\"\ngroup = %d\n",
		filepath.Join(p.world.dir(m), "data"), p.socket(m), address(m, front), tag)
}

// cluster makes one cluster of the three: a begins, the others join.
func (p *product) cluster(ctx context.Context) error {
	at := func(m Member) string { return address(m, back) + ":7400" }
	if _, err := p.cli(ctx, NodeA, "cluster", "init", "--name", string(NodeA), "--address", at(NodeA)); err != nil {
		return err
	}
	for m, role := range map[Member]string{NodeB: "node", Witness: "witness"} {
		token, err := p.cli(ctx, NodeA, "cluster", "token", "--role", role)
		if err != nil {
			return err
		}
		token, _, _ = strings.Cut(token, "\n")
		if _, err := p.cli(ctx, m, "cluster", "join", "--name", string(m), "--address", at(m), token); err != nil {
			return err
		}
	}
	return nil
}

// storage makes pools, the group and its volumes.
func (p *product) storage(ctx context.Context) error {
	for _, m := range []Member{NodeA, NodeB} {
		if _, err := p.cli(ctx, m, "pool", "create", poolName, p.world.poolPath(m), "--size", strconv.FormatInt(driveBytes, 10)); err != nil {
			return err
		}
	}
	create := []string{"group", "create", groupName, "--nodes", "a,b", "--pool", poolName, "--alias", aliasAddress + "/24%" + front}
	if p.paths {
		create = append(create, "--multipath")
	}
	if _, err := p.cli(ctx, NodeA, create...); err != nil {
		return err
	}
	if _, err := p.cli(ctx, NodeA, "initiator", "add", initiatorName); err != nil {
		return err
	}
	for i, v := range p.volume {
		name := fmt.Sprintf("v%d", i+1)
		_, err := p.cli(ctx, NodeA, "volume", "create", name, "--size", strconv.FormatInt(v.Size, 10), "--group", groupName)
		if err != nil {
			return err
		}
		if _, err := p.cli(ctx, NodeA, "volume", "map", name, "--initiator", initiatorName, "--lun", strconv.Itoa(i+1)); err != nil {
			return err
		}
	}
	return nil
}

// show asks one node over its API: that is "group show", without a process for
// each question on a machine with few cores.
func (p *product) show(ctx context.Context, m Member) (*steadfastv1.Group, error) {
	ctx, cancel := context.WithTimeout(ctx, showPatience)
	defer cancel()
	if p.apis[m] == nil {
		p.apis[m] = steadfastv1connect.NewGroupServiceClient(&http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", p.socket(m))
			},
		}}, "http://node")
	}
	r, err := p.apis[m].GetGroup(ctx, &steadfastv1.GetGroupRequest{Name: groupName})
	if err != nil {
		return nil, err
	}
	return r.Group, nil
}

// showPatience is how long a node may take to say how it is: one that is
// stopped says nothing, and the other's answer waits for it.
const showPatience = 150 * time.Millisecond

// Move implements Pair.
func (p *product) Move(ctx context.Context) error {
	_, err := p.cli(ctx, NodeA, "group", "move", groupName)
	return err
}

// cli runs the command line against a member. What it prints to stderr is for
// the error only.
func (p *product) cli(ctx context.Context, m Member, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.bin, append([]string{"--socket", p.socket(m)}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fmt.Errorf("steadfast %s (on %s): %w", strings.Join(args, " "), m, err)
	}
	return string(out), nil
}

// Up implements Pair.
func (p *product) Up(ctx context.Context) error {
	for _, m := range []Member{NodeA, NodeB, Witness} {
		if err := os.WriteFile(p.config(m), []byte(p.settings(m)), 0o600); err != nil {
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
	status, err := awaitStatus(ctx, p, time.Minute, func(s Status) bool { return s.Whole })
	if err != nil {
		return err
	}
	g, err := p.show(ctx, status.Owner)
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

// Status implements Pair. The newest epoch is right: a node that was cut off
// still tells of the one it knew. Whole is what the node says that serves.
func (p *product) Status(ctx context.Context) (Status, error) {
	var best Status
	var says []string
	for _, m := range []Member{NodeA, NodeB} {
		g, err := p.show(ctx, m)
		if err != nil {
			says = append(says, fmt.Sprintf("%s: %v", m, err))
			continue
		}
		says = append(says, fmt.Sprintf("%s: %s, owner %q, epoch %d, in sync %v (%s) %s", m, g.State, g.Owner, g.Epoch, g.InSync, g.GetSync().GetState(), g.Problem))
		if g.Epoch < best.Epoch {
			continue
		}
		if g.Epoch > best.Epoch {
			best = Status{Epoch: g.Epoch}
		}
		if g.State == "serving" && (best.Owner == "" || m == Member(g.Owner)) {
			best.Owner = Member(g.Owner)
			best.Whole = len(g.InSync) == 2 && p.procs[NodeA] != nil && p.procs[NodeB] != nil && p.procs[Witness] != nil
		}
	}
	best.Detail = strings.Join(says, "; ")
	return best, ctx.Err()
}

// Kill implements Pair.
func (p *product) Kill(m Member) error {
	err := p.procs[m].Kill()
	delete(p.procs, m)
	return err
}

// Start implements Pair: it waits until the API answers.
func (p *product) Start(ctx context.Context, m Member) error {
	if p.procs[m] != nil {
		return nil
	}
	log, err := p.world.log(string(m))
	if err != nil {
		return err
	}
	if p.procs[m], err = testbed.StartProc(p.world.spaces[m], log, p.command(m)...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return p.procs[m].Await(ctx, func() error {
		_, err := p.cli(ctx, m, "status")
		return err
	})
}

// Pause implements Pair.
// PID implements Pair.
func (p *product) PID(m Member) int {
	if p.procs[m] == nil {
		return 0
	}
	return p.procs[m].PID()
}

// Folder implements Pair.
func (p *product) Folder(m Member) string { return p.world.dir(m) }

func (p *product) Pause(m Member) error { return p.procs[m].Signal(syscall.SIGSTOP) }

// Resume implements Pair.
func (p *product) Resume(m Member) error { return p.procs[m].Signal(syscall.SIGCONT) }

// Cannot implements Pair.
func (p *product) Cannot(string) string { return "" }

// Close implements Pair.
func (p *product) Close() error {
	var err error
	for m := range p.procs {
		err = errors.Join(err, p.Kill(m))
	}
	return err
}
