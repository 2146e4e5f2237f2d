package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"steadfast/test/testbed"
)

// Member is one of the machines of the cluster.
type Member string

// The members: two nodes and a witness.
const (
	NodeA   Member = "a"
	NodeB   Member = "b"
	Witness Member = "w"
)

// other returns the node that m is not.
func (m Member) other() Member {
	if m == NodeA {
		return NodeB
	}
	return NodeA
}

// The networks: initiators and alias addresses on front, what the cluster says
// to itself on back. Namespaces are our own, so no address here can meet one of
// the machine.
const (
	front = "front"
	back  = "back"

	aliasAddress = "10.77.0.50"
	portal       = aliasAddress + ":3260"
)

// driveBytes bounds the storage of a node.
const driveBytes = 2 << 30

// world is the machines and what joins them: four network namespaces on two
// bridges in a fifth, and a folder of files. It goes with this process.
type world struct {
	folder *testbed.Folder
	net    *testbed.Switch
	spaces map[Member]*testbed.Space
	client *testbed.Space
	drives map[Member]*testbed.Drive
	logs   []*os.File
}

// folderPrefix marks our folders, so that a later run can remove what an
// earlier one that was killed has left.
const folderPrefix = "steadfast-pair"

// newWorld makes it all in parent; a folder on a disk, please.
func newWorld(parent string) (w *world, err error) {
	w = &world{spaces: map[Member]*testbed.Space{}, drives: map[Member]*testbed.Drive{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if w.folder, err = testbed.NewFolder(parent, folderPrefix); err != nil {
		return w, err
	}
	if w.net, err = testbed.NewSwitch(front, back); err != nil {
		return w, err
	}
	for i, m := range []Member{NodeA, NodeB, Witness} {
		if err := os.Mkdir(w.dir(m), 0o755); err != nil {
			return w, err
		}
		if w.spaces[m], err = testbed.NewSpace(); err != nil {
			return w, err
		}
		for network, bridge := range []string{front, back} {
			address := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(network), byte(i + 1)}), 24)
			if err := w.net.Attach(w.spaces[m], bridge, port(m, bridge), bridge, address); err != nil {
				return w, err
			}
		}
	}
	if w.client, err = testbed.NewSpace(); err != nil {
		return w, err
	}
	return w, w.net.Attach(w.client, front, "c-front", front, netip.MustParsePrefix("10.77.0.9/24"))
}

// port names the switch's end of a member's link.
func port(m Member, bridge string) string { return string(m) + "-" + bridge }

// address is a member's own on a network.
func address(m Member, bridge string) string {
	host := map[Member]int{NodeA: 1, NodeB: 2, Witness: 3}[m]
	network := map[string]int{front: 0, back: 1}[bridge]
	return fmt.Sprintf("10.77.%d.%d", network, host)
}

// dir is where a member keeps its files.
func (w *world) dir(m Member) string { return w.path(string(m)) }

func (w *world) path(name string) string { return filepath.Join(w.folder.Path, name) }

// log opens a log by name, to append.
func (w *world) log(name string) (*os.File, error) {
	f, err := os.OpenFile(w.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		w.logs = append(w.logs, f)
	}
	return f, err
}

// poolPath is where a node's pool lies: on a drive that can fail, once there
// is one.
func (w *world) poolPath(m Member) string {
	if d := w.drives[m]; d != nil {
		return d.Path("pool")
	}
	return filepath.Join(w.dir(m), "pool")
}

// addDrive puts a node's pool on a drive that can fail.
func (w *world) addDrive(ctx context.Context, m Member) (err error) {
	w.drives[m], err = testbed.NewDrive(ctx, w.dir(m), driveBytes+driveBytes/8)
	return err
}

// cutOff cuts all links of a member.
func (w *world) cutOff(how testbed.Cut, m Member) error {
	return w.net.Cut(how, port(m, front), port(m, back))
}

// mend undoes every cut of a member.
func (w *world) mend(m Member) error { return w.net.Mend(port(m, front), port(m, back)) }

// Close takes the world down. Its processes must have ended.
func (w *world) Close() error {
	var err error
	for _, s := range w.spaces {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
	}
	if w.client != nil {
		err = errors.Join(err, w.client.Close())
	}
	if w.net != nil {
		err = errors.Join(err, w.net.Close())
	}
	for _, l := range w.logs {
		err = errors.Join(err, l.Close())
	}
	if w.folder != nil {
		err = errors.Join(err, w.folder.Close())
	}
	return err
}
