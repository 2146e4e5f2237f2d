package main

import (
	"context"
	"errors"
	"io"

	"steadfast/compute/image"
	"steadfast/compute/machine"
	"steadfast/compute/vmm/standalone"
	"steadfast/fault"
)

// stageMemory is the memory, in bytes, of the machine that an image's packages are configured in.
const stageMemory = 512 << 20

// stage runs the machines that images are configured in: each in a process of its own, as
// every machine, with the disk and nothing else.
type stage struct {
	say func(format string, args ...any)
}

// Run implements image.Runner.
func (s stage) Run(ctx context.Context, b image.Boot) (err error) {
	m, err := standalone.Open(standalone.Options{
		Kernel: b.Kernel, Initrd: b.Initrd, Disks: []standalone.Disk{{File: b.Disk}}, Memory: stageMemory,
		CommandLine: b.Cmdline, NoRestart: true, Outputs: []io.Writer{b.Console}, Say: s.say,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	end, err := m.Run(ctx)
	switch {
	case ctx.Err() != nil:
		return fault.Wrap(fault.Canceled, context.Cause(ctx), "the machine was ended")
	case err != nil:
		return err
	case end != machine.PoweredOff:
		return fault.New(fault.Failed, "the machine did not switch itself off: %s", end)
	}
	return nil
}
