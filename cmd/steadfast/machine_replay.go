package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"steadfast/compute/device"
	"steadfast/compute/machine"
	"steadfast/compute/machineio"
	"steadfast/compute/vmm/standalone"
	"steadfast/fault"
)

// divergedStatus is the exit status of a replay that is not what was recorded.
const divergedStatus = exitStatus(1)

// isCanceledByForce tells whether a machine's end by force is what was wanted.
func isCanceledByForce(ctx context.Context, err error) bool {
	return ctx.Err() == nil && fault.Is(err, fault.Canceled)
}

func (a *app) machineReplay() *cobra.Command {
	var from, to, print, save string
	c := &cobra.Command{
		Use: "replay DIR", Short: "Have a recorded machine live again", Args: exactly(1),
		Example: `  steadfast machine replay ./rec
  steadfast machine replay ./rec --to 1500M --print disassembly
  steadfast machine replay ./rec --to 1500M --save at-1500M
  steadfast machine replay ./rec --from at-1500M --print state`,
		Long: `Have a machine that "steadfast machine record" has recorded live again, without its
disks, its network and its time, and compare its digests with the recorded ones.

--to stops before the instruction of that count. --print then prints the processor's
registers (state), or the code around the next instruction (disassembly); console
prints what the guest writes on its serial port on the way. --save saves the machine
where it stops, and --from begins at such a state instead of the beginning.

A log without an end, as of a recorder that was killed, is replayed as far as it goes.

Exit status: 0 when all digests that were compared are equal, 1 when one differs.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			limit := uint64(1<<64 - 1)
			if to != "" {
				var err error
				if limit, err = parseCount(to); err != nil {
					return err
				}
			}
			if print != "" && print != "state" && print != "disassembly" && print != "console" {
				return fault.New(fault.Invalid, "--print %q: state, disassembly and console are printed", print)
			}
			if from == "" {
				from = filepath.Join(args[0], standalone.RecordedState)
			}
			return interruptible(cmd.Context(), func(ctx context.Context) error {
				return a.replay(ctx, from, args[0], limit, print, save)
			})
		},
	}
	c.Flags().StringVar(&from, "from", "", "begin at this saved state (default: the recording's beginning)")
	c.Flags().StringVar(&to, "to", "", "stop at this count of instructions (default: the recording's end)")
	c.Flags().StringVar(&print, "print", "", "what to print: state, disassembly or console")
	c.Flags().StringVar(&save, "save", "", "file to save the machine to where it stops")
	a.complete(c, "print", func(context.Context) []string { return []string{"state", "disassembly", "console"} })
	return c
}

// replay replays, and prints what is wanted of it.
func (a *app) replay(ctx context.Context, state, dir string, limit uint64, print, save string) (err error) {
	r, err := machineio.OpenRecording(state, filepath.Join(dir, standalone.RecordedLog))
	if err != nil {
		return err
	}
	r.BootFrom(filepath.Join(dir, standalone.RecordedKernel), filepath.Join(dir, standalone.RecordedInitrd))
	defer func() { err = errors.Join(err, r.Close()) }()
	c := r.Contents
	a.note("the log goes to %s; inputs: %s, digests: %s\n", counted(c.Last), counted(c.Inputs), counted(uint64(len(c.Digests))))
	if c.WallSets > 0 {
		a.note("the host's clock was set %d times meanwhile, and the guest's with it\n", c.WallSets)
	}
	if limit != 1<<64-1 && limit > c.Last {
		a.note("count %s is beyond the end of the log\n", counted(limit))
	}
	var out func(device.Output)
	if print == "console" {
		out = func(o device.Output) {
			if o.Port == machine.PortSerial {
				a.say("%s", o.Data)
			}
		}
	}
	err = r.Run(ctx, limit, out, a.replayProgress(r, min(limit, c.Last)))
	a.endReplayProgress()
	var diverged *machineio.Diverged
	if errors.As(err, &diverged) {
		a.note("diverged between %s and %s: %v\n", counted(diverged.After), counted(diverged.Before), diverged.Err)
		err = divergedStatus
	}
	if err == nil {
		a.sayEnd(r, limit)
	}
	return errors.Join(err, a.printReplayed(r.Machine, print, save))
}

// sayEnd says where a replay has come to.
func (a *app) sayEnd(r *machineio.Recording, limit uint64) {
	m := r.Machine
	if !r.Contents.Whole && m.Count() >= r.Contents.Last && limit > r.Contents.Last {
		a.note("the log has no end: its recorder died; this is as far as it goes\n")
	}
	a.note("at %s (%s): %s; digests compared, and equal: %s\n", counted(m.Count()), seconds(m.Now()), m.End(), counted(r.Compared()))
}

// printReplayed prints what is wanted of a machine that a replay has stopped, and saves it.
func (a *app) printReplayed(m *machine.Machine, print, save string) (err error) {
	switch print {
	case "state":
		err = machineio.PrintState(a.out, m)
	case "disassembly":
		err = machineio.PrintDisassembly(a.out, m)
	}
	if err != nil || save == "" {
		return err
	}
	f, err := os.OpenFile(save, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fault.New(fault.Exists, "%s is there already", save)
	}
	if err != nil {
		return fault.Wrap(fault.Denied, err, "saving the machine")
	}
	err = m.Save(f)
	return errors.Join(err, f.Close())
}

// progressEvery is how often a replay's progress is shown.
const progressEvery = 500 * time.Millisecond

// replayProgress shows on a terminal how far a replay has come.
func (a *app) replayProgress(r *machineio.Recording, end uint64) func() {
	if !isTerminal(a.errs) {
		return nil
	}
	began, first := time.Now(), r.Machine.Count()
	shown := began
	return func() {
		now := time.Now()
		if now.Sub(shown) < progressEvery {
			return
		}
		shown = now
		at := r.Machine.Count()
		a.note("\r\x1b[K%s of %s (%s), %.0f million a second", counted(at), counted(end), share(int64(at), int64(end)), float64(at-first)/1e6/now.Sub(began).Seconds())
	}
}

func (a *app) endReplayProgress() {
	if isTerminal(a.errs) {
		a.note("\r\x1b[K")
	}
}
