// Package guard proves a node's death to the other members, at once.
//
// A member that is not heard of may be dead, or slow, or cut off; who would
// succeed it waits until its rights have run out. A guard ends that wait where
// the process has died: it is a small process of its own beside the node, which
// the kernel tells of the end by a pidfd. When that is readable, every thread of
// the node has ended: it will send, write and promise nothing any more. The guard
// tells the other members so, under the node's own certificate.
//
//	node ---- stdin: who it is, whom to tell ----> guard
//	  X                                              | pidfd: the node has ended
//	                                                 v
//	                                       the other members: "life N of a is over"
//
// It also takes alias addresses away that the node cannot: when it is dead, or so
// long stopped that its rights have ended. They are silent, but to a host beside
// the node they would still be here: it could not reach them where they are now.
//
// What the guard says is trusted as the node itself is: it has the node's key. It
// says nothing while the node lives; when it is killed itself, the others wait as
// they would without it.
package guard

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
	"steadfast/san/aliasio"
)

// Proto is the ALPN by which a death is told: the message is one JSON object,
// Obituary.
const Proto = "steadfast-death/1"

// Command is the hidden command under which the binary runs as a guard.
const Command = "guard"

// Times of telling. It is tried for as long as it can be of use: whoever has not
// heard by then has waited anyway.
const (
	tellTime  = 500 * time.Millisecond
	tellUntil = 3 * time.Second
	tellPause = 50 * time.Millisecond
)

// obituaryMax bounds what is read of an obituary, in bytes.
const obituaryMax = 4096

// Obituary says that a life of the member that sends it is over.
type Obituary struct {
	Boot quorum.Boot `json:"boot"`
}

// Ward is what a guard needs to know of its node.
type Ward struct {
	// Dir is where the node's identity is.
	Dir    string        `json:"dir"`
	Boot   quorum.Boot   `json:"boot"`
	Member quorum.Member `json:"member"`
	// Others are the members to tell.
	Others []quorum.Record `json:"others"`
	// Aliases: the node may have held alias addresses, which are to go with it.
	Aliases bool `json:"aliases"`
}

// Guard is a guard beside this process.
type Guard struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	in  io.WriteCloser
}

// Start starts a guard beside this process, of the binary at path. It is a
// session of its own: what is sent to the node's process group does not end it.
func Start(path string, log *slog.Logger) (*Guard, error) {
	cmd := exec.Command(path, Command, strconv.Itoa(os.Getpid()))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fault.Wrap(fault.Failed, err, "the guard's pipe")
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fault.Wrap(fault.Failed, err, "the guard cannot be started"), in.Close())
	}
	g := &Guard{cmd: cmd, in: in}
	go func() {
		// It outlives the node; when it ends before, a death is noticed later.
		log.Debug("the guard has ended", "error", cmd.Wait())
	}()
	return g, nil
}

// Tell tells the guard what it guards now.
func (g *Guard) Tell(w Ward) error {
	b, err := json.Marshal(w)
	if err != nil {
		return fault.Wrap(fault.Internal, err, "what the guard is told")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err = g.in.Write(append(b, '\n'))
	return fault.Wrap(fault.Failed, err, "the guard does not listen")
}

// Dismiss ends the guard without a word: the node is no member any more.
func (g *Guard) Dismiss() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := g.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	if cerr := g.in.Close(); !errors.Is(cerr, os.ErrClosed) { // its end closes it, too
		err = errors.Join(err, cerr)
	}
	return fault.Wrap(fault.Failed, err, "the guard cannot be dismissed")
}

// Run is the guard's process: in is what its node tells it, parent the node's
// process. It returns when the node has ended and the others were told.
func Run(in io.Reader, parent int, log *slog.Logger) error {
	fd, err := unix.PidfdOpen(parent, 0)
	if err != nil {
		return fault.Wrap(fault.Failed, err, "the guard cannot watch its node")
	}
	defer func() { _ = unix.Close(fd) }() // the process ends
	if os.Getppid() != parent {
		return nil // it had ended before it could be watched, and told nothing
	}
	var mu sync.Mutex
	var ward Ward
	go func() {
		for s := bufio.NewScanner(in); s.Scan(); {
			var w Ward
			if err := json.Unmarshal(s.Bytes(), &w); err == nil {
				mu.Lock()
				ward = w
				mu.Unlock()
			}
		}
	}()
	present := func() Ward {
		mu.Lock()
		defer mu.Unlock()
		return ward
	}
	ended := make(chan struct{})
	go sweep(func() bool { return present().Aliases }, ended, log)
	err = waitFor(fd)
	close(ended)
	if err != nil {
		return err
	}
	w := present()
	if w.Boot == 0 {
		return nil
	}
	var tasks sync.WaitGroup
	defer tasks.Wait()
	if w.Aliases {
		tasks.Go(func() {
			if err := aliasio.Clear(aliasio.Options{}); err != nil {
				log.Debug("the dead node's alias addresses stay", "error", err)
			}
		})
	}
	if err := tellAll(w, log); err != nil {
		// Nobody reads what a process without its node says.
		log.Debug("nobody was told of the node's death", "error", err)
	}
	return nil
}

// Of sweeping: how often it is looked, and how long a grant is over then. A holder
// that takes an alias has its address for moments before its grant.
const (
	sweepEvery = 200 * time.Millisecond
	sweepAfter = 400 * time.Millisecond
)

// sweep takes aliases away whose rights have ended and that the node, which is
// stopped, does not let go of, until the node has ended.
func sweep(wanted func() bool, ended <-chan struct{}, log *slog.Logger) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var s *aliasio.Sweeper
	for {
		select {
		case <-ended:
			return // with the process
		case <-tick.C:
		}
		if !wanted() {
			continue
		}
		if s == nil {
			var err error
			if s, err = aliasio.OpenSweeper(aliasio.Options{}); err != nil {
				log.Debug("aliases of a node that is stopped will stay", "error", err)
				return
			}
		}
		if swept, err := s.Sweep(sweepAfter); err != nil || len(swept) > 0 {
			log.Debug("aliases of a node that is stopped were taken away", "aliases", swept, "error", err)
		}
	}
}

// waitFor returns when the process of a pidfd has ended.
func waitFor(fd int) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EINTR):
			return fault.Wrap(fault.Failed, err, "waiting for the node's end")
		}
	}
}

// tellAll tells every other member, at once, for as long as it is of use.
func tellAll(w Ward, log *slog.Logger) error {
	id, err := identity.Load(w.Dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), tellUntil)
	defer cancel()
	var tasks sync.WaitGroup
	for _, r := range w.Others {
		tasks.Go(func() {
			for ctx.Err() == nil {
				err := tell(ctx, id, r, w.Boot)
				if err == nil {
					return
				}
				log.Debug("a member was not told of the node's death", "member", r.Name, "error", err)
				select {
				case <-ctx.Done():
				case <-time.After(tellPause):
				}
			}
		})
	}
	tasks.Wait()
	return nil
}

// tell tells one member.
func tell(ctx context.Context, id *identity.Identity, r quorum.Record, boot quorum.Boot) (err error) {
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	conn, err := quorumio.Visit(ctx, id, boot, r, Proto)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // everything was said, or nothing will be
	if err := conn.SetDeadline(time.Now().Add(tellTime)); err != nil {
		return err
	}
	b, err := json.Marshal(Obituary{Boot: boot})
	if err != nil {
		return err
	}
	if _, err := conn.Write(b); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn) // it is closed when it was taken in
	return err
}

// Receive reads an obituary.
func Receive(conn io.Reader) (o Obituary, err error) {
	b, err := io.ReadAll(io.LimitReader(conn, obituaryMax))
	if err == nil {
		err = json.Unmarshal(b, &o)
	}
	return o, fault.Wrap(fault.Invalid, err, "an obituary")
}
