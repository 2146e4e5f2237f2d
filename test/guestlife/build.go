package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"steadfast/fault"
)

// tools are the commands of this host that images are built with, and their packages.
var tools = [][2]string{
	{"apt-get", "apt"},
	{"dpkg-deb", "dpkg"},
	{"mke2fs", "e2fsprogs"},
	{"debugfs", "e2fsprogs"},
	{"e2fsck", "e2fsprogs"},
	{"depmod", "kmod"},
	{"xz", "xz-utils"},
}

// keyring has the keys that the archive is checked with.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// missing says which tools this host lacks, "" for none.
func missing() string {
	var lacks []string
	for _, t := range tools {
		if _, err := tool(t[0]); err != nil {
			lacks = append(lacks, fmt.Sprintf("%s (Debian: %s)", t[0], t[1]))
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		lacks = append(lacks, keyring+" (Debian: debian-archive-keyring)")
	}
	if len(lacks) == 0 {
		return ""
	}
	return "no guest can be built without " + strings.Join(lacks, ", ")
}

// tool finds a command, also where only root's PATH leads.
func tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	return path, err
}

// An image is what a guest is built as.
type image struct {
	name, profile, size string
	packages            []string
}

// store is the folder of images of this run.
func (r *run) store() string { return filepath.Join(r.dir, "images") }

// build builds an image, or takes it from the cache. Fails with errSkip where there is no
// archive to build it of.
func (r *run) build(i image) error {
	argv := []string{"image", "build", i.name, "--store", r.store(), "--cache", r.cache, "--profile", i.profile, "--size", i.size}
	for _, p := range i.packages {
		argv = append(argv, "--package", p)
	}
	began := time.Now()
	cmd := exec.CommandContext(r.ctx, r.bin, argv...)
	said, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	last := r.followBuild(said)
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() == fault.Unreachable.Of().Exit:
		return fmt.Errorf("%w: no riscv64 packages can be had: %s", errSkip, strings.Join(last, "; "))
	default:
		return fmt.Errorf("image build: %w: %s", err, strings.Join(last, "\n"))
	}
	r.passed++
	fmt.Printf("ok   build of %s  %.1fs (%s; %.1f s of a processor)\n", i.name, time.Since(began).Seconds(), strings.Join(append([]string{i.profile}, i.packages...), " "), processor(cmd))
	return nil
}

// processor is how many seconds of a processor a command has used, and what it started.
func processor(cmd *exec.Cmd) float64 {
	return (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
}

// buildLines is how many of a build's last lines are kept for an error.
const buildLines = 30

// followBuild prints a build's progress, of the packages every twentieth, and returns its last lines.
func (r *run) followBuild(said io.Reader) (last []string) {
	packages := 0
	for s := bufio.NewScanner(said); s.Scan(); {
		line := s.Text()
		if last = append(last, line); len(last) > buildLines {
			last = last[1:]
		}
		if strings.HasPrefix(line, "  ") {
			if packages++; packages%20 != 0 && !r.verbose {
				continue
			}
		}
		fmt.Println("note " + line)
	}
	return last
}

// clean fails unless a guest's disk is a filesystem without errors.
func (r *run) clean(disk string) error {
	path, err := tool("e2fsck")
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(r.ctx, path, "-f", "-n", disk).CombinedOutput(); err != nil {
		return fmt.Errorf("the guest's filesystem is not clean: %w: %s", err, out)
	}
	return nil
}

// disk is where an image's root filesystem is.
func (r *run) disk(i image) string { return filepath.Join(r.store(), i.name, "root.ext4") }

// cmdline is the command line that an image's kernel is booted with.
func (r *run) cmdline(i image) (string, error) {
	b, err := os.ReadFile(filepath.Join(r.store(), i.name, "manifest.json"))
	if err != nil {
		return "", err
	}
	var m struct{ Cmdline string }
	err = json.Unmarshal(b, &m)
	return m.Cmdline, err
}

// scratch makes an empty file for a second disk.
func (r *run) scratch(bytes int64) (string, error) {
	name := filepath.Join(r.dir, "scratch")
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	return name, errors.Join(f.Truncate(bytes), f.Close())
}
