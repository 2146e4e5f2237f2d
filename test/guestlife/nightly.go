package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"steadfast/test/testbed"
)

// whole is the guest of the nightly form.
var whole = testbed.Image{
	Name: "whole", Profile: "debian", Size: "3G",
	Packages: []string{"nginx", "postgresql", "stress-ng", "fio", "redis-server", "redis-tools"},
}

// Ports of the guest in the order of its forwards.
const (
	httpPort = 80

	redisForward = 0
	httpForward  = 1
)

// scratchBytes is the size of the disk that fio has for itself.
const scratchBytes = 256 << 20

// nightly is all that is not for CI.
func (r *run) nightly() error {
	if err := r.build(whole); err != nil {
		if errors.Is(err, errSkip) {
			r.skip("nightly", err.Error())
			return nil
		}
		return err
	}
	steps := r.steps()
	if slices.ContainsFunc(steps, func(s step) bool { return r.wanted(s.name) }) {
		if err := r.live(steps); err != nil || r.ctx.Err() != nil {
			return errors.Join(err, r.ctx.Err())
		}
	}
	if !r.wanted(replayed) {
		return nil
	}
	return r.replay()
}

// steps are what one guest does, in this order.
func (r *run) steps() []step {
	seconds := max(1, int(r.seconds.Seconds()))
	kept := &kept{}
	return []step{
		{"system", system},
		{"apt", installed},
		{"redis-benchmark", func(g *guest) error { return redisBenchmark(g, 500*seconds) }},
		{"redis, each answer checked", func(g *guest) error { return kept.redis(g, seconds) }},
		{"nginx", func(g *guest) error { return nginx(g, r.seconds) }},
		{"postgresql", func(g *guest) error { return kept.postgres(g, seconds) }},
		{"stress-ng", func(g *guest) error { return stress(g, seconds) }},
		{"fio", func(g *guest) error { return kept.fio(g, seconds) }},
		{"restart", kept.restart},
		{"power button", func(g *guest) error { return errors.Join(g.powerOff(), r.clean(r.disk(whole))) }},
	}
}

// live has one guest do everything.
func (r *run) live(steps []step) (err error) {
	scratch, err := r.scratch(scratchBytes)
	if err != nil {
		return err
	}
	g, err := r.boot(machine{image: whole, memory: "1G", ports: []int{redisPort, httpPort}, scratch: scratch})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	if err := booted(g); err != nil {
		g.showTail()
		return fmt.Errorf("boot: %w", err)
	}
	r.passed++
	fmt.Printf("ok   boot%s\n", g.takeNote())
	r.tryAll(g, steps)
	return nil
}

// system: nothing has failed, dpkg and apt are content, owners and modes are Debian's, and the
// network is up.
func system(g *guest) error {
	if err := g.says("", "systemctl is-system-running --wait >/dev/null; systemctl --failed --no-legend --plain"); err != nil {
		return err
	}
	if err := g.says("", "dpkg --audit; dpkg --verify; apt-get check -qq"); err != nil {
		return err
	}
	const owned = "root:shadow 2755 root:shadow 640 root:root 4755 root:mail 2775"
	if err := g.says(owned, "stat -c '%%U:%%G %%a' /usr/sbin/unix_chkpwd /etc/shadow /usr/bin/passwd /var/mail | tr '\\n' ' ' | sed 's/ $//'"); err != nil {
		return err
	}
	if err := g.says(whole.Name, "hostname"); err != nil {
		return err
	}
	// The lease, the gateway, the gateway's DNS.
	_, err := g.shell("i=0; until ip -4 addr show dev eth0 | grep -q 'inet 10.0.2.15/24' && ip route | grep -q '^default via 10.0.2.2' && grep -q ^nameserver /etc/resolv.conf; do i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 1; done")
	return err
}

// installed: apt fetches and installs a package over the guest's network.
func installed(g *guest) error {
	archive, err := g.shell("sed -n 's/^URIs: //p' /etc/apt/sources.list.d/*.sources | head -n 1")
	if err != nil {
		return err
	}
	if err := reachable(g.r.ctx, archive); err != nil {
		return fmt.Errorf("%w: this host does not reach the guest's archive: %w", errSkip, err)
	}
	if _, err := g.shell("apt-get update -qq -o Acquire::Retries=3"); err != nil {
		return err
	}
	out, err := g.shell("apt-get install -y -qq hello >/dev/null && hello && dpkg --audit")
	if err == nil && !strings.HasSuffix(out, "Hello, world!") {
		err = fmt.Errorf("the package says %q", out)
	}
	return err
}

// reachPatience bounds how long the archive may take to answer this host.
const reachPatience = time.Minute

// reachable fails unless this host can read an archive the way a guest does: with no proxy and
// no password. What it can, the guest must.
func reachable(ctx context.Context, archive string) (err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(archive, "/")+"/dists/trixie/InRelease", nil)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: reachPatience}).Do(req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", req.URL, res.Status)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// kept is what a restart must not change.
type kept struct {
	clients      []*redisClient
	transactions int
	fioWrote     bool
}

// redis is redisChecked with more of everything; what it leaves is kept.
func (k *kept) redis(g *guest, seconds int) (err error) {
	l := redisLoad{clients: 8, commands: 400 * seconds, keys: 300, pipeline: 64, bytesMax: 64 << 10}
	if k.clients, err = redisChecked(g, redisForward, l); err != nil {
		return err
	}
	return g.says("OK", "redis-cli save")
}

// restart: the guest restarts in a new process of the machine, and finds all that it had.
func (k *kept) restart(g *guest) error {
	if err := g.typeLine("reboot"); err != nil {
		return err
	}
	if err := g.login(); err != nil {
		return err
	}
	if err := g.says("", "systemctl is-system-running --wait >/dev/null; systemctl --failed --no-legend --plain"); err != nil {
		return err
	}
	if len(k.clients) > 0 {
		if err := openRedis(g); err != nil {
			return err
		}
		for _, c := range k.clients {
			if err := c.with(g.r.ctx, g.forwards[redisForward], c.readAgain); err != nil {
				return err
			}
		}
	}
	if k.transactions > 0 {
		if err := balanced(g, k.transactions); err != nil {
			return err
		}
	}
	if k.fioWrote {
		return fioReads(g)
	}
	return nil
}

// replayed is the name of what replay shows.
const replayed = "replay of a recorded boot"

// replay: a boot that is recorded is lived again, and all digests are equal.
func (r *run) replay() (err error) {
	m := machine{image: whole, memory: "512M", record: filepath.Join(r.dir, "recording")}
	g, err := r.boot(m)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	r.try(g, step{replayed, func(g *guest) error {
		if err := booted(g); err != nil {
			return err
		}
		if err := g.powerOff(); err != nil {
			return err
		}
		out, err := exec.CommandContext(r.ctx, r.bin, "machine", "replay", m.record).CombinedOutput()
		said := strings.TrimSpace(string(out))
		if err != nil {
			return fmt.Errorf("machine replay: %w: %s", err, said)
		}
		last := said[strings.LastIndexByte(said, '\n')+1:]
		g.remark("%s", last)
		return nil
	}})
	return nil
}
