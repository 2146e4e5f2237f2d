package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/compute/image"
	"steadfast/fault"
)

// The machine that "steadfast up" makes, and its image: the same packages and size that the
// tests' guest has, so that one build serves all.
const (
	upMachine   = "redis"
	upImage     = "redis"
	upMemory    = "512M"
	upImageSize = "512M"
	// guestPoolMin holds its disk and its home, with what is written anew, in bytes.
	guestPoolMin = 1 << 30
)

// machineTime is how long a machine may take to boot on a slow machine.
const machineTime = 5 * time.Minute

// stopTime is how long the machine may take to shut down at the end of a run.
const stopTime = 30 * time.Second

// redisOptions is the guest's /etc/default/redis-server: Redis answers on the network, and
// only when a change is on the disk.
const redisOptions = `# Written by steadfast up: Redis answers on the network, and only when a change is on the disk.
ULIMIT=65536
DAEMON_ARGS="/etc/redis/redis.conf --bind 0.0.0.0 --protected-mode no --appendonly yes --appendfsync always"
`

// madeFile tells that the machine was made: it is the user's from then on.
const madeFile = "machine.json"

// made is what it holds.
type made struct {
	Machine string `json:"machine"`
	// Stopped: the end of a run has stopped it, and not the user.
	Stopped bool `json:"stopped"`
	// FT: its fault tolerance was turned on; whether it stays on is the user's matter.
	FT bool `json:"ft"`
}

// wasMade tells whether the machine was made, by this run or an earlier one.
func (p *pair) wasMade() bool {
	_, err := os.Stat(p.path(madeFile))
	return !errors.Is(err, fs.ErrNotExist)
}

// readMade reads it; what is not there, or not readable, tells nothing.
func (p *pair) readMade() (m made) {
	if b, err := os.ReadFile(p.path(madeFile)); err != nil || json.Unmarshal(b, &m) != nil {
		return made{}
	}
	return m
}

// noteMade changes it.
func (p *pair) noteMade(change func(*made)) error {
	m := p.readMade()
	m.Machine = upMachine
	change(&m)
	return writeJSON(p.path(madeFile), m)
}

// images is the folder of images.
func (p *pair) images() string { return p.path("images") }

// makeMachine makes the machine and starts it, unless the user has had it: then it is as he
// left it.
func (p *pair) makeMachine(ctx context.Context) error {
	if p.wasMade() {
		return nil
	}
	m, err := p.machine(ctx)
	if err == nil && m != nil && m.Generation == 0 && m.Desired != desiredRunning {
		// An earlier run was ended before it was whole.
		err = p.step(ctx, nodes[0], nil, "vm", "delete", upMachine, "--yes")
		m = nil
	}
	if err == nil && m == nil {
		err = p.makeNewMachine(ctx)
	}
	if err != nil {
		return err
	}
	return p.noteMade(func(*made) {})
}

func (p *pair) makeNewMachine(ctx context.Context) error {
	p.heading("A Debian machine with Redis, whose disk is in the group")
	if err := p.buildImage(ctx); err != nil {
		return err
	}
	if _, err := p.run(ctx, nil, p.notes(), "", append([]string{"--socket", p.socket(nodes[0])}, p.createArgs()...)); err != nil {
		return err
	}
	return p.step(ctx, nodes[0], nil, "vm", "start", upMachine)
}

// desiredRunning is what is wanted of a machine that is to run.
const desiredRunning = "running"

// createArgs are the command that makes the machine.
func (p *pair) createArgs() []string {
	return []string{
		"vm", "create", upMachine, "--cluster", upCluster, "--datastore", upDatastore, "--memory", upMemory,
		"--image", upImage, "--store", p.images(), "--net", upNetwork + ",mac=" + upMAC,
	}
}

// buildImage builds the machine's image, unless it is there.
func (p *pair) buildImage(ctx context.Context) error {
	if _, err := (image.Store{Dir: p.images()}).Get(upImage); err == nil {
		return nil
	}
	options := p.path("redis-server.default")
	if err := os.WriteFile(options, []byte(redisOptions), 0o644); err != nil {
		return fault.Wrap(fault.Denied, err, "cannot write Redis' options")
	}
	p.showHeading()
	p.screen.say("the image of machine %q is built now, which takes minutes unless the cache has it", upMachine)
	args := []string{
		"image", "build", upImage, "--store", p.images(), "--profile", "minimal", "--size", upImageSize,
		"--package", "redis-server", "--package", "redis-tools", "--file", options + ":/etc/default/redis-server",
	}
	if p.options.cache != "" {
		args = append(args, "--cache", filepath.Clean(p.options.cache))
	}
	if _, err := p.run(ctx, nil, p.notes(), "", args); err != nil {
		// What cannot be built here may be built elsewhere, or from another mirror.
		return fault.Wrap(fault.KindOf(err), err, "the image cannot be built; type that command yourself, with --mirror URL if the mirror is what is wrong, and then \"steadfast up\" again")
	}
	return nil
}

// machine returns the machine as the node sees it that knows its newest placement: one that
// was just started knows only what there was. nil: there is none.
func (s site) machine(ctx context.Context) (*steadfastv1.Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, groupTime)
	defer cancel()
	var seen [len(nodes)]*steadfastv1.Machine
	var errs [len(nodes)]error
	var asked sync.WaitGroup
	for i, n := range nodes {
		asked.Go(func() {
			r, err := s.at(n).vms().ListMachines(ctx, &steadfastv1.ListMachinesRequest{})
			if err != nil {
				errs[i] = err
				return
			}
			if at := slices.Index(namesOf(r.Machines), upMachine); at >= 0 {
				seen[i] = r.Machines[at]
			}
		})
	}
	asked.Wait()
	best := newestMachine(seen[:])
	if best == nil && errs[0] != nil && errs[1] != nil {
		return nil, errors.Join(errs[:]...)
	}
	return best, nil
}

// newestMachine returns the view of the newest placement, the first if there are several.
func newestMachine(seen []*steadfastv1.Machine) (best *steadfastv1.Machine) {
	for _, m := range seen {
		if m != nil && (best == nil || m.Generation > best.Generation) {
			best = m
		}
	}
	return best
}

// startMachine starts the machine that an earlier run has stopped at its end, or whose host
// was lost too often. One that the user has stopped or deleted is left so.
func (p *pair) startMachine(ctx context.Context) error {
	m, err := p.machine(ctx)
	if err != nil {
		return err
	}
	p.vm.probe = startProbe(p.vm.at.String())
	client := fmt.Sprintf("%s --socket %s", os.Args[0], p.socket(nodes[0]))
	switch {
	case m == nil:
		p.screen.say("machine %q was deleted; to have it again: %s %s", upMachine, client, strings.Join(p.createArgs(), " "))
	case m.Desired == desiredRunning:
		p.vm.runs = true
	case p.readMade().Stopped || m.State == "failed":
		p.screen.say("machine %s", machineText(m))
		if err := p.step(ctx, nodes[0], nil, "vm", "start", upMachine); err != nil {
			return err
		}
		p.vm.runs = true
	default:
		p.screen.say("machine %s; to start it: %s vm start %s", machineText(m), client, upMachine)
	}
	return p.noteMade(func(m *made) { m.Stopped = false })
}

// awaitMachine waits until the machine's Redis answers, if it is to. One whose host is lost
// meanwhile, and that had been started again before, is started once more: when all ended at
// once, that is only noticed now.
func (p *pair) awaitMachine(ctx context.Context) error {
	if !p.vm.runs {
		return nil
	}
	began := time.Now()
	m, err := p.awaitAnswer(ctx)
	if err == nil && m != nil && m.State == "failed" {
		if err = p.step(ctx, nodes[0], nil, "vm", "start", upMachine); err == nil {
			m, err = p.awaitAnswer(ctx)
		}
	}
	if err != nil || m != nil {
		return err // that it has ended was said
	}
	p.vm.ready = true
	p.screen.say("Redis on machine %q answers at %v, after %.1f s", upMachine, p.vm.at, time.Since(began).Seconds())
	return nil
}

// awaitAnswer waits until the machine's Redis answers, or the machine has ended: it is returned
// then.
func (p *pair) awaitAnswer(ctx context.Context) (ended *steadfastv1.Machine, err error) {
	said := ""
	err = p.await(ctx, machineTime, func(ctx context.Context) bool {
		if p.vm.probe.answers() {
			return true
		}
		m, err := p.machine(ctx)
		if err != nil || m == nil {
			return false
		}
		if text := "machine " + machineText(m); text != said {
			said = text
			p.screen.say("%s", text)
		}
		if m.Desired != desiredRunning && m.Host == "" {
			ended = m
		}
		return ended != nil
	}, func() string {
		return fmt.Sprintf("Redis on machine %q does not answer at %v: %s; what it says: %s --socket %s vm console %s", upMachine, p.vm.at, said, os.Args[0], p.socket(nodes[0]), upMachine)
	})
	return ended, err
}

// protectTime is how long a machine may take to be protected on a slow machine.
const protectTime = 3 * time.Minute

// protectMachine turns the machine's fault tolerance on, once, and waits until it is protected.
// A machine that cannot be runs on without: what is wrong is said.
func (p *pair) protectMachine(ctx context.Context) error {
	if !p.vm.ready {
		return nil
	}
	err := p.protect(ctx)
	if err != nil && ctx.Err() == nil {
		p.screen.say("\nNOT PROTECTED: %v\nThe machine goes on without a secondary; see \"%s --socket %s ft status %s --check\"", err, os.Args[0], p.socket(nodes[0]), upMachine)
		return nil
	}
	return err
}

func (p *pair) protect(ctx context.Context) error {
	m, err := p.machine(ctx)
	if err != nil || m == nil {
		return err
	}
	client := []string{"--socket", p.socket(nodes[0])}
	switch on := m.Protection != nil; {
	case !on && p.readMade().FT:
		return nil // the user has turned it off
	case on && m.Protection.Disabled:
		return nil
	case on:
		return p.awaitProtected(ctx)
	default:
		p.heading("Turn On Fault Tolerance: a second host runs the machine in lockstep")
		if _, err = p.run(ctx, nil, p.notes(), "", append(client, "ft", "on", upMachine, "--wait", "--timeout", protectTime.String())); err == nil {
			err = p.noteMade(func(m *made) { m.FT = true })
		}
		for _, look := range [][]string{{"ft", "status", upMachine}, {"host", "list"}} {
			if err == nil {
				err = p.step(ctx, nodes[0], nil, look...)
			}
		}
		if err == nil {
			err = p.showSessions(ctx)
		}
	}
	return err
}

// showSessions shows that the machine's hosts are logged in to its volumes: at the node that serves
// the group.
func (p *pair) showSessions(ctx context.Context) error {
	g, err := p.group(ctx)
	if err != nil {
		return err
	}
	p.heading("The machine's hosts have logged in to the volumes by themselves, at the alias IP; the third does when it is needed")
	return p.step(ctx, g.Owner, nil, "session", "list")
}

// awaitProtected waits until a machine whose fault tolerance is on is protected.
func (p *pair) awaitProtected(ctx context.Context) error {
	var last *steadfastv1.Machine
	err := p.await(ctx, protectTime, func(ctx context.Context) bool {
		m, err := p.machine(ctx)
		if err == nil && m != nil {
			last = m
		}
		return err == nil && m != nil && isProtected(m)
	}, func() string { return "machine " + machineText(last) + protectionText(last) })
	if err == nil {
		p.screen.say("machine %s%s", machineText(last), protectionText(last))
	}
	return err
}

// stopMachine stops the machine in order before its host ends, unless it is not to run. The
// next run starts it again.
func (p *pair) stopMachine() {
	if p.vm == nil || p.vm.probe == nil {
		return
	}
	p.vm.probe.end()
	ctx, cancel := context.WithTimeout(context.Background(), stopTime+groupTime)
	defer cancel()
	if m, err := p.machine(ctx); err != nil || m == nil || m.Desired != desiredRunning {
		return
	}
	// Before it is stopped: a run that is killed now has stopped it as well.
	err := p.noteMade(func(m *made) { m.Stopped = true })
	if err == nil {
		_, err = p.run(ctx, nil, io.Discard, "", []string{"--socket", p.socket(nodes[0]), "vm", "stop", upMachine, "--wait", "--timeout", stopTime.String()})
	}
	if err != nil {
		p.screen.say("machine %q ends with its host, as in a power failure: %v", upMachine, err)
	}
}

// machineText says in a few words how a machine is.
func machineText(m *steadfastv1.Machine) string {
	text := m.Name + " is " + m.State
	if m.Host != "" {
		text += " on " + m.Host
	}
	if m.Detail != "" {
		text += " (" + m.Detail + ")"
	}
	return text
}

// guestLine is the machine's part of the status line.
func (p *pair) guestLine(ctx context.Context) string {
	if p.vm == nil || p.vm.probe == nil {
		return ""
	}
	m, err := p.machine(ctx)
	switch {
	case err != nil:
		return "  machine not seen"
	case m == nil:
		return ""
	case m.Desired != desiredRunning:
		return "  " + machineText(m)
	}
	return "  " + machineText(m) + protectionText(m) + ", " + p.vm.probe.line(time.Now())
}

// protectionText says in a few words how fault tolerance has a machine; "" where it is off.
func protectionText(m *steadfastv1.Machine) string {
	p := m.Protection
	if p == nil {
		return ""
	}
	text := ", " + ftStatusText(p)
	if p.SecondaryHost != "" {
		text += " (secondary " + p.SecondaryHost + ")"
	}
	return text
}

// greetHosts are the hosts' words in what is said when all is up.
func (p *pair) greetHosts() string {
	if p.vm == nil {
		return ""
	}
	return "; hosts " + strings.Join(upHosts[:], ", ") + " of cluster " + upCluster
}

// greetGuest says what can be tried with the machine.
func (p *pair) greetGuest() {
	if p.vm == nil || !p.vm.ready {
		return
	}
	p.screen.say(`  %[1]s --socket %[2]s vm console %[3]s      # its console: root, without a password; Ctrl-A d leaves
  %[1]s --socket %[2]s ft status %[3]s       # where it runs, and its secondary
  kill -9 $(cat %[4]s/HOST/lock)      # the machine's host: its secondary goes on, and connections stay
  %[1]s --socket %[2]s ft test-failover %[3]s
  %[1]s switch show --socket %[5]s     # stands for YOUR switch: do not kill it to see a takeover
  %[1]s demo --data %[4]s        # kills hosts, nodes, witness and whole boxes under a checked load`,
		os.Args[0], p.socket(nodes[0]), upMachine, p.dir, p.switchSocket())
}

// notes takes what a command says of its progress: lines over one another on a terminal, and
// else those that are not one of many.
func (p *pair) notes() *noteWriter { return &noteWriter{screen: p.screen} }

// noteWriter is such a taker.
type noteWriter struct {
	screen *screen
	rest   []byte // of a line that has no end yet
	few    int
}

// noteEvery is how many lines of many there are for one that is printed.
const noteEvery = 20

// Write implements io.Writer.
func (w *noteWriter) Write(b []byte) (int, error) {
	w.rest = append(w.rest, b...)
	for {
		i := bytes.IndexAny(w.rest, "\r\n")
		if i < 0 {
			return len(b), nil
		}
		w.tell(string(w.rest[:i]))
		w.rest = w.rest[i+1:]
	}
}

func (w *noteWriter) tell(line string) {
	text := strings.TrimSpace(line)
	switch {
	case text == "":
	case w.screen.terminal:
		w.screen.status("  " + text)
	case strings.HasPrefix(line, "  "): // one of many
		if w.few++; w.few%noteEvery == 0 {
			w.screen.say("  %s", text)
		}
	default:
		w.screen.say("  %s", text)
	}
}
