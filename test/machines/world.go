package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"steadfast/compute/netswitch"
	"steadfast/compute/usernet"
	"steadfast/test/testbed"
)

// The networks: storage and alias addresses on front, what members say to each other on back,
// what a machine's two hosts say on logs, guests and their clients on lan. Namespaces are our
// own, so no address here can meet one of the machine.
const (
	front = "front"
	back  = "back"
	logs  = "logs"
	lan   = "lan"

	aliasAddress  = "10.77.0.50"
	clientAddress = "10.77.2.9"
	guestAddress  = "10.77.2.20"
	guestMAC      = "02:53:46:00:77:14"
)

// A box is a computer of the site, by its number.
type box int

// The boxes: two, each with a storage node and a host, one with a host alone, which a site of
// two boxes does not have, and one with the witness.
const (
	boxA box = iota
	boxB
	boxC
	boxW
	boxes

	withNode = boxC // those before it have a storage node
)

// A form of a site is how many of its boxes have a host: those before it do.
type form box

// The forms: with a third host at hand, and two boxes and no more.
const (
	threeHosts = form(boxW)
	twoBoxes   = form(boxC)
)

func (f form) String() string {
	if f == twoBoxes {
		return "two-boxes"
	}
	return "three-hosts"
}

// all are the boxes of a site.
func (f form) all() []box {
	list := make([]box, 0, boxes)
	for b := range box(f) {
		list = append(list, b)
	}
	return append(list, boxW)
}

func (b box) String() string { return [...]string{"a", "b", "c", "w"}[b] }

// other is the box with a storage node that b is not; of one without, any.
func (b box) other() box {
	if b < withNode {
		return boxB - b
	}
	return boxA
}

// address is the box's on front, back or logs.
func (b box) address(network string) string {
	return fmt.Sprintf("10.77.%d.%d", map[string]int{front: 0, back: 1, logs: 3}[network], int(b)+1)
}

// port names the switch's end of a box's link.
func (b box) port(network string) string { return b.String() + "-" + network }

// world is the boxes, a client, and the customer's switch and DHCP server: network namespaces
// and a folder of files. It goes with this process.
type world struct {
	form
	folder  *testbed.Folder
	net     *testbed.Switch
	spaces  [boxes]*testbed.Space
	client  *testbed.Space
	gateway *gateway
	logs    []*os.File
}

// folderPrefix marks our folders, so that a later run can remove what an earlier one that was
// killed has left. Sockets lie in them, whose paths are to be short.
const folderPrefix = "steadfast-vms"

// clientPort is the switch's end of the client's link.
const clientPort = "client-lan"

// newWorld makes it all in parent; a folder on a disk, please.
func newWorld(parent string, f form) (w *world, err error) {
	w = &world{form: f}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()
	if w.folder, err = testbed.NewFolder(parent, folderPrefix); err != nil {
		return w, err
	}
	if w.net, err = testbed.NewSwitch(front, back, logs, lan); err != nil {
		return w, err
	}
	for _, b := range w.all() {
		if err := w.addBox(b); err != nil {
			return w, err
		}
	}
	if w.client, err = testbed.NewSpace(); err != nil {
		return w, err
	}
	if err := w.net.Attach(w.client, lan, clientPort, lan, netip.MustParsePrefix(clientAddress+"/24")); err != nil {
		return w, err
	}
	w.gateway, err = newGateway(w.net)
	return w, err
}

// addBox makes a box with its links; on those with a host the one to the guests' network is
// the uplink of a bridge.
func (w *world) addBox(b box) (err error) {
	if w.spaces[b], err = testbed.NewSpace(); err != nil {
		return err
	}
	networks := []string{front, back, logs}
	if !w.hasHost(b) {
		networks = networks[:2]
	}
	for _, network := range networks {
		at := netip.MustParsePrefix(b.address(network) + "/24")
		if err := w.net.Attach(w.spaces[b], network, b.port(network), network, at); err != nil {
			return err
		}
	}
	if !w.hasHost(b) {
		return nil
	}
	const uplink = "uplink"
	if err := w.net.Attach(w.spaces[b], lan, b.port(lan), uplink, netip.Prefix{}); err != nil {
		return err
	}
	return w.spaces[b].AddBridge(lan, uplink)
}

// hasHost tells whether a box has a host.
func (w *world) hasHost(b box) bool { return b < box(w.form) }

func (w *world) path(name string) string { return filepath.Join(w.folder.Path, name) }

// log opens a log by name, to append.
func (w *world) log(name string) (*os.File, error) {
	f, err := os.OpenFile(w.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		w.logs = append(w.logs, f)
	}
	return f, err
}

// cutOff cuts a host's box off storage, members and other hosts; the guests' network stays
// whole.
func (w *world) cutOff(b box) error {
	return w.net.Cut(testbed.Drop, b.port(front), b.port(back), b.port(logs))
}

// unplug takes all links of a host's box down.
func (w *world) unplug(b box) error {
	return w.net.Cut(testbed.Unplug, b.port(lan), b.port(logs), b.port(back), b.port(front))
}

// mend undoes every cut of a host's box.
func (w *world) mend(b box) error {
	return w.net.Mend(b.port(front), b.port(back), b.port(logs), b.port(lan))
}

// Close takes the world down. Its processes must have ended.
func (w *world) Close() error {
	var err error
	if w.gateway != nil {
		err = w.gateway.Close()
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
		err = errors.Join(err, l.Close())
	}
	if w.folder != nil {
		err = errors.Join(err, w.folder.Close())
	}
	return err
}

// gateway is the customer's: a DHCP server on the guests' network. It is no part of what is
// tried, and none of what is hurt.
type gateway struct {
	tap    *netswitch.Tap
	user   *usernet.Network
	joined chan error
}

func newGateway(s *testbed.Switch) (g *gateway, err error) {
	g = &gateway{joined: make(chan error, 2)}
	g.user, err = usernet.New(usernet.Options{
		Subnet: netip.MustParsePrefix("10.77.2.0/24"), Gateway: netip.MustParseAddr("10.77.2.1"), Many: true, Isolated: true, NoDNS: true,
	})
	if err != nil {
		return nil, err
	}
	var mac usernet.MAC
	if err := mac.UnmarshalText([]byte(guestMAC)); err != nil {
		return nil, errors.Join(err, g.user.Close())
	}
	if _, err := g.user.Reserve(mac, netip.MustParseAddr(guestAddress)); err != nil {
		return nil, errors.Join(err, g.user.Close())
	}
	err = s.Do(func() (err error) {
		g.tap, err = netswitch.NewTap("gateway", lan)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, g.user.Close())
	}
	near, far, err := framePair()
	if err != nil {
		return nil, errors.Join(err, g.tap.Close(), g.user.Close())
	}
	go func() { g.joined <- g.tap.Join(near) }()
	go func() { g.joined <- g.user.Join(far) }()
	return g, nil
}

// Close ends it.
func (g *gateway) Close() error {
	err := errors.Join(g.tap.Close(), g.user.Close())
	return errors.Join(err, <-g.joined, <-g.joined)
}

// framePair is a wire: what one end writes at once is what the other reads at once.
func framePair() (near, far net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	conn := func(fd int) (net.Conn, error) {
		f := os.NewFile(uintptr(fd), "wire")
		c, err := net.FileConn(f)
		return c, errors.Join(err, f.Close())
	}
	near, err = conn(fds[0])
	far, farErr := conn(fds[1])
	return near, far, errors.Join(err, farErr)
}
