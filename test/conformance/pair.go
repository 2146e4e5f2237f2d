package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"steadfast/node/handed"
	"steadfast/test/testbed"
)

// Two nodes on loopback that serve a group of mirrored volumes with several paths,
// without root: this process holds the alias and hands its connections over, as
// "steadfast up" does. Node a owns the group; nothing moves it.

// Portals of a group, as way.paths names them.
const (
	pathAlias   = iota // the alias, always where the group is
	pathOwner          // the portal of the node that owns it: active
	pathStandby        // the other node's
)

// The members of the pair: nodes a and b, and the witness.
const (
	memberA = iota
	memberB
	memberW
	members
)

const (
	pairGroup   = "g"
	pairStart   = time.Minute
	pairPoolMiB = 4096
)

// twoNodes is a running pair. It has what runWay wants of a server.
type twoNodes struct {
	dir, bin string
	log      *os.File
	procs    [members]*member
	keeper   *handed.Keeper
	portals  [3]string // by path
	at       [members]string
	target   string
}

func memberName(m int) string { return [members]string{"a", "b", "w"}[m] }

// servePair starts a pair, and returns when both nodes have all of the group.
func servePair(ctx context.Context, o options, dir string) (server, error) {
	p := &twoNodes{dir: dir, bin: "bin/steadfast"}
	if other := os.Getenv("STEADFAST_BIN"); other != "" {
		p.bin = other
	}
	err := p.bringUp(ctx, o)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *twoNodes) bringUp(ctx context.Context, o options) (err error) {
	if p.bin, err = filepath.Abs(p.bin); err != nil {
		return err
	}
	if p.log, err = os.Create(filepath.Join(p.dir, "server.log")); err != nil {
		return err
	}
	for m := range p.at {
		port, err := testbed.FreePort("127.0.0.1")
		if err != nil {
			return err
		}
		p.at[m] = fmt.Sprintf("127.0.0.1:%d", port)
		if err := p.start(ctx, m); err != nil {
			return err
		}
	}
	if err := p.holdAlias(); err != nil {
		return err
	}
	for _, make := range []func(context.Context) error{p.makeCluster, p.makeGroup} {
		if err := make(ctx); err != nil {
			return err
		}
	}
	return p.makeVolumes(ctx, o)
}

// start starts a member and waits until it answers.
func (p *twoNodes) start(ctx context.Context, m int) (err error) {
	name := memberName(m)
	data := filepath.Join(p.dir, name)
	argv := []string{p.bin, "witness", "--data-dir", data, "--socket", p.socket(m)}
	if m != memberW {
		host := fmt.Sprintf("127.0.0.%d", 2+m)
		port, err := testbed.FreePort(host)
		if err != nil {
			return err
		}
		p.portals[pathOwner+m] = fmt.Sprintf("%s:%d", host, port)
		text := fmt.Sprintf("data_dir = %q\nsocket = %q\ncache_size = \"64M\"\n[[portal]]\naddress = %q\ngroup = %d\n[cluster]\nhanded_aliases = true\n",
			data, p.socket(m), p.portals[pathOwner+m], m+1)
		file := filepath.Join(p.dir, name+".toml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
		argv = []string{p.bin, "node", "--config", file}
	}
	if p.procs[m], err = startMember(p.log, argv); err != nil {
		return err
	}
	return p.patiently(ctx, m, "status")
}

// member is a process of the pair. It dies with this one.
type member struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has
}

func startMember(log *os.File, argv []string) (*member, error) {
	m := &member{cmd: exec.Command(argv[0], argv[1:]...), ended: make(chan struct{})}
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = m.cmd.Wait() // it is killed at the end; that it ended before is PID's to tell
		close(m.ended)
	}()
	return m, nil
}

// gone tells whether the process has ended.
func (m *member) gone() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// kill ends the process with all that it started (its guard).
func (m *member) kill() error {
	if m == nil {
		return nil
	}
	err := syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
	<-m.ended
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

func (p *twoNodes) socket(m int) string { return filepath.Join(p.dir, memberName(m)+".sock") }

// cli runs the command line against a member.
func (p *twoNodes) cli(ctx context.Context, m int, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, p.bin, append([]string{"--socket", p.socket(m)}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("steadfast %s (on %s): %w: %s", strings.Join(args, " "), memberName(m), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// patiently runs a command until it succeeds: a member knows a moment later what
// was said to another, and a group is not whole at once.
func (p *twoNodes) patiently(ctx context.Context, m int, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, pairStart)
	defer cancel()
	for {
		_, err := p.cli(ctx, m, args...)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// holdAlias listens at the alias.
func (p *twoNodes) holdAlias() error {
	var sockets []string
	for _, m := range []int{memberA, memberB} {
		sockets = append(sockets, handed.Socket(filepath.Join(p.dir, memberName(m))))
	}
	p.keeper = handed.NewKeeper(handed.Options{Nodes: sockets, Log: slog.New(slog.NewTextHandler(p.log, nil))})
	port, err := testbed.FreePort("127.0.0.1")
	if err != nil {
		return err
	}
	at, err := p.keeper.Hold(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)), pairGroup)
	p.portals[pathAlias] = at.String()
	return err
}

// makeCluster makes one cluster of the three, and a pool on each node.
func (p *twoNodes) makeCluster(ctx context.Context) error {
	if _, err := p.cli(ctx, memberA, "cluster", "init", "--name", "a", "--address", p.at[memberA]); err != nil {
		return err
	}
	for _, m := range []int{memberB, memberW} {
		token, err := p.cli(ctx, memberA, "cluster", "token", "--role", map[int]string{memberB: "node", memberW: "witness"}[m])
		if err != nil {
			return err
		}
		token, _, _ = strings.Cut(token, "\n")
		if _, err := p.cli(ctx, m, "cluster", "join", "--name", memberName(m), "--address", p.at[m], token); err != nil {
			return err
		}
	}
	for _, m := range []int{memberA, memberB} {
		if _, err := p.cli(ctx, m, "pool", "create", "p", filepath.Join(p.dir, memberName(m)+".pool"), "--size", strconv.Itoa(pairPoolMiB<<20)); err != nil {
			return err
		}
	}
	return nil
}

// makeGroup makes the group, with all paths, and learns its target's name.
func (p *twoNodes) makeGroup(ctx context.Context) error {
	// Which needs the portals of both nodes in the inventory.
	if err := p.patiently(ctx, memberA, "group", "create", pairGroup, "--nodes", "a,b", "--pool", "p", "--alias", "127.0.0.1/8", "--multipath"); err != nil {
		return err
	}
	return p.await(ctx, "in sync", func(text string) bool {
		p.target = field(text, "target")
		return p.target != "" && field(text, "state") == "serving" && field(text, "owner") == "a" && strings.Contains(field(text, "in sync"), "b")
	})
}

// field returns what "group show" says of something.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// await looks at the group until it is as wanted.
func (p *twoNodes) await(ctx context.Context, what string, wanted func(string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, pairStart)
	defer cancel()
	for {
		text, err := p.cli(ctx, memberA, "group", "show", pairGroup)
		if err == nil && wanted(text) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the group did not become %s in %v:\n%s", what, pairStart, text), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// makeVolumes makes the volumes, and admits the tool to them.
func (p *twoNodes) makeVolumes(ctx context.Context, o options) error {
	for _, name := range toolNames {
		if _, err := p.cli(ctx, memberA, "initiator", "add", name); err != nil {
			return err
		}
	}
	for _, v := range volumes(o) {
		args := []string{"volume", "create", v.Name, "--group", pairGroup, "--size", strconv.FormatInt(v.Size, 10)}
		if v.WriteCache {
			args = append(args, "--write-cache=on")
		}
		if v.ReadOnly {
			args = append(args, "--read-only")
		}
		if _, err := p.cli(ctx, memberA, args...); err != nil {
			return err
		}
		for _, name := range toolNames {
			if err := p.patiently(ctx, memberA, "volume", "map", v.Name, "--initiator", name, "--lun", strconv.Itoa(v.LUN)); err != nil {
				return err
			}
		}
	}
	return nil
}

// reached waits until a unit is seen at a URL: a node knows of it a moment after the
// command that made it.
func reached(ctx context.Context, url, preload string) error {
	ctx, cancel := context.WithTimeout(ctx, pairStart)
	defer cancel()
	for {
		cmd := exec.CommandContext(ctx, "iscsi-inq", "-i", toolName, url)
		if preload != "" {
			cmd.Env = append(os.Environ(), "LD_PRELOAD="+preload)
		}
		out, err := cmd.CombinedOutput()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %s", url, err, out)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// standbyLogin is the source of what the tool must load to log in at a standby.
const standbyLogin = "test/conformance/standby/login.c"

// standby tells whether a way goes through a port on standby.
func (w way) standby() bool { return slices.Contains(w.paths, pathStandby) }

// lacks tells what is not installed here and needed for a way; empty: nothing.
func (w way) lacks() string {
	if !w.standby() {
		return ""
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		return "a program has to be compiled, and there is no gcc"
	}
	if _, err := os.Stat("/usr/include/iscsi/iscsi.h"); w.run != nil && err != nil {
		return "a program has to be compiled, and there is no iscsi.h (Debian: libiscsi-dev)"
	}
	return ""
}

// preload makes the library that the tool needs for a way, if it needs one.
func (w way) preload(ctx context.Context, dir string) (string, error) {
	if !w.standby() {
		return "", nil
	}
	file := filepath.Join(dir, "login.so")
	return file, compile(ctx, file, "-shared", "-fPIC", standbyLogin)
}

// compile makes file of C sources and flags.
func compile(ctx context.Context, file string, args ...string) error {
	args = append([]string{"-O1", "-Wall", "-Werror", "-o", file}, args...)
	out, err := exec.CommandContext(ctx, "gcc", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("gcc (Debian: gcc, libc6-dev, libiscsi-dev): %w: %s", err, out)
	}
	return nil
}

// pathsProgram is a host with several paths, which iscsi-test-cu is not: it shares
// no initiator name between sessions, and knows no takeover.
const pathsProgram = "test/conformance/standby/paths.c"

// runPaths has the program judge a pair whose owner it kills.
func runPaths(ctx context.Context, o options, _ way, dir string, s server) (sum tally, err error) {
	p := s.(*twoNodes)
	program := filepath.Join(dir, "paths")
	if err := compile(ctx, program, pathsProgram, "-liscsi"); err != nil {
		return sum, err
	}
	short, cancel := context.WithTimeout(ctx, o.suiteTimeout)
	defer cancel()
	out, err := exec.CommandContext(short, program, p.portals[pathOwner], p.portals[pathStandby], p.target, strconv.Itoa(lunPlain),
		strconv.Itoa(p.procs[memberA].cmd.Process.Pid), toolNames[0], toolNames[1]).Output()
	if err := os.WriteFile(filepath.Join(o.logs, "paths.log"), out, 0o644); err != nil {
		return sum, err
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "passed ") {
			sum.passed++
			continue
		}
		sum.failed++
		fmt.Printf("FAIL paths: %s", line)
	}
	if err != nil {
		return sum, fmt.Errorf("%s: %w", pathsProgram, err)
	}
	return sum, nil
}

// URL names a volume for libiscsi, through a path.
func (p *twoNodes) URL(path, lun int) string {
	return fmt.Sprintf("iscsi://%s/%s/%d", p.portals[path], p.target, lun)
}

// PID is 0 when a member does not run any more, or else the owner's.
func (p *twoNodes) PID() int {
	for m := range p.procs {
		if p.procs[m].gone() {
			return 0
		}
	}
	return p.procs[memberA].cmd.Process.Pid
}

// Close ends the pair.
func (p *twoNodes) Close() error {
	var err error
	if p.keeper != nil {
		p.keeper.Close()
	}
	for _, proc := range p.procs {
		err = errors.Join(err, proc.kill())
	}
	if p.log != nil {
		err = errors.Join(err, p.log.Close())
	}
	return err
}
