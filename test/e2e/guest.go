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
	"strings"
	"syscall"
	"time"

	"steadfast/test/testbed"
)

// The guest's identity and secrets. They guard nothing: the node they admit
// to lives for one run, on loopback.
const (
	guestName      = "iqn.2026-11.io.steadfast.test:guest"
	guestUser      = "guest"
	guestSecret    = "guest-secret-16b"
	guestUserBack  = "node"
	guestSecretBak = "node-secret-16by"
)

// outage is how long the node stays away in the guest's restarts.
const outage = 10 * time.Second

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
	return r.boot(5*time.Minute, "job=drive",
		"-iscsi", "initiator-name="+guestName,
		"-drive", "file="+r.server.URL(0, lunData)+",if=virtio,format=raw,cache=none")
}

// kernelInitiator boots a guest that logs in by itself.
func (r *run) kernelInitiator() error {
	if !r.guestReady("the Linux kernel initiator") {
		return nil
	}
	err := r.serve("kernel", []testbed.Volume{{Name: "data", Size: 256 << 20, LUN: lunData}},
		[]testbed.Initiator{{
			Name: guestName, User: guestUser, Secret: guestSecret, MutualUser: guestUserBack, MutualSecret: guestSecretBak,
		}})
	if err != nil {
		return err
	}
	url := r.server.URL(0, lunData)
	port := url[strings.LastIndexByte(url[:strings.Index(url, "/iqn.")], ':')+1 : strings.Index(url, "/iqn.")]
	digests := "CRC32C,None"
	if r.peer != "steadfast" {
		digests = "None" // tgt offers no digest by itself
	}
	// QEMU's user network answers for the host's loopback at 10.0.2.2.
	job := strings.Join([]string{
		"job=iscsi", "initiator=" + guestName, "target=" + testbed.Target, "portal=10.0.2.2:" + port,
		"user=" + guestUser, "secret=" + guestSecret, "user_in=" + guestUserBack, "secret_in=" + guestSecretBak, "digests=" + digests,
	}, " ")
	return r.boot(20*time.Minute, job, "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0")
}

// guestReady builds the guest, or says why there will be none.
func (r *run) guestReady(what string) bool {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		r.skip(what, "qemu-system-x86_64 is not installed")
		return false
	}
	cmd := exec.CommandContext(r.ctx, "test/e2e/guest/build", r.cache)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.skip(what, fmt.Sprintf("the guest cannot be built: %v: %s", err, strings.TrimSpace(string(out))))
		return false
	}
	return true
}

// boot runs the guest, without hardware help (what runs this may itself be a
// guest), and counts what it tells.
func (r *run) boot(patience time.Duration, job string, more ...string) error {
	ctx, cancel := context.WithTimeout(r.ctx, patience)
	defer cancel()
	argv := append([]string{
		"-accel", "tcg,thread=multi", "-cpu", "max", "-m", "768", "-smp", "2", "-nographic", "-no-reboot", "-monitor", "none",
		"-serial", "stdio", "-nodefaults", "-display", "none",
		"-kernel", filepath.Join(r.cache, "vmlinuz"), "-initrd", filepath.Join(r.cache, "initrd"),
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 " + job,
	}, more...)
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", argv...)
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
	ended, actErr := r.listen(io.TeeReader(pipe, console))
	if actErr != nil {
		cancel()
	}
	waitErr := cmd.Wait()
	switch {
	case actErr != nil:
		return actErr
	case !ended:
		return fmt.Errorf("the guest did not come to its end (its console: %s): %w", console.Name(), errors.Join(ctx.Err(), waitErr))
	}
	return nil
}

// listen reads the guest's console, counts its steps and does what it asks
// for. It tells whether the guest came to its end.
func (r *run) listen(console io.Reader) (ended bool, err error) {
	scan := bufio.NewScanner(console)
	for scan.Scan() {
		_, line, ok := strings.Cut(strings.TrimSpace(scan.Text()), "GUEST ")
		if !ok {
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "ok":
			r.ok("guest: " + rest)
		case "fail":
			r.fail("guest", "%s", rest)
		case "do":
			if err := r.outage(rest); err != nil {
				return false, err
			}
		case "end":
			ended = true
		}
	}
	return ended, nil
}

// outage takes the node away for a while, as asked or as in a crash.
func (r *run) outage(how string) error {
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
	case <-time.After(outage):
	}
	if err := r.server.Start(r.ctx); err != nil {
		return fmt.Errorf("start after %s: %w", how, err)
	}
	return nil
}
