package machine

import (
	"errors"
	"io"

	"steadfast/compute/device"
	"steadfast/fault"
)

// Replay is a machine whose life is in a log.
type Replay struct {
	m    *Machine
	log  *LogReader
	next *Entry // that was read and is not done
	done bool
	// Out gets what goes out, if it is set; nothing of it is needed.
	Out func(device.Output)
	// Compared and Inputs count the digests that were equal and the Inputs delivered.
	Compared, Inputs uint64
}

// NewReplay has a machine live what a log says from its count on: one that was just
// loaded, or one that was saved at a count before anything that the log has for it.
func NewReplay(m *Machine, log *LogReader) (*Replay, error) {
	r := &Replay{m: m, log: log}
	for {
		if err := r.read(); err != nil || r.done || r.next.At >= m.Count() {
			return r, err
		}
	}
}

// Machine returns the machine.
func (r *Replay) Machine() *Machine { return r.m }

// Done tells whether the log is over.
func (r *Replay) Done() bool { return r.done }

func (r *Replay) read() error {
	e, err := r.log.Next()
	switch {
	case errors.Is(err, io.EOF):
		r.done, r.next = true, nil
		return nil
	case err != nil:
		return err
	}
	r.next = &e
	return nil
}

// Run takes the machine to a count, before anything that the log has for it, or to its
// end or the log's if that comes before. Fails with fault.Invalid when the machine is not
// what the log has recorded: a digest differs, or it ends where the log goes on.
func (r *Replay) Run(limit uint64) error {
	for !r.done {
		to := min(limit, r.next.At)
		stop := r.m.Run(to)
		r.drain()
		if stop == StopSpent {
			continue
		}
		if stop == StopEnded && !r.fits() {
			return fault.New(fault.Invalid, "the machine has ended (%s) at %d, and its log goes on", r.m.End(), r.m.Count())
		}
		if r.next.At >= limit {
			return nil
		}
		if err := r.entry(); err != nil {
			return err
		}
	}
	return nil
}

// fits tells whether what the log has next is for a machine that has ended: what its
// digest was, that it begins anew, or the end.
func (r *Replay) fits() bool {
	in := r.next.Input
	return r.next.At == r.m.Count() && (in == nil || in.Port == PortMachine && in.Kind == Restart && r.m.End() == Restarts)
}

// entry does what the log says for the present count.
func (r *Replay) entry() error {
	e := r.next
	switch {
	case e.Input != nil:
		if err := r.m.Deliver(e.Input); err != nil {
			return err
		}
		r.Inputs++
		r.drain()
	case e.Hash != nil:
		if got := r.m.Hash(); got != *e.Hash {
			return fault.New(fault.Invalid, "at %d the machine is not what was recorded: %x, and was %x", e.At, got, *e.Hash)
		}
		r.Compared++
	default:
		r.done = true
		return nil
	}
	return r.read()
}

func (r *Replay) drain() {
	for _, out := range r.m.Outputs() {
		if r.Out != nil {
			r.Out(out)
		}
	}
}
