package machineio

import (
	"log/slog"

	"steadfast/compute/device"
	"steadfast/compute/machine"
)

// Gate stands between a machine and the world, for one that lives on two hosts: package
// lockstepio. With a gate nothing that comes out leaves by itself: it leaves by Leave. All but
// Gone is called by the loop.
type Gate interface {
	// Turn is called between two turns. It may look at the machine, and copy it. The loop
	// then stands still for so many nanoseconds, or until something wakes it, executes
	// nothing and delivers nothing; at 0 it goes on. With an error the life ends at once.
	Turn(m *machine.Machine) (stand uint64, err error)
	// Delivered is told an input that was delivered: it is the gate's to keep.
	Delivered(in *device.Input)
	// Ran is told where the machine is, how many nanoseconds it has executed for since the last
	// time, and what came out.
	Ran(count, busyNS uint64, out []device.Output)
	// Ended is told, after Ran, that the guest has ended its machine (or that the life was cut
	// short: false). It returns when all that is to leave has left.
	Ended(guest bool) error
}

// Resumed says how a life goes on that another process has lived.
type Resumed struct {
	// Host was the host's time (CLOCK_BOOTTIME, in nanoseconds) when the guest's was Guest:
	// what has passed since is made up for as a stall's time is.
	Host, Guest uint64
	// Outputs leave before anything else, but after what the machine waits for.
	Outputs []device.Output
}

// Attach puts a gate before a machine that lives; false when the life has ended. Of what came
// out until begin is called nothing passes the gate, and everything after it does.
func (l *Live) Attach(g Gate, begin func(m *machine.Machine)) bool {
	return l.Call(func(m *machine.Machine) {
		l.dispatchAll()
		l.gate = g
		begin(m)
	})
}

// Leave does in the world what the machine has asked for, in this order. It does not wait,
// and may be called by any goroutine until the gate's Ended has returned.
func (l *Live) Leave(list []device.Output) {
	for _, out := range list {
		l.dispatch(out)
	}
}

// Wake has the loop call Turn now.
func (l *Live) Wake() { l.ring() }

// stands tells whether the gate has the machine stand still, after it has: calls are
// answered meanwhile.
func (l *Live) stands() (bool, error) {
	ns, err := l.gate.Turn(l.m)
	if err != nil || ns == 0 {
		return false, err
	}
	l.wait(ns)
	if l.m.Count() == l.delivered { // a call is not to see half of a count
		return true, nil
	}
	l.mu.Lock()
	calls := l.calls
	l.calls = nil
	l.mu.Unlock()
	for _, c := range calls {
		c()
	}
	return true, nil
}

// leaves ends a life that has a gate.
func (l *Live) leaves(err error) error {
	if l.gate == nil {
		return err
	}
	if err == nil {
		return l.gate.Ended(l.m.End() != machine.Running)
	}
	if e := l.gate.Ended(false); e != nil {
		l.opt.Logger.Debug("a machine's end", slog.Any("error", e))
	}
	return err
}
