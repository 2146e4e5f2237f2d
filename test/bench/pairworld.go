package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/api/steadfast/v1/steadfastv1connect"
	"steadfast/test/testbed"
)

// The machines of a pair, by their index in pairWorld: two nodes and a witness.
const (
	nodeA = iota
	nodeB
	witness
	machines
)

// Networks: clients and aliases on front, what the members say to each other and
// the mirror on back. Only back is shaped.
const (
	frontNet = "front"
	backNet  = "back"
)

// What each node has. The drives are a little slower than the link, and both far
// slower than what they share here.
const (
	linkBytesPerSecond  = 125e6 // 1 Gbit/s
	linkBurstBytes      = 16000
	linkQueueBytes      = 1 << 20
	driveBytesPerSecond = 100e6
	pairPoolBytes       = 8 << 30
	pairCacheMiB        = 512
	pairVolumeBytes     = 128 << 20
	resyncVolumeBytes   = 1 << 30
)

// linkRest is how long the link must be idle for its burst to be there again.
const linkRest = time.Duration(1.1 * linkBurstBytes / linkBytesPerSecond * float64(time.Second))

// A pairVolume is a volume of the pair's world.
type pairVolume struct {
	name, group string // no group: of node a alone
	lun         int
	size        int64
	writeCache  bool
}

// The volumes: mirrored ones of g1, which a owns, and of g2, which b owns; and
// what they are held against.
var (
	localDurable  = pairVolume{name: "l1", lun: 1, size: pairVolumeBytes}
	localCached   = pairVolume{name: "l2", lun: 2, size: pairVolumeBytes, writeCache: true}
	mirrorDurable = pairVolume{name: "m1", group: "g1", lun: 1, size: pairVolumeBytes}
	mirrorCached  = pairVolume{name: "m2", group: "g1", lun: 2, size: pairVolumeBytes, writeCache: true}
	mirrorResync  = pairVolume{name: "m3", group: "g1", lun: 3, size: resyncVolumeBytes}
	otherDurable  = pairVolume{name: "o1", group: "g2", lun: 1, size: pairVolumeBytes}
)

// pairGroups are the groups with the index of the node that owns each.
var pairGroups = map[string]int{"g1": nodeA, "g2": nodeB}

// pairWorld is two nodes, a witness and a client, each in a network namespace,
// and a folder of files. All of it goes with this process, but for folder and
// control groups, which Close removes, or the next run.
type pairWorld struct {
	bin    string
	folder *testbed.Folder
	net    *testbed.Switch
	spaces [machines]*testbed.Space
	client *testbed.Space
	drives [2]*testbed.Throttle
	procs  [machines]*testbed.Proc
	logs   [machines]*os.File
	apis   [2]steadfastv1connect.GroupServiceClient
	urls   map[string]string // of volumes, by name
}

// errNoWorld wraps why this machine cannot have a pair's world.
var errNoWorld = errors.New("mirrored rows need what is not here")

// newPairWorld makes networks, drives and folder in parent; no process yet.
func newPairWorld(parent, bin string) (w *pairWorld, err error) {
	w = &pairWorld{bin: bin, urls: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(errNoWorld, err, w.Close())
		}
	}()
	if w.folder, err = testbed.NewFolder(parent, "steadfast-bench-pair"); err != nil {
		return w, err
	}
	if w.net, err = testbed.NewSwitch(frontNet, backNet); err != nil {
		return w, err
	}
	for m := range w.spaces {
		if err := w.addMachine(m); err != nil {
			return w, err
		}
	}
	for node := range w.drives {
		shape := testbed.Shape{BytesPerSecond: linkBytesPerSecond, BurstBytes: linkBurstBytes, QueueBytes: linkQueueBytes}
		if err := w.spaces[node].Shape(backNet, shape); err != nil {
			return w, err
		}
		if w.drives[node], err = testbed.NewThrottle(w.dir(node)); err != nil {
			return w, err
		}
		if err := w.drives[node].Set(driveBytesPerSecond); err != nil {
			return w, err
		}
	}
	if w.client, err = testbed.NewSpace(); err != nil {
		return w, err
	}
	return w, w.net.Attach(w.client, frontNet, "c-front", frontNet, netip.MustParsePrefix("10.78.0.9/24"))
}

// addMachine makes a machine's folder, namespace and links.
func (w *pairWorld) addMachine(m int) (err error) {
	if err := os.Mkdir(w.dir(m), 0o755); err != nil {
		return err
	}
	if w.logs[m], err = os.OpenFile(filepath.Join(w.dir(m), "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return err
	}
	if w.spaces[m], err = testbed.NewSpace(); err != nil {
		return err
	}
	for _, network := range []string{frontNet, backNet} {
		port := memberName(m) + "-" + network
		if err := w.net.Attach(w.spaces[m], network, port, network, netip.PrefixFrom(memberAddress(m, network), 24)); err != nil {
			return err
		}
	}
	return nil
}

func memberName(m int) string { return [machines]string{"a", "b", "w"}[m] }

func memberAddress(m int, network string) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 78, map[string]byte{frontNet: 0, backNet: 1}[network], byte(m + 1)})
}

// aliasOf is the address that follows a group's owner.
func aliasOf(group string) string {
	return map[string]string{"g1": "10.78.0.51", "g2": "10.78.0.52"}[group]
}

func (w *pairWorld) dir(m int) string { return filepath.Join(w.folder.Path, memberName(m)) }

func (w *pairWorld) socket(m int) string { return filepath.Join(w.dir(m), "api.sock") }

// command is a member's daemon; a node's is bounded by its drive.
func (w *pairWorld) command(m int) []string {
	if m == witness {
		return []string{w.bin, "witness", "--data-dir", filepath.Join(w.dir(m), "data"), "--socket", w.socket(m)}
	}
	return w.drives[m].Command(w.bin, "node", "--config", filepath.Join(w.dir(m), "steadfast.toml"))
}

// start starts a member and waits until its API answers.
func (w *pairWorld) start(ctx context.Context, m int) (err error) {
	if w.procs[m], err = testbed.StartProc(w.spaces[m], w.logs[m], w.command(m)...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return w.procs[m].Await(ctx, func() error {
		_, err := w.cli(ctx, m, "status")
		return err
	})
}

// kill ends a member as a crash does.
func (w *pairWorld) kill(m int) error {
	err := w.procs[m].Kill()
	w.procs[m] = nil
	return err
}

// cli runs the command line against a member.
func (w *pairWorld) cli(ctx context.Context, m int, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, w.bin, append([]string{"--socket", w.socket(m)}, args...)...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		return "", fmt.Errorf("steadfast %s (on %s): %w", strings.Join(args, " "), memberName(m), err)
	}
	return string(out), nil
}

// up starts everything, makes cluster, groups and volumes, and waits until both
// nodes have all of it.
func (w *pairWorld) up(ctx context.Context) error {
	for m := range w.procs {
		settings := fmt.Sprintf("data_dir = %q\nsocket = %q\ncache_size = \"%dM\"\n[[portal]]\naddress = \"%v:3260\"\n",
			filepath.Join(w.dir(m), "data"), w.socket(m), pairCacheMiB, memberAddress(m, frontNet))
		if err := os.WriteFile(filepath.Join(w.dir(m), "steadfast.toml"), []byte(settings), 0o600); err != nil {
			return err
		}
		if err := w.start(ctx, m); err != nil {
			return err
		}
	}
	if err := w.cluster(ctx); err != nil {
		return err
	}
	if err := w.groups(ctx); err != nil {
		return err
	}
	if err := w.whole(ctx); err != nil {
		return err
	}
	for _, v := range []pairVolume{localDurable, localCached, mirrorDurable, mirrorCached, mirrorResync, otherDurable} {
		if err := w.volume(ctx, v); err != nil {
			return err
		}
	}
	return w.whole(ctx)
}

// cluster makes one cluster of the three.
func (w *pairWorld) cluster(ctx context.Context) error {
	at := func(m int) string { return memberAddress(m, backNet).String() + ":7400" }
	if _, err := w.cli(ctx, nodeA, "cluster", "init", "--name", memberName(nodeA), "--address", at(nodeA)); err != nil {
		return err
	}
	for _, m := range []int{nodeB, witness} {
		role := "node"
		if m == witness {
			role = "witness"
		}
		token, err := w.cli(ctx, nodeA, "cluster", "token", "--role", role)
		if err != nil {
			return err
		}
		token, _, _ = strings.Cut(token, "\n")
		if _, err := w.cli(ctx, m, "cluster", "join", "--name", memberName(m), "--address", at(m), token); err != nil {
			return err
		}
	}
	return nil
}

// written makes a pool's file that holds data everywhere, as a drive does: of a sparse one
// a node writes each segment once more before it first uses it, which would be half of
// what its bounded drive has to do here.
func written(ctx context.Context, file string) error {
	const at = 4 << 20
	out, err := exec.CommandContext(ctx, "dd", "if=/dev/zero", "of="+file, "oflag=direct", "status=none",
		fmt.Sprintf("bs=%d", at), fmt.Sprintf("count=%d", pairPoolBytes/at)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("write a pool's file: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// groups makes pools, groups, a target of node a's own, and admits the generator.
func (w *pairWorld) groups(ctx context.Context) error {
	var commands [][]string
	for _, m := range []int{nodeA, nodeB} {
		file := filepath.Join(w.dir(m), "pool")
		if err := written(ctx, file); err != nil {
			return err
		}
		if _, err := w.cli(ctx, m, "pool", "create", "p", file); err != nil {
			return err
		}
	}
	for _, name := range []string{"g1", "g2"} {
		nodes := "a,b"
		if pairGroups[name] == nodeB {
			nodes = "b,a"
		}
		commands = append(commands, []string{"group", "create", name, "--nodes", nodes, "--pool", "p", "--alias", aliasOf(name) + "/24%" + frontNet})
	}
	commands = append(commands, []string{"target", "create", testbed.Target}, []string{"initiator", "add", generatorName})
	for _, args := range commands {
		if _, err := w.cli(ctx, nodeA, args...); err != nil {
			return err
		}
	}
	return nil
}

// volume makes a volume and notes where it is reached.
func (w *pairWorld) volume(ctx context.Context, v pairVolume) error {
	create := []string{"volume", "create", v.name, "--size", strconv.FormatInt(v.size, 10)}
	mapped := []string{"volume", "map", v.name, "--initiator", generatorName, "--lun", strconv.Itoa(v.lun)}
	portal, target := memberAddress(nodeA, frontNet).String(), testbed.Target
	if v.writeCache {
		create = append(create, "--write-cache=on")
	}
	if v.group == "" {
		create, mapped = append(create, "--pool", "p"), append(mapped, "--target", target)
	} else {
		create = append(create, "--group", v.group)
		g, err := w.show(ctx, nodeA, v.group)
		if err != nil {
			return err
		}
		portal, target = aliasOf(v.group), g.Target
	}
	if _, err := w.cli(ctx, nodeA, create...); err != nil {
		return err
	}
	if err := w.patiently(ctx, nodeA, mapped...); err != nil {
		return err
	}
	w.urls[v.name] = fmt.Sprintf("iscsi://%s:3260/%s/%d", portal, target, v.lun)
	return nil
}

// patiently runs a command that may come too early: a node knows of a volume of a
// group that it does not own a moment after the command that made it.
func (w *pairWorld) patiently(ctx context.Context, m int, args ...string) error {
	for until := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		_, err := w.cli(ctx, m, args...)
		if err == nil || ctx.Err() != nil || time.Now().After(until) {
			return err
		}
	}
}

// show asks a node for a group, over its API: without a process each time.
func (w *pairWorld) show(ctx context.Context, m int, group string) (*steadfastv1.Group, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if w.apis[m] == nil {
		w.apis[m] = steadfastv1connect.NewGroupServiceClient(&http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", w.socket(m))
			},
		}}, "http://node")
	}
	r, err := w.apis[m].GetGroup(ctx, &steadfastv1.GetGroupRequest{Name: group})
	if err != nil {
		return nil, err
	}
	return r.Group, nil
}

// lookEvery is how often a group that is waited for is looked at.
const lookEvery = 20 * time.Millisecond

// await looks at a group, as a node that serves it sees it, until it is as wanted.
func (w *pairWorld) await(ctx context.Context, m int, group, what string, patience time.Duration, wanted func(*steadfastv1.Group) bool) (*steadfastv1.Group, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		g, err := w.show(ctx, m, group)
		if err == nil && wanted(g) {
			return g, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("group %s did not become %s within %v: %w (%v)", group, what, patience, errors.Join(err, ctx.Err()), g)
		case <-tick.C:
		}
	}
}

// whole waits until each group is served where it belongs, and on both nodes.
func (w *pairWorld) whole(ctx context.Context) error {
	for group, owner := range pairGroups {
		_, err := w.await(ctx, owner, group, "whole", 2*time.Minute, func(g *steadfastv1.Group) bool {
			return g.State == "serving" && g.Owner == memberName(owner) && len(g.InSync) == 2
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hurried has both drives do more than what is measured with while f runs: for
// what is only prepared. Without any bound it would be the drive that both nodes
// and their votes share that is short, and groups would change their owners.
func (w *pairWorld) hurried(f func() error) error {
	err := w.bound(2 * driveBytesPerSecond)
	if err == nil {
		err = f()
	}
	return errors.Join(err, w.bound(driveBytesPerSecond))
}

func (w *pairWorld) bound(bytesPerSecond int64) error {
	return errors.Join(w.drives[nodeA].Set(bytesPerSecond), w.drives[nodeB].Set(bytesPerSecond))
}

// Close takes the world down, processes first.
func (w *pairWorld) Close() error {
	var err error
	for m := range w.procs {
		err = errors.Join(err, w.kill(m))
	}
	for _, d := range w.drives {
		err = errors.Join(err, d.Close())
	}
	for _, s := range append(w.spaces[:], w.client) {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
	}
	if w.net != nil {
		err = errors.Join(err, w.net.Close())
	}
	for _, l := range w.logs {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
	}
	if w.folder != nil {
		err = errors.Join(err, w.folder.Close())
	}
	return err
}
