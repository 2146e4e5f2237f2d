package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"steadfast/san/aliasio"
	"steadfast/test/testbed"
)

// standin is no pair. It is one node of storage in the place of two, to try the
// harness on, and clients on what a takeover does to them:
//
//	node            one node, started again at once when it dies
//	plain           the same, its alias an address like any other: the kernel
//	                resets connections when the node dies, and refuses new ones
//	standby         the other node starts on the same files when the owner dies
//	                or is cut off, which nobody but a harness can know for
//	                certain; alias and tickles are the product's (san/aliasio)
//	standby-silent  the same without tickles
//	rollback        wrong: a node that dies a second time forgets what it wrote
//	                after the first
//
// Its members do what they are told with no quorum behind it.
type standin struct {
	world   *world
	bin     string
	mode    string
	volume  []Volume
	holders map[Member]*aliasio.Holder

	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	owner    Member // whose process serves, or did last
	proc     *testbed.Proc
	serving  bool
	epoch    uint64
	dead     map[Member]bool // killed and not started again
	paused   bool
	sessions []aliasio.Session
	saved    bool // rollback: there is a copy
	failed   error
}

func newStandin(w *world, bin, mode string, volumes int, size int64) *standin {
	s := &standin{
		world: w, bin: bin, mode: mode, owner: NodeA, dead: map[Member]bool{},
		holders: map[Member]*aliasio.Holder{}, done: make(chan struct{}),
	}
	for i := range volumes {
		s.volume = append(s.volume, Volume{URL: fmt.Sprintf("iscsi://%s/%s/%d", portal, testbed.Target, i+1), Size: size})
	}
	return s
}

// standby tells that there are two nodes.
func (s *standin) standby() bool { return s.mode == "standby" || s.mode == "standby-silent" }

// pool lies with the other files, unless its drive shall fail.
func (s *standin) pool() string {
	if s.world.drives[NodeA] != nil {
		return s.world.poolPath(NodeA)
	}
	return s.file("pool")
}

// plain tells that the alias has no gate.
func (s *standin) plain() bool { return s.mode == "plain" }

func (s *standin) dir() string             { return s.world.path("shared") }
func (s *standin) file(name string) string { return filepath.Join(s.dir(), name) }
func (s *standin) alias() aliasio.Alias    { return aliasio.Alias{Interface: front, Address: aliasPrefix} }
func (s *standin) socket() string          { return s.file("api.sock") }
func (s *standin) config() string          { return s.file("steadfast.toml") }
func (s *standin) copyDir() string         { return s.world.path("copy") }
func (s *standin) Volumes() []Volume       { return s.volume }
func (s *standin) space() *testbed.Space   { return s.world.spaces[s.owner] }
func (s *standin) holder() *aliasio.Holder { return s.holders[s.owner] }
func (s *standin) ownAddress() string      { return net.JoinHostPort(address(s.owner, front), "3260") }

var aliasPrefix = netip.MustParsePrefix(aliasAddress + "/24")

// Up implements Pair.
func (s *standin) Up(ctx context.Context) error {
	for _, m := range []Member{NodeA, NodeB} {
		if s.plain() {
			break
		}
		h, err := aliasio.Open(aliasio.Options{Namespace: s.world.spaces[m].Fd()})
		if err != nil {
			return err
		}
		s.holders[m] = h
	}
	if err := os.Mkdir(s.dir(), 0o755); err != nil {
		return err
	}
	settings := fmt.Sprintf("data_dir = %q\nsocket = %q\ncache_size = \"64M\"\n[[portal]]\naddress = \":3260\"\n", s.file("data"), s.socket())
	if err := os.WriteFile(s.config(), []byte(settings), 0o600); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	for _, args := range s.setUp() {
		if err := s.cli(ctx, args...); err != nil {
			return err
		}
	}
	if err := s.hold(ctx); err != nil {
		return err
	}
	s.epoch, s.serving = 1, true
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go s.watch(ctx)
	return nil
}

// hold opens the alias at the owner.
func (s *standin) hold(ctx context.Context) error {
	if s.plain() {
		return s.space().AddAddress(front, aliasPrefix)
	}
	return s.holder().Hold(ctx, s.alias(), 0)
}

// release shuts the alias; it may be shut already.
func (s *standin) release() {
	if !s.plain() {
		_ = s.holder().Release(aliasPrefix.Addr())
	}
}

// setUp is what the node is told.
func (s *standin) setUp() [][]string {
	size := int64(1 << 30)
	for _, v := range s.volume {
		size += v.Size
	}
	steps := [][]string{
		{"pool", "create", poolName, s.pool(), "--size", strconv.FormatInt(size, 10)},
		{"target", "create", testbed.Target},
		{"initiator", "add", initiatorName},
	}
	for i, v := range s.volume {
		name := fmt.Sprintf("v%d", i+1)
		steps = append(steps,
			[]string{"volume", "create", name, "--size", strconv.FormatInt(v.Size, 10)},
			[]string{"volume", "map", name, "--initiator", initiatorName, "--target", testbed.Target, "--lun", strconv.Itoa(i + 1)})
	}
	return steps
}

func (s *standin) cli(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, s.bin, append([]string{"--socket", s.socket()}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("steadfast %v: %w: %s", args, err, out)
	}
	return nil
}

// start starts the node at the owner and waits until it takes logins.
func (s *standin) start(ctx context.Context) error {
	log, err := s.world.log(string(s.owner))
	if err != nil {
		return err
	}
	if s.proc, err = testbed.StartProc(s.space(), log, s.bin, "node", "--config", s.config()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return s.proc.Await(ctx, func() error { return s.dial(s.space(), s.ownAddress()) })
}

// dial tries a connection from a namespace.
func (s *standin) dial(from *testbed.Space, address string) error {
	return from.Do(func() error {
		c, err := net.DialTimeout("tcp", address, dialPatience)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// How the stand-in notices: about as fast as a real pair does.
const (
	watchEvery   = 50 * time.Millisecond
	dialPatience = 150 * time.Millisecond
	missesMax    = 4
)

// watch keeps the alias alive and takes over when the owner is missed.
func (s *standin) watch(ctx context.Context) {
	defer close(s.done)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for misses := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		if !s.serving || !s.standby() {
			misses = missesMax // it is known to be gone, or a supervisor's business
		}
		switch {
		case s.well():
			misses = 0
			s.refresh()
		case misses < missesMax:
			misses++
		default:
			misses = 0
			s.failed = errors.Join(s.failed, s.takeOver(ctx))
		}
		s.mu.Unlock()
	}
}

// well tells whether the owner serves.
func (s *standin) well() bool {
	if gone, _ := s.proc.Exited(); gone || s.paused {
		return false
	}
	return !s.standby() || s.dial(s.world.client, s.ownAddress()) == nil
}

func (s *standin) refresh() {
	if s.plain() {
		return
	}
	if s.holder().Refresh(aliasPrefix.Addr(), 0) != nil {
		_ = s.holder().Hold(context.Background(), s.alias(), 0)
	}
	if now, err := s.holder().Sessions(aliasPrefix.Addr()); err == nil {
		s.sessions = now
	}
}

// takeOver ends what is left of the owner, and starts a node.
func (s *standin) takeOver(ctx context.Context) error {
	s.release()
	s.serving = false
	if err := s.proc.Kill(); err != nil {
		return err
	}
	s.paused = false
	if s.standby() {
		if s.dead[s.owner.other()] && s.dead[s.owner] {
			return nil // nobody to take over
		}
		if !s.dead[s.owner.other()] {
			s.owner = s.owner.other()
		}
	}
	if s.mode == "rollback" {
		if err := s.rollBack(ctx); err != nil {
			return err
		}
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.hold(ctx); err != nil {
		return err
	}
	s.epoch++
	s.serving = true
	if s.mode != "standby-silent" && !s.plain() {
		go func(h *aliasio.Holder, sessions []aliasio.Session) { _ = h.Tickle(ctx, sessions) }(s.holder(), slices.Clone(s.sessions))
	}
	return nil
}

// rollBack keeps a copy of what the dead node left, or puts the kept one back.
func (s *standin) rollBack(ctx context.Context) error {
	from, to := s.dir(), s.copyDir()
	if s.saved {
		from, to = to, from
	}
	s.saved = !s.saved
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "cp", "-a", "--sparse=always", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	return nil
}

// repair puts a drive right that failed, with the node down meanwhile.
func (s *standin) repair(ctx context.Context, d *testbed.Drive) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release()
	s.serving = false
	return errors.Join(s.proc.Kill(), d.Repair(ctx))
}

// Status implements Pair.
func (s *standin) Status(context.Context) (Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := Status{Epoch: s.epoch, Detail: fmt.Sprintf("owner %s, serving %v, dead %v", s.owner, s.serving, s.dead)}
	if s.serving && s.well() {
		status.Owner = s.owner
		status.Whole = !s.dead[NodeA] && !s.dead[NodeB] && !s.dead[Witness]
	}
	return status, s.failed
}

// Kill implements Pair. The alias is silent before the node's connections are
// reset, as the gate's pulse has it in the product.
func (s *standin) Kill(m Member) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead[m] = s.standby() || m == Witness
	if m != s.owner || !s.serving {
		return nil
	}
	s.release()
	s.serving = false
	return s.proc.Kill()
}

// Start implements Pair: the member is there again; watch does the rest.
func (s *standin) Start(_ context.Context, m Member) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dead, m)
	return nil
}

// PID implements Pair: nobody's.
func (s *standin) PID(Member) int { return 0 }

// Folder implements Pair.
func (s *standin) Folder(m Member) string { return s.world.dir(m) }

// Pause implements Pair.
func (s *standin) Pause(m Member) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m != s.owner {
		return nil
	}
	s.paused = true
	return s.proc.Signal(syscall.SIGSTOP)
}

// Resume implements Pair: the process was killed in the takeover.
func (s *standin) Resume(Member) error { return nil }

// Move implements Pair: the owner is told to end.
func (s *standin) Move(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeOver(ctx)
}

// Cannot implements Pair.
func (s *standin) Cannot(kind string) string {
	able := []string{"kill-owner", "nothing"}
	if s.standby() {
		able = []string{"nothing", "kill-owner", "cut-owner", "stop-owner", "kill-other", "kill-witness", "kill-both", "planned-move"}
	}
	if slices.Contains(able, kind) {
		return ""
	}
	return s.mode + " is no pair"
}

// Close implements Pair.
func (s *standin) Close() error {
	if s.cancel != nil {
		s.cancel()
		<-s.done
	}
	err := s.proc.Kill()
	for _, h := range s.holders {
		err = errors.Join(err, h.Close())
	}
	return err
}
