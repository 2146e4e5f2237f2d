package image

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"steadfast/fault"
)

// QEMU is a Runner that emulates a machine with qemu-system-riscv64.
type QEMU struct {
	// MemoryMiB is the machine's memory, 0 for 512.
	MemoryMiB int
	// Args are added to qemu's own.
	Args []string
}

// QEMUTool is what QEMU needs.
const QEMUTool = "qemu-system-riscv64"

// Ready fails with fault.NotFound if QEMU is not on this host.
func (QEMU) Ready() error { return needTools(QEMUTool) }

// Run implements Runner.
func (q QEMU) Run(ctx context.Context, m Boot) error {
	path, err := toolPath(QEMUTool)
	if err != nil {
		return err
	}
	memory := "512M"
	if q.MemoryMiB != 0 {
		memory = strconv.Itoa(q.MemoryMiB) + "M"
	}
	args := append([]string{
		"-machine", "virt", "-m", memory, "-global", "virtio-mmio.force-legacy=false", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", m.Kernel, "-initrd", m.Initrd, "-append", m.Cmdline,
		"-drive", "file=" + strings.ReplaceAll(m.Disk, ",", ",,") + ",format=raw,if=none,id=disk,cache=unsafe,discard=unmap,detect-zeroes=unmap",
		"-device", "virtio-blk-device,drive=disk", "-device", "virtio-rng-device",
	}, q.Args...)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = m.Console, m.Console
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fault.Wrap(fault.Canceled, ctx.Err(), "qemu")
		}
		return fault.Wrap(fault.Failed, err, "qemu")
	}
	return nil
}
