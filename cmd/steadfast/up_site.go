package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/handed"
	"steadfast/node/handed/trial"
)

// Files of a pair's directory, beside one directory for each member.
const (
	membersFile = "members.json" // where the members reach one another
	runningFile = "up.json"      // of the "steadfast up" that runs
	lockFile    = "up.lock"      // held by it
	demoFile    = "demo.lock"    // held by a "steadfast demo"
)

// Regions of the verified volume: that of "up", and that of "demo".
var (
	upRegion   = trial.Region{From: 0, Size: 8 << 20}
	demoRegion = trial.Region{From: 32 << 20, Size: 8 << 20, RateMax: 1000}
)

// nodes are the pair's storage nodes.
var nodes = [2]string{"a", "b"}

// running is what a "steadfast up" tells others of itself.
type running struct {
	PID    int    `json:"pid"`
	Portal string `json:"portal"`
	Target string `json:"target"`
	LUN    int    `json:"lun"` // of the verified volume
	// Redis is where the machine's Redis is reached, once it has answered.
	Redis string `json:"redis,omitempty"`
}

// site is a pair's directory, as somebody beside it sees it.
type site struct {
	a   *app
	dir string
}

func (s site) path(name string) string { return filepath.Join(s.dir, name) }

// socket is a member's API socket.
func (s site) socket(member string) string { return filepath.Join(s.dir, member, "api.sock") }

// at returns the command line for a member.
func (s site) at(member string) *app {
	return &app{in: new(bytes.Reader), out: s.a.out, errs: s.a.errs, getenv: s.a.getenv, socket: s.socket(member), output: "table"}
}

// groupTime bounds the look at a group on one node.
const groupTime = 800 * time.Millisecond

// group returns the group as the node sees it that knows its newest owner: one that
// was just started knows only what there was. Fails with what the nodes say, or with
// fault.Unreachable, when no node answers.
func (s site) group(ctx context.Context) (*steadfastv1.Group, error) {
	ctx, cancel := context.WithTimeout(ctx, groupTime)
	defer cancel()
	var seen [len(nodes)]*steadfastv1.Group
	var errs [len(nodes)]error
	var asked sync.WaitGroup
	for i, n := range nodes {
		asked.Go(func() {
			r, err := s.at(n).groups().GetGroup(ctx, &steadfastv1.GetGroupRequest{Name: upGroup})
			if err == nil {
				seen[i] = r.Group
			}
			errs[i] = err
		})
	}
	asked.Wait()
	best := newest(seen[:])
	if best == nil {
		return nil, errors.Join(errs[:]...)
	}
	return best, nil
}

// newest returns the view of the newest epoch, the owner's if there are several; nil
// when there is none. Views are in the order of nodes.
func newest(seen []*steadfastv1.Group) (best *steadfastv1.Group) {
	for i, g := range seen {
		if g != nil && (best == nil || g.Epoch > best.Epoch || g.Epoch == best.Epoch && nodes[i] == g.Owner) {
			best = g
		}
	}
	return best
}

// awaitGroup waits until the group is as wanted. Fails with fault.Unreachable after
// the time for it, and with fault.Canceled when ctx ends.
func (s site) awaitGroup(ctx context.Context, what string, within time.Duration, holds func(*steadfastv1.Group) bool) (*steadfastv1.Group, error) {
	late := time.NewTimer(within)
	defer late.Stop()
	var last string
	for {
		g, err := s.group(ctx)
		switch {
		case err != nil:
			last = err.Error()
		case holds(g):
			return g, nil
		default:
			last = "it is " + g.State + "; " + g.Problem
		}
		select {
		case <-ctx.Done():
			return nil, fault.Wrap(fault.Canceled, context.Cause(ctx), "waiting for the group")
		case <-late.C:
			return nil, fault.New(fault.Unreachable, "group %q is not %s after %v: %s; the members' logs are in %s", upGroup, what, within, last, s.dir)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// inSync tells whether both nodes have every acknowledged write.
func inSync(g *steadfastv1.Group) bool { return g.State == "serving" && len(g.InSync) == len(nodes) }

// processOf returns the process that serves a member's API: who listens at a
// socket is known to the kernel.
func (s site) processOf(member string) (int, error) {
	conn, err := net.DialTimeout("unix", s.socket(member), groupTime)
	if err != nil {
		return 0, fault.Wrap(fault.Unreachable, err, "node "+member+" does not run")
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, fault.Wrap(fault.Internal, err, "the socket of node "+member)
	}
	var cred *unix.Ucred
	failed := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(failed, err); err != nil || cred.Pid <= 0 {
		return 0, fault.New(fault.Internal, "the process of node %s is not known: %v", member, err)
	}
	return int(cred.Pid), nil
}

// admit opens a volume to anyone on loopback.
func (s site) admit(ctx context.Context, volume string) (target string, lun int, err error) {
	for _, n := range nodes {
		if target, lun, err = handed.Admit(ctx, handed.Socket(s.path(n)), volume); !fault.Is(err, fault.Unreachable) {
			break
		}
	}
	return target, lun, err
}

// running finds the "steadfast up" that runs on the directory. Fails with
// fault.Unreachable when none does.
func (s site) running() (r running, err error) {
	lock, err := lockFileIn(s.dir, lockFile)
	if err == nil {
		_ = lock.Close() // nobody holds it
	}
	b, readErr := os.ReadFile(s.path(runningFile))
	if !fault.Is(err, fault.Busy) || readErr != nil || json.Unmarshal(b, &r) != nil {
		return r, fault.New(fault.Unreachable, "no \"steadfast up\" runs on %s, or it is not ready yet; start one with \"steadfast up --data %s\"", s.dir, s.dir)
	}
	return r, nil
}

// lockFileIn takes a lock until the file is closed. Fails with fault.Busy when
// somebody has it, and with fault.NotFound when there is no such directory.
func lockFileIn(dir, name string) (*os.File, error) {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.Wrap(fault.NotFound, err, "no such directory")
	case err != nil:
		return nil, fault.Wrap(fault.Denied, err, "cannot lock "+path)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		kind := fault.Denied
		if errors.Is(err, unix.EWOULDBLOCK) {
			kind = fault.Busy
		}
		return nil, errors.Join(fault.Wrap(kind, err, path+" is held"), f.Close())
	}
	return f, nil
}

// signLock writes into a lock whose it is, so that who finds it held knows whom to ask to end.
func signLock(f *os.File) error {
	err := f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	return fault.Wrap(fault.Failed, err, "cannot write "+f.Name())
}

// writeJSON writes a small file, whole or not at all.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = os.WriteFile(path+".new", append(b, '\n'), 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	return fault.Wrap(fault.Failed, err, "cannot write "+path)
}

// loopback returns an address on loopback.
func loopback(port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))
}

// free tells whether an address on loopback can be listened at.
func free(address string) bool {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// placeNew finds free addresses for the members that have none yet. nth keeps those
// apart who look at the same time: the ports tried first are not the same.
func placeNew(members map[string]string, names []string, nth int) error {
	const first, last, each = 7400, 9000, 5
	port := first + each*nth
	for _, name := range names {
		for ; members[name] == ""; port++ {
			if port == last {
				return fault.New(fault.Busy, "the ports from %d to %d are in use on 127.0.0.1; stop what uses them (ss -ltnp)", first, last)
			}
			if at := net.JoinHostPort("127.0.0.1", strconv.Itoa(port)); !taken(members, at) && free(at) {
				members[name] = at
			}
		}
	}
	return nil
}

// taken tells whether an address is a member's.
func taken(members map[string]string, address string) bool {
	for _, at := range members {
		if at == address {
			return true
		}
	}
	return false
}
