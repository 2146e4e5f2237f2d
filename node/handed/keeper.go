package handed

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"steadfast/fault"
)

// waitingMax bounds the connections that wait for a node: an initiator has one or
// two.
const waitingMax = 1024

// Pauses between two rounds of asking.
const (
	pauseMin = 2 * time.Millisecond
	pauseMax = 50 * time.Millisecond
)

// Options are what a Keeper is made with.
type Options struct {
	// Nodes are the sockets of the nodes that may serve a group.
	Nodes []string
	// Patience is how long a connection waits for a node before it is closed;
	// 0: 30 s.
	Patience time.Duration
	Log      *slog.Logger // nil: slog.Default()
}

// Keeper holds alias addresses for nodes that may not. It is safe for use by
// several goroutines.
type Keeper struct {
	Options
	ctx   context.Context
	stop  context.CancelFunc
	tasks sync.WaitGroup

	mu      sync.Mutex
	aliases map[netip.AddrPort]*alias
	last    map[string]int // index of the node that took a group's connection last
	waiting int
}

// alias is an address that is held.
type alias struct {
	listener net.Listener
	group    string
}

// NewKeeper returns a keeper that holds nothing yet.
func NewKeeper(o Options) *Keeper {
	if o.Patience <= 0 {
		o.Patience = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	k := &Keeper{Options: o, aliases: map[netip.AddrPort]*alias{}, last: map[string]int{}}
	k.ctx, k.stop = context.WithCancel(context.Background())
	return k
}

// Hold listens at an address for a group; a port of 0 becomes a free one. What
// connects waits until a node takes it. Fails with fault.Invalid for an address
// that is not on loopback, fault.Exists when it is held for another group,
// fault.Canceled after Close, and fault.Busy when it cannot be had.
func (k *Keeper) Hold(address netip.AddrPort, group string) (netip.AddrPort, error) {
	if !address.Addr().IsLoopback() {
		return address, fault.New(fault.Invalid, "%v is not on loopback; connections are handed over there only", address)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if have := k.aliases[address]; have != nil {
		if have.group != group {
			return address, fault.New(fault.Exists, "%v is held for group %q", address, have.group)
		}
		return address, nil
	}
	if k.ctx.Err() != nil {
		return address, fault.New(fault.Canceled, "the aliases are given up")
	}
	var config net.ListenConfig
	// A node's iSCSI server looks into its sockets, which must be plain ones.
	config.SetMultipathTCP(false)
	l, err := config.Listen(k.ctx, "tcp", address.String())
	if err != nil {
		return address, fault.Wrap(fault.Busy, err, "alias "+address.String())
	}
	address = l.Addr().(*net.TCPAddr).AddrPort()
	a := &alias{l, group}
	k.aliases[address] = a
	k.tasks.Go(func() { k.accept(a) })
	return address, nil
}

// Release ends Hold; what waits for a node goes on waiting. An address that is not
// held is none to release.
func (k *Keeper) Release(address netip.AddrPort) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a := k.aliases[address]; a != nil {
		delete(k.aliases, address)
		_ = a.listener.Close() // nothing is lost with it
	}
}

// Held returns the addresses that are held, with their groups.
func (k *Keeper) Held() map[netip.AddrPort]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[netip.AddrPort]string{}
	for at, a := range k.aliases {
		out[at] = a.group
	}
	return out
}

// Close gives up all addresses and what waits. Connections that nodes have taken
// stay. When it returns no goroutine is left.
func (k *Keeper) Close() {
	k.stop()
	for at := range k.Held() {
		k.Release(at)
	}
	k.tasks.Wait()
}

// accept takes connections until the address is released.
func (k *Keeper) accept(a *alias) {
	for {
		conn, err := a.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Out of descriptors, most likely: others may give some back.
			k.Log.Warn("cannot accept at an alias", "alias", a.listener.Addr().String(), "error", err)
			if !k.pause(k.ctx, pauseMax) {
				return
			}
			continue
		}
		if !k.enter() {
			_ = conn.Close() // as a full backlog would
			continue
		}
		k.tasks.Go(func() {
			defer k.leave()
			k.handOver(conn.(*net.TCPConn), a.group)
		})
	}
}

func (k *Keeper) enter() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.waiting >= waitingMax {
		return false
	}
	k.waiting++
	return true
}

func (k *Keeper) leave() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.waiting--
}

// pause waits, and reports whether it was not cut short.
func (k *Keeper) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// handOver finds the node that takes a connection, for as long as there is
// patience. Who took the last one is asked first.
func (k *Keeper) handOver(conn *net.TCPConn, group string) {
	defer func() { _ = conn.Close() }() // our copy
	ctx, cancel := context.WithTimeout(k.ctx, k.Patience)
	defer cancel()
	pause := pauseMin
	for {
		k.mu.Lock()
		first := k.last[group]
		k.mu.Unlock()
		for i := range k.Nodes {
			at := (first + i) % len(k.Nodes)
			err := offer(ctx, k.Nodes[at], group, conn)
			if err == nil {
				k.mu.Lock()
				k.last[group] = at
				k.mu.Unlock()
				return
			}
			k.Log.Debug("a connection was not taken", "group", group, "node", k.Nodes[at], "error", err)
		}
		if !k.pause(ctx, pause) {
			k.Log.Info("no node took a connection", "group", group, "client", conn.RemoteAddr().String())
			return
		}
		pause = min(2*pause, pauseMax)
	}
}

// offer asks a node whether it serves the group, and if so gives it the
// connection. After an error the node has not got it.
func offer(ctx context.Context, socket, group string, conn *net.TCPConn) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	c, err := dial(ctx, socket)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // what was sent is there
	if err := send(c, request{Do: doAsk, Group: group}); err != nil {
		return err
	}
	var got answer
	fds, err := receive(c, &got)
	closeAll(fds)
	if err == nil {
		err = got.err()
	}
	if err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) { err = send(c, request{Do: doTake, Group: group}, int(fd)) })
	return errors.Join(failed, err)
}
