package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"steadfast/test/testbed"
)

// The guest's identity and secrets. They guard nothing: the node they admit
// to lives for one run, on loopback.
const (
	guestName       = "iqn.2026-11.io.steadfast.test:guest"
	guestUser       = "guest"
	guestSecret     = "guest-secret-16b"
	guestUserBack   = "node"
	guestSecretBack = "node-secret-16by"
)

// silence is how long the guest may say nothing: no step of it takes half as
// long.
const silence = 4 * time.Minute

// guestDrive boots a guest whose drive QEMU holds over iscsi://.
func (r *run) guestDrive() error {
	if !r.guestReady("a QEMU guest with an iscsi:// drive") {
		return nil
	}
	err := r.serve("drive", []testbed.Volume{{Name: "data", Size: 256 << 20, LUN: lunData}},
		[]testbed.Initiator{{Name: guestName}})
	if err != nil {
		return err
	}
	return r.boot("job=drive",
		"-iscsi", "initiator-name="+guestName,
		"-drive", "file="+r.server.URL(0, lunData)+",if=virtio,format=raw,cache=none,discard=unmap")
}

// kernelInitiator boots a guest that logs in by itself.
func (r *run) kernelInitiator() error {
	if !r.guestReady("the Linux kernel initiator") {
		return nil
	}
	err := r.serve("kernel", []testbed.Volume{{Name: "data", Size: 256 << 20, LUN: lunData}},
		[]testbed.Initiator{{
			Name: guestName, User: guestUser, Secret: guestSecret, MutualUser: guestUserBack, MutualSecret: guestSecretBack,
		}})
	if err != nil {
		return err
	}
	// QEMU's user network answers for the host's loopback at 10.0.2.2.
	job := strings.Join([]string{
		"job=iscsi", "initiator=" + guestName, "target=" + testbed.Target, fmt.Sprintf("portal=10.0.2.2:%d", r.port),
		"user=" + guestUser, "secret=" + guestSecret, "user_in=" + guestUserBack, "secret_in=" + guestSecretBack,
	}, " ")
	return r.boot(job, "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=")
}

// guestReady builds the guest, or says why there will be none.
func (r *run) guestReady(what string) bool {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		r.skip(what, "qemu-system-x86_64 is not installed")
		return false
	}
	if err := r.guest().Build(r.ctx); err != nil {
		r.skip(what, err.Error())
		return false
	}
	return true
}

// guest is the one that does test/e2e/guest/init.
func (r *run) guest() testbed.Guest {
	return testbed.Guest{
		Cache: r.cache, Initrd: filepath.Join(r.cache, "initrd"), Init: "test/e2e/guest/init",
		Items: []string{"fio", "mkfs.ext4", "e2fsck"},
	}
}

// boot runs the guest, without hardware help (what runs this may itself be a
// guest), and counts what it tells.
func (r *run) boot(job string, more ...string) error {
	ctx, cancel := context.WithCancelCause(r.ctx)
	defer cancel(nil)
	argv := r.guest().Argv(2, []string{job}, more...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	console, err := os.Create(filepath.Join(r.cache, "console.log"))
	if err != nil {
		return err
	}
	defer func() { _ = console.Close() }()
	cmd.Stderr = console
	if err := cmd.Start(); err != nil {
		return err
	}
	quiet := time.AfterFunc(silence, func() { cancel(fmt.Errorf("the guest said nothing for %v", silence)) })
	defer quiet.Stop()
	ended, actErr := r.listen(io.TeeReader(pipe, console), func() { quiet.Reset(silence) })
	if actErr != nil {
		cancel(actErr)
	}
	waitErr := cmd.Wait()
	if !ended || actErr != nil {
		r.tail("the guest's console", console.Name())
		return fmt.Errorf("the guest did not come to its end: %w", errors.Join(context.Cause(ctx), waitErr))
	}
	return nil
}

// listen reads the guest's console, counts its steps and does what it asks
// for; heard is called for each of its lines. It tells whether the guest came
// to its end.
func (r *run) listen(console io.Reader, heard func()) (ended bool, err error) {
	last := time.Now()
	for scan := bufio.NewScanner(console); scan.Scan(); {
		_, line, ok := strings.Cut(strings.TrimSpace(scan.Text()), "GUEST ")
		if !ok {
			continue
		}
		heard()
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "ok":
			r.ok(fmt.Sprintf("guest: %s (%.1f s)", rest, time.Since(last).Seconds()))
		case "fail":
			r.fail("guest", "%s", rest)
		case "say":
			fmt.Println("     guest: " + rest)
		case "do":
			if err := r.outage(rest); err != nil {
				return false, err
			}
			heard()
			continue // its time is the next step's
		case "end":
			ended = true
		}
		last = time.Now()
	}
	return ended, nil
}

// outage takes the node away: "term SECONDS" as an admin would, "kill SECONDS"
// as a crash would.
func (r *run) outage(order string) error {
	how, text, _ := strings.Cut(order, " ")
	seconds, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("the guest asks for %q: %w", order, err)
	}
	end := r.server.Stop
	if how == "kill" {
		end = r.server.Kill
	}
	if err := end(); err != nil {
		r.fail("the node ends by "+how, "%v", err)
	}
	select {
	case <-r.ctx.Done():
		return r.ctx.Err()
	case <-time.After(time.Duration(seconds) * time.Second):
	}
	if err := r.server.Start(r.ctx); err != nil {
		return fmt.Errorf("start after %s: %w", how, err)
	}
	fmt.Println("     the node is back")
	return nil
}
