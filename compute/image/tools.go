package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"steadfast/fault"
)

// toolPackages names the Debian package that brings each tool of the host.
var toolPackages = map[string]string{
	"apt-get": "apt", "apt-config": "apt", "dpkg-deb": "dpkg", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs",
	"e2fsck": "e2fsprogs", "resize2fs": "e2fsprogs", "depmod": "kmod", "xz": "xz-utils",
}

// errorBytesMax bounds how much of a tool's complaint is shown.
const errorBytesMax = 2000

// toolPath finds a tool, also where only root's PATH leads.
func toolPath(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p := filepath.Join(dir, name); isExecutable(p) {
			return p, nil
		}
	}
	return "", fault.New(fault.NotFound, "%s is not on this host; it is in Debian's package %s", name, toolPackages[name])
}

func isExecutable(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// CheckTools fails with fault.NotFound, naming what is missing, unless this host has the tools
// that images are built with.
func CheckTools() error { return needTools(buildTools...) }

// buildTools are what a build runs.
var buildTools = []string{"apt-get", "apt-config", "dpkg-deb", "mke2fs", "debugfs", "e2fsck", "depmod", "xz"}

// needTools fails with fault.NotFound, naming all that is missing at once.
func needTools(names ...string) error {
	var missing, packages []string
	for _, n := range names {
		if _, err := toolPath(n); err != nil {
			missing = append(missing, n)
			packages = append(packages, toolPackages[n])
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(packages)
	packages = slices.Compact(packages)
	return fault.New(fault.NotFound, "not on this host: %s; install Debian's packages %s", strings.Join(missing, ", "), strings.Join(packages, " "))
}

// command is one run of a tool.
type command struct {
	name string
	args []string
	dir  string
	env  []string // added to the process's own
	// good are exit statuses that are no failure, besides 0.
	good []int
	// complaints makes run return standard error in place of standard output.
	complaints bool
}

// run returns the tool's standard output. Fails with fault.Failed and the end of what the
// tool said, or fault.Canceled.
func (c command) run(ctx context.Context) ([]byte, error) {
	path, err := toolPath(c.name)
	if err != nil {
		return nil, err
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, path, c.args...)
	cmd.Dir = c.dir
	// Tools speak and sort alike everywhere.
	cmd.Env = append(append(os.Environ(), "LC_ALL=C.UTF-8", "LANGUAGE="), c.env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		for _, g := range c.good {
			if exit.ExitCode() == g {
				err = nil
			}
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, fault.Wrap(fault.Canceled, ctx.Err(), c.name)
	case err != nil:
		said := strings.TrimSpace(errs.String() + "\n" + out.String())
		if len(said) > errorBytesMax {
			said = "... " + said[len(said)-errorBytesMax:]
		}
		return nil, fault.New(fault.Failed, "%s: %w: %s", c.name, err, said)
	}
	if c.complaints {
		return errs.Bytes(), nil
	}
	return out.Bytes(), nil
}

// errorsJoinClose closes f and returns what failed first and then.
func errorsJoinClose(err error, f *os.File) error { return errors.Join(err, f.Close()) }
