// E2e drives a node of this tree with initiators that other people wrote.
//
//	-tools   libiscsi's tools, qemu-img and qemu-io; no guest: for CI
//	(none)   the same, and a QEMU guest whose drive is iscsi://
//	-guest   the Linux kernel's initiator in a guest: CHAP both ways, ext4,
//	         fio with verify, the node restarted and killed under load (slow:
//	         the guest is emulated)
//
// It ends with "e2e: N passed, N failed, N skipped".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"steadfast/test/testbed"
)

// run is one run: the server, where its files lie, and the counts.
type run struct {
	ctx    context.Context
	dir    string
	cache  string // where the guest's kernel and initrd are kept between runs
	peer   string
	server testbed.Server
	port   int // of the server, on the loopback addresses

	passed, failed, skipped int
}

func main() {
	tools := flag.Bool("tools", false, "only the initiators' tools")
	guest := flag.Bool("guest", false, "only the Linux kernel initiator in a guest; slow")
	peer := flag.String("peer", "steadfast", "server to drive: steadfast, tgt or tgt-durable")
	cache := flag.String("cache", ".cache/guest", "folder for the guest's kernel")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	r := &run{ctx: ctx, peer: *peer, cache: *cache}
	err := r.all(*tools, *guest)
	stop()
	if err != nil {
		fmt.Println("FAIL e2e:", err)
		r.failed++
	}
	fmt.Printf("e2e: %d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	if r.failed > 0 {
		os.Exit(1)
	}
}

// all runs the chosen parts in a folder that goes away.
func (r *run) all(tools, guest bool) (err error) {
	if r.dir, err = os.MkdirTemp("", "steadfast-e2e-"); err != nil {
		return err
	}
	defer func() {
		if r.server != nil {
			err = errors.Join(err, r.server.Close())
		}
		if err != nil || r.failed > 0 {
			logs, _ := filepath.Glob(filepath.Join(r.dir, "*", "server.log"))
			for _, log := range logs {
				r.tail("the server", log)
			}
		}
		err = errors.Join(err, os.RemoveAll(r.dir))
	}()
	switch {
	case guest:
		return r.kernelInitiator()
	case tools:
		return r.tools()
	}
	if err := r.tools(); err != nil {
		return err
	}
	return r.guestDrive()
}

// tail prints the end of a file that tells why something failed.
func (r *run) tail(what, name string) {
	text, err := os.ReadFile(name)
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	fmt.Println("     the last lines of " + what + ":")
	for _, l := range lines[max(0, len(lines)-25):] {
		fmt.Println("     " + strings.TrimRight(l, "\r"))
	}
}

// serve starts the server with the given volumes and initiators, replacing
// one that runs.
func (r *run) serve(name string, volumes []testbed.Volume, initiators []testbed.Initiator) error {
	if r.server != nil {
		if err := r.server.Close(); err != nil {
			return err
		}
		r.server = nil
	}
	var err error
	if r.port, err = testbed.FreePort("127.0.0.1", "::1"); err != nil {
		return err
	}
	r.server, err = testbed.New(r.ctx, r.peer, testbed.Config{
		Dir:     filepath.Join(r.dir, name),
		Portals: []string{fmt.Sprintf("127.0.0.1:%d", r.port), fmt.Sprintf("[::1]:%d", r.port)},
		Volumes: volumes, Initiators: initiators,
	})
	return err
}

// ok counts a step.
func (r *run) ok(name string) {
	r.passed++
	fmt.Println("ok   " + name)
}

// fail counts a step that went wrong, and says how.
func (r *run) fail(name, format string, args ...any) {
	r.failed++
	fmt.Printf("FAIL %s: %s\n", name, fmt.Sprintf(format, args...))
}

// skip counts what this machine cannot run, and says why.
func (r *run) skip(name, why string) {
	r.skipped++
	fmt.Printf("SKIP %s: %s\n", name, why)
}

// expect is what a command must do.
type expect struct {
	contains string // in its output
	lacks    string // not in its output
	fails    bool   // it must be refused
}

// step runs a command as one counted step.
func (r *run) step(name string, want expect, argv ...string) (string, bool) {
	if _, err := exec.LookPath(argv[0]); err != nil {
		r.skip(name, argv[0]+" is not installed")
		return "", false
	}
	ctx, cancel := context.WithTimeout(r.ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	raw, err := cmd.CombinedOutput()
	out := string(raw)
	switch {
	case ctx.Err() != nil:
		r.fail(name, "did not end: %s", strings.Join(argv, " "))
	case want.fails && err == nil:
		r.fail(name, "was not refused: %s\n%s", strings.Join(argv, " "), out)
	case !want.fails && err != nil:
		r.fail(name, "%s: %v\n%s", strings.Join(argv, " "), err, out)
	case !strings.Contains(out, want.contains):
		r.fail(name, "%s: no %q in\n%s", strings.Join(argv, " "), want.contains, out)
	case want.lacks != "" && strings.Contains(out, want.lacks):
		r.fail(name, "%s: %q in\n%s", strings.Join(argv, " "), want.lacks, out)
	default:
		r.ok(name)
		return out, true
	}
	return out, false
}
