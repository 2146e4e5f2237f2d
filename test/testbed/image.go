package testbed

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"steadfast/fault"
)

// imageTools are the commands of this host that images are built with, and their packages.
var imageTools = [][2]string{
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

// MissingForImages says which tools this host lacks that images are built with, "" for none.
func MissingForImages() string {
	var lacks []string
	for _, t := range imageTools {
		if _, err := Tool(t[0]); err != nil {
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

// Tool finds a command, also where only root's PATH leads.
func Tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	return path, err
}

// Image is what a guest is built as.
type Image struct {
	Name, Profile, Size string
	Packages            []string
}

// ErrNoArchive is why an image cannot be built where there is no archive to build it of.
var ErrNoArchive = errors.New("no riscv64 packages can be had")

// Build has the program under test build the image in a store, or take it from the cache.
// say gets the progress, and seconds is the time of a processor that it took. Fails with
// ErrNoArchive.
func (i Image) Build(ctx context.Context, bin, store, cache string, say func(line string)) (seconds float64, err error) {
	argv := []string{"image", "build", i.Name, "--store", store, "--cache", cache, "--profile", i.Profile, "--size", i.Size}
	for _, p := range i.Packages {
		argv = append(argv, "--package", p)
	}
	cmd := exec.CommandContext(ctx, bin, argv...)
	said, err := cmd.StderrPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	last := followBuild(said, say)
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() == fault.Unreachable.Of().Exit:
		err = fmt.Errorf("%w: %s", ErrNoArchive, strings.Join(last, "; "))
	default:
		err = fmt.Errorf("image build: %w: %s", err, strings.Join(last, "\n"))
	}
	return (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds(), err
}

// buildLines is how many of a build's last lines are kept for an error.
const buildLines = 30

// followBuild passes a build's progress on, of the packages every twentieth, and returns its
// last lines.
func followBuild(said io.Reader, say func(string)) (last []string) {
	packages := 0
	for s := bufio.NewScanner(said); s.Scan(); {
		line := s.Text()
		if last = append(last, line); len(last) > buildLines {
			last = last[1:]
		}
		if strings.HasPrefix(line, "  ") {
			if packages++; packages%20 != 0 {
				continue
			}
		}
		say(line)
	}
	return last
}

// ImageCommandLine is the command line that an image's kernel is booted with.
func ImageCommandLine(store, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(store, name, "manifest.json"))
	if err != nil {
		return "", err
	}
	var m struct{ Cmdline string }
	err = json.Unmarshal(b, &m)
	return m.Cmdline, err
}
