package machineio

import (
	"context"
	"errors"
	"os"
	"time"

	"steadfast/block"
	"steadfast/compute/filedisk"
	"steadfast/compute/image"
	"steadfast/compute/machine"
	"steadfast/fault"
)

// Runner runs the machines that images are configured in. It implements image.Runner.
type Runner struct {
	// Memory is in bytes.
	Memory uint64
}

// Run implements image.Runner.
func (r Runner) Run(ctx context.Context, b image.Boot) (err error) {
	d, err := filedisk.Open(b.Disk, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Flush(), d.Close()) }()
	kernel, err := os.ReadFile(b.Kernel)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "a machine's kernel")
	}
	initrd, err := os.ReadFile(b.Initrd)
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "a machine's initial RAM disk")
	}
	m, err := machine.New(machine.Config{Memory: r.Memory, Disks: []machine.Disk{{Size: d.Size()}}, CommandLine: b.Cmdline, Seed: Seed(), Wall: uint64(time.Now().UnixNano())})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Release()) }()
	if err := m.Load(kernel, initrd); err != nil {
		return err
	}
	l, err := New(m, Options{Disks: []block.Device{d}, Serial: b.Console})
	if err != nil {
		return err
	}
	end, err := l.Run(ctx)
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return fault.Wrap(fault.Canceled, context.Cause(ctx), "a machine was ended")
	case end != machine.PoweredOff:
		return fault.New(fault.Failed, "the machine did not switch itself off: %s", end)
	}
	return nil
}
