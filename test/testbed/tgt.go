package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tgt is the Linux SCSI target in user space, the peer. It forgets its
// configuration when it ends: Start says everything again.
type tgt struct {
	cfg    Config
	flags  string // --bsoflags: "" or "sync:direct"
	log    *os.File
	cgroup *Cgroup
	proc   *process
}

func newTgt(ctx context.Context, cfg Config, flags string) (Server, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("tgt needs root for its control socket")
	}
	t := &tgt{cfg: cfg, flags: flags}
	var err error
	if t.log, err = openLog(&t.cfg); err != nil {
		return nil, err
	}
	for _, v := range cfg.Volumes {
		if err := sparse(t.file(v), v.Size); err != nil {
			return nil, err
		}
	}
	if cfg.MemoryBytes > 0 {
		if t.cgroup, err = NewCgroup("tgt", cfg.MemoryBytes); err != nil {
			return nil, err
		}
	}
	if err := t.Start(ctx); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// sparse makes a file of n bytes that takes up none yet.
func sparse(path string, n int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(n), f.Close())
}

func (t *tgt) Name() string { return "tgt" }

func (t *tgt) PID() int {
	if t.proc == nil {
		return 0
	}
	return t.proc.cmd.Process.Pid
}

func (t *tgt) URL(portal, lun int) string { return url(t.cfg.Portals[portal], lun) }

func (t *tgt) file(v Volume) string { return filepath.Join(t.cfg.Dir, v.Name+".img") }

// control is the number of tgtd's control socket, of which it takes 15 bits:
// half the first portal's port, so that two of ours hardly ever meet.
func (t *tgt) control() string {
	_, text, _ := strings.Cut(t.cfg.Portals[0], ":")
	port, _ := strconv.Atoi(text)
	return strconv.Itoa(port / 2)
}

func (t *tgt) Start(ctx context.Context) error {
	tgtd, err := lookup("tgtd")
	if err != nil {
		return err
	}
	t.proc, err = start(t.log, t.cgroup, tgtd, "-f", "-C", t.control(), "--iscsi", "portal="+t.cfg.Portals[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err = t.proc.await(ctx, func() error {
		_, err := t.admin(ctx, "--op", "show", "--mode", "sys")
		return err
	})
	if err == nil {
		err = t.configure(ctx)
	}
	if err != nil {
		return errors.Join(err, t.Kill())
	}
	return nil
}

// configure defines the target, its units and who may use them.
func (t *tgt) configure(ctx context.Context) error {
	steps := [][]string{{"--op", "new", "--mode", "target", "--tid", "1", "-T", Target}}
	// An initiator may have digests; by itself tgt has none.
	for _, digest := range []string{"HeaderDigest", "DataDigest"} {
		steps = append(steps, []string{"--op", "update", "--mode", "target", "--tid", "1", "--name", digest, "--value", "CRC32C,None"})
	}
	for _, p := range t.cfg.Portals[1:] {
		steps = append(steps, []string{"--op", "new", "--mode", "portal", "--param", "portal=" + p})
	}
	for _, v := range t.cfg.Volumes {
		lun := strconv.Itoa(v.LUN)
		add := []string{"--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", lun, "-b", t.file(v)}
		if t.flags != "" {
			add = append(add, "--bsoflags", t.flags)
		}
		steps = append(steps, add, []string{
			"--op", "update", "--mode", "logicalunit", "--tid", "1", "--lun", lun,
			"--params", fmt.Sprintf("thin_provisioning=1,readonly=%d", flag(v.ReadOnly)),
		})
	}
	for i, who := range t.cfg.Initiators {
		if who.User == "" {
			continue
		}
		steps = append(steps,
			[]string{"--op", "new", "--mode", "account", "--user", who.User, "--password", who.Secret},
			[]string{"--op", "bind", "--mode", "account", "--tid", "1", "--user", who.User})
		if who.MutualUser != "" && i == 0 {
			steps = append(steps,
				[]string{"--op", "new", "--mode", "account", "--user", who.MutualUser, "--password", who.MutualSecret},
				[]string{"--op", "bind", "--mode", "account", "--tid", "1", "--user", who.MutualUser, "--outgoing"})
		}
	}
	steps = append(steps, []string{"--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"})
	for _, s := range steps {
		if _, err := t.admin(ctx, s...); err != nil {
			return err
		}
	}
	return nil
}

// admin runs tgtadm against this server.
func (t *tgt) admin(ctx context.Context, args ...string) (string, error) {
	tgtadm, err := lookup("tgtadm")
	if err != nil {
		return "", err
	}
	return run(ctx, append([]string{tgtadm, "-C", t.control(), "--lld", "iscsi"}, args...)...)
}

// Stop ends tgtd, which heeds no SIGTERM while it has targets.
func (t *tgt) Stop() error { return t.Kill() }

func (t *tgt) Kill() error {
	err := t.proc.end(syscall.SIGKILL, 5*time.Second)
	t.proc = nil
	return err
}

func (t *tgt) Close() error {
	err := t.Kill()
	_ = os.Remove("/var/run/tgtd/socket." + t.control())
	_ = os.Remove("/var/run/tgtd/socket." + t.control() + ".lock")
	if t.cgroup != nil {
		err = errors.Join(err, t.cgroup.Close())
	}
	return err
}

// lookup finds an admin's command also where PATH of a user lacks it.
func lookup(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

func flag(on bool) int {
	if on {
		return 1
	}
	return 0
}
