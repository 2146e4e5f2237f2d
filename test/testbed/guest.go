package testbed

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Guest is a small Linux machine that QEMU emulates: Debian's kernel, busybox and
// open-iscsi in an initrd. It has no drive; what it shall know comes in as files
// and on the kernel's command line.
type Guest struct {
	// Cache is a folder where its kernel is kept between runs.
	Cache string
	// Initrd is the file that Build makes.
	Initrd string
	// Init is the script that is its first process.
	Init string
	// Items are commands of this machine that it has too, and FILE=PATH: a file
	// and where it lies in the guest.
	Items []string
}

// guestBuilder is from the root of the repository, where harnesses run.
const guestBuilder = "test/testbed/guest/build"

// Build makes what is not there. It needs the commands of "test/need guest", and
// the first time apt, to fetch the kernel.
func (g Guest) Build(ctx context.Context) error {
	argv := append([]string{g.Cache, g.Initrd, g.Init}, g.Items...)
	out, err := exec.CommandContext(ctx, guestBuilder, argv...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("the guest cannot be built: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Argv is the command that runs the guest without hardware help, for what runs
// this may itself be a guest: processors, words for the kernel's command line,
// and more of QEMU's options. The guest's console is the command's output,
// which ends with the guest.
func (g Guest) Argv(processors int, kernel []string, more ...string) []string {
	words := append([]string{"console=ttyS0 quiet loglevel=4 panic=-1"}, kernel...)
	return append([]string{
		"qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-m", "512", "-smp", strconv.Itoa(processors),
		"-no-reboot", "-monitor", "none", "-serial", "stdio", "-nodefaults", "-display", "none",
		"-kernel", filepath.Join(g.Cache, "vmlinuz"), "-initrd", g.Initrd, "-append", strings.Join(words, " "),
	}, more...)
}
