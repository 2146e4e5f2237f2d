package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/test/pair/remote"
	"steadfast/test/testbed"
	"steadfast/test/verify"
)

// The guest on the front network: a port of the bridge like any other machine's,
// so that it is the guest's own TCP that hears of takeovers.
const (
	guestPort    = "g-front"
	guestAddress = "10.77.0.10/24"
	guestMAC     = "52:54:00:77:00:0a"
)

// The guest's processor is emulated, about twenty times slower than this one's,
// on a machine that runs the pair as well: so less is loaded, and not faster.
const (
	guestSpan    = 32 << 20 // bytes
	guestRateMax = 200      // requests a second of each lane, unless told
	// Patience: a busy machine takes minutes.
	guestBoot  = 10 * time.Minute
	guestWhole = 10 * time.Minute // reading or writing all of the span
)

// openISCSI is what docs/clients/linux.md says for one path and for a group; the
// rest are open-iscsi's own defaults.
var openISCSI = []string{
	"node.startup = manual",
	"node.session.timeo.replacement_timeout = 120",
	"node.conn[0].timeo.noop_out_interval = 5",
	"node.conn[0].timeo.noop_out_timeout = 5",
	"node.session.iscsi.DefaultTime2Wait = 0",
}

// guest is a loader in an emulated machine whose kernel is the initiator.
type guest struct {
	load   *remote.Load
	cmd    *exec.Cmd
	exited chan struct{} // closed at the end of the machine
}

// isGuest tells whether a client is one.
func isGuest(client string) bool { return client == "linux" || client == multipathClient }

// startGuest boots it, and has it log in, fill its volume and start.
func (r *runner) startGuest(ctx context.Context, client string, disk uint32, volume Volume) (*guest, error) {
	image, err := r.buildGuest(ctx, client)
	if err != nil {
		return nil, err
	}
	g, err := r.bootGuest(ctx, image, client, volume)
	if err != nil {
		return nil, err
	}
	rate := r.rateMax
	if rate == 0 {
		rate = guestRateMax
	}
	fillCtx, cancel := context.WithTimeout(ctx, guestWhole)
	defer cancel()
	err = g.load.Fill(fillCtx, disk, min(volume.Size, g.load.Size(), guestSpan))
	if err == nil {
		err = g.load.Start(ctx, remote.Lane{Depth: 1, RateMax: rate}, remote.Lane{Depth: 32, RateMax: rate})
	}
	if err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// buildGuest makes the machine's files.
func (r *runner) buildGuest(ctx context.Context, client string) (testbed.Guest, error) {
	bin := r.world.path("guest")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", bin, "./test/pair/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64") // no libraries there
	if out, err := cmd.CombinedOutput(); err != nil {
		return testbed.Guest{}, fmt.Errorf("build what runs in the guest: %w: %s", err, out)
	}
	config, name := r.world.path("iscsid.conf"), r.world.path("initiatorname.iscsi")
	lines, more := openISCSI, []string(nil)
	if client == multipathClient {
		lines, more = multipathISCSI, multipathItems()
	}
	settings := strings.Join(slices.Concat(lines, r.iscsid), "\n") + "\n"
	err := errors.Join(
		os.WriteFile(config, []byte(settings), 0o600),
		os.WriteFile(name, []byte("InitiatorName="+initiatorName+"\n"), 0o600))
	if err != nil {
		return testbed.Guest{}, err
	}
	image := testbed.Guest{
		Cache: r.guestCache, Initrd: r.world.path("initrd"), Init: "test/pair/guest/init",
		Items: append([]string{bin + "=/bin/guest", config + "=/etc/iscsi/iscsid.conf", name + "=/etc/iscsi/initiatorname.iscsi"}, more...),
	}
	return image, image.Build(ctx)
}

// bootGuest starts the machine on the bridge and waits until it has logged in.
func (r *runner) bootGuest(ctx context.Context, image testbed.Guest, client string, volume Volume) (_ *guest, err error) {
	ctx, cancel := context.WithTimeout(ctx, guestBoot)
	defer cancel()
	words, err := guestWords(client, volume, r.trace)
	if err != nil {
		return nil, err
	}
	line, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.world.path("guest.sock"), Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer func() { _ = line.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = line.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	devices := []string{
		"-chardev", "socket,id=line,path=" + line.Addr().String(), "-serial", "chardev:line",
		"-netdev", "tap,id=n0,fd=3", "-device", "virtio-net-pci,netdev=n0,romfile=,mac=" + guestMAC,
	}
	if r.trace {
		devices = append(devices, "-object", "filter-dump,id=dump,netdev=n0,maxlen=160,file="+r.world.path("client-"+client+".pcap"))
	}
	g, err := r.runGuest(client, image.Argv(1, words, devices...))
	if err != nil {
		return nil, err
	}
	go func() { // a machine that has ended will not call
		<-g.exited
		_ = line.SetDeadline(time.Unix(1, 0))
	}()
	conn, err := line.Accept()
	if err == nil {
		if g.load, err = remote.Connect(ctx, conn); err != nil {
			err = errors.Join(err, conn.Close())
		}
	}
	g.hurry()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the guest did not come up (see client-%s.log): %w", client, err), ctx.Err(), g.Close())
	}
	return g, nil
}

// runGuest starts QEMU, its file 3 a tap on the front network.
func (r *runner) runGuest(client string, argv []string) (*guest, error) {
	console, err := r.world.log("client-" + client)
	if err != nil {
		return nil, err
	}
	tap, err := r.world.net.AttachTap(front, guestPort)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tap.Close() }() // it is QEMU's now, and ends with it
	// It stands for a machine of its own, which does not wait for the processor until
	// the pair's processes have had their turn.
	argv = append([]string{"nice", "-n", "-10"}, argv...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = console, console, []*os.File{tap}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := r.world.client.StartIn(cmd); err != nil {
		return nil, err
	}
	g := &guest{cmd: cmd, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how does not matter: the console tells
		close(g.exited)
	}()
	return g, nil
}

// hurry has the thread that carries the guest's packets and timers go before all
// others: it does little, and a network card waits for nobody's processor. iscsid
// waits a millisecond for its connection, and else looks again a second later. The
// thread is the process's first; without the right to this it stays as it is.
func (g *guest) hurry() {
	_ = unix.SchedSetAttr(g.cmd.Process.Pid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: 1}, 0)
}

// guestWords tell the guest's init what to log in to.
func guestWords(client string, volume Volume, trace bool) ([]string, error) {
	portals, target, lun, err := splitURL(volume.URL)
	if err != nil {
		return nil, err
	}
	level := 4
	if client == multipathClient {
		portals = ownPortals()
	}
	if trace {
		level = 8
	}
	return []string{"address=" + guestAddress, "portal=" + portals, "target=" + target, "lun=" + strconv.Itoa(lun), fmt.Sprintf("debug=%d", level)}, nil
}

// splitURL takes an iscsi:// URL apart.
func splitURL(text string) (portal, target string, lun int, err error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", "", 0, err
	}
	target, number, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	lun, err = strconv.Atoi(number)
	if u.Scheme != "iscsi" || !ok || err != nil {
		return "", "", 0, fmt.Errorf("%q is not iscsi://PORTAL/TARGET/LUN", text)
	}
	return u.Host, target, lun, nil
}

func (g *guest) Cut(ctx context.Context) ([]verify.Window, error) { return g.load.Cut(ctx) }
func (g *guest) Settle(ctx context.Context) error                 { return g.load.Settle(ctx) }
func (g *guest) Counts() verify.Counts                            { return g.load.Counts() }
func (g *guest) Findings() []verify.Finding                       { return g.load.Findings() }

// ReadBack has no fresh connection: a kernel has one session with a target and
// portal. It reads past the page cache, and after a takeover that session's
// connection is a new one.
func (g *guest) ReadBack(ctx context.Context, _ bool) error {
	ctx, cancel := context.WithTimeout(ctx, guestWhole)
	defer cancel()
	return g.load.ReadBack(ctx)
}

func (g *guest) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, guestWhole)
	defer cancel()
	return g.load.Stop(ctx)
}

// Close switches the machine off.
func (g *guest) Close() error {
	var err error
	if g.load != nil {
		err = g.load.Close()
	}
	if killErr := g.cmd.Process.Kill(); killErr != nil && !errors.Is(killErr, os.ErrProcessDone) {
		err = errors.Join(err, killErr)
	}
	<-g.exited
	return err
}
