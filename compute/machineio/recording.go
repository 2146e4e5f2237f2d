package machineio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"

	"steadfast/compute/device"
	"steadfast/compute/machine"
	"steadfast/fault"
)

// stepCounts is how far a replay goes between two looks at its context.
const stepCounts = 20_000_000

// Contents is what a log holds.
type Contents struct {
	// Inputs are how many there are, WallSets those of them that set the guest's wall clock
	// (the host's was set), and Digests the counts at which there is a digest, ascending.
	Inputs   uint64
	WallSets int
	Digests  []uint64
	// First and Last are the counts of the first and the last entry.
	First, Last uint64
	// Whole tells that the recording was ended in order: else its recorder has died.
	Whole bool
	// Damage is what the log cannot be read beyond Last for, or nil.
	Damage error
}

// Survey reads a log.
func Survey(r io.Reader) (c Contents, err error) {
	log, err := machine.ReadLog(r)
	if err != nil {
		return c, err
	}
	for n := 0; ; n++ {
		e, err := log.Next()
		if errors.Is(err, io.EOF) {
			return c, nil
		}
		if err != nil {
			c.Damage = err
			return c, nil
		}
		if c.Last = e.At; n == 0 {
			c.First = e.At
		}
		switch {
		case e.Hash != nil:
			c.Digests = append(c.Digests, e.At)
		case e.Input == nil:
			c.Whole = true
			return c, nil
		default:
			c.Inputs++
			if e.Input.Port == machine.PortMachine && e.Input.Kind == machine.WallSet {
				c.WallSets++
			}
		}
	}
}

// Recording is a machine that lives again what its log says. It needs no disk, no network
// and no clock.
type Recording struct {
	Machine  *machine.Machine
	Contents Contents
	replay   *machine.Replay
	log      *os.File
	// compare are the counts of the digests that this replay comes by.
	compare []uint64
}

// Diverged is the error that the machine is not the one that was recorded.
type Diverged struct {
	// After is the last count at which it was known to be, Before the first at which it is
	// known not to be.
	After, Before uint64
	// Compared is how many digests were equal.
	Compared uint64
	Err      error
}

// Error implements error.
func (d *Diverged) Error() string {
	return fmt.Sprintf("the replay has diverged between %d and %d: %v", d.After, d.Before, d.Err)
}

// Unwrap returns what showed it.
func (d *Diverged) Unwrap() error { return d.Err }

// OpenRecording begins a replay: state is a machine that was saved, log the file of its
// log. Close is to follow. Fails with fault.NotFound or fault.Corrupt, and with
// fault.Invalid when the state is of a count beyond the log.
func OpenRecording(state, log string) (*Recording, error) {
	l, err := os.Open(log)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "the log")
	}
	r := &Recording{log: l}
	if err := r.open(state); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Recording) open(state string) (err error) {
	if r.Contents, err = Survey(r.log); err != nil {
		return err
	}
	f, err := os.Open(state)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "the machine's state")
	}
	defer f.Close()
	if r.Machine, err = machine.Restore(f); err != nil {
		return err
	}
	at := r.Machine.Count()
	if at > r.Contents.Last {
		return fault.New(fault.Invalid, "the state is of count %d, and the log ends at %d", at, r.Contents.Last)
	}
	first := sort.Search(len(r.Contents.Digests), func(i int) bool { return r.Contents.Digests[i] >= at })
	r.compare = slices.Clone(r.Contents.Digests[first:])
	if _, err := r.log.Seek(0, io.SeekStart); err != nil {
		return fault.Wrap(fault.Failed, err, "the log")
	}
	log, err := machine.ReadLog(r.log)
	if err == nil {
		r.replay, err = machine.NewReplay(r.Machine, log)
	}
	return err
}

// BootFrom names the files that the guest has booted from, for a recording in which it
// restarts: initrd may not be there.
func (r *Recording) BootFrom(kernel, initrd string) {
	r.Machine.Reload = func() (k, i []byte, err error) {
		if k, err = os.ReadFile(kernel); err != nil {
			return nil, nil, fault.Wrap(fault.NotFound, err, "the guest restarts, and the recording's kernel")
		}
		if i, err = os.ReadFile(initrd); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, nil, fault.Wrap(fault.NotFound, err, "the guest restarts, and the recording's initial RAM disk")
		}
		return k, i, nil
	}
}

// Close gives everything back.
func (r *Recording) Close() error {
	err := r.log.Close()
	if r.Machine != nil {
		err = errors.Join(err, r.Machine.Release())
	}
	return err
}

// Compared is how many digests were equal so far.
func (r *Recording) Compared() uint64 { return r.replay.Compared }

// Run takes the machine to a count, before anything that the log has for it, or to the
// log's end. out, if any, gets what the machine says, and progress is called now and then.
// Fails with a *Diverged, with fault.Corrupt where the log is damaged, or with
// fault.Canceled.
func (r *Recording) Run(ctx context.Context, to uint64, out func(device.Output), progress func()) error {
	r.replay.Out = out
	for !r.replay.Done() && r.Machine.Count() < to {
		if ctx.Err() != nil {
			return fault.Wrap(fault.Canceled, ctx.Err(), "the replay")
		}
		err := r.replay.Run(min(to, r.Machine.Count()+stepCounts))
		if fault.Is(err, fault.Invalid) {
			return r.diverged(err)
		}
		if err != nil {
			return err
		}
		if progress != nil {
			progress()
		}
	}
	return nil
}

func (r *Recording) diverged(err error) error {
	d := &Diverged{Before: r.Machine.Count(), Compared: r.replay.Compared, Err: err}
	if d.Compared > 0 && d.Compared <= uint64(len(r.compare)) {
		d.After = r.compare[d.Compared-1]
	}
	return d
}
