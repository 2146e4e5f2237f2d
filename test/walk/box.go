package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// boxScript makes a box's root, and becomes its first process.
//
//go:embed box.sh
var boxScript string

// systemctlScript stands for systemctl in a box.
//
//go:embed systemctl.sh
var systemctlScript string

// box is a machine of our own: namespaces for network, mounts, processes and name, with a
// root that is this computer's with what the box has written over it. It goes with its first
// process.
type box struct {
	name string
	dir  string // what is written in it, under upper
	cmd  *exec.Cmd
	pid  int // of its first process, as this computer counts
}

// newBox makes one. disk is a block device or file that is its drive, by its path here; empty
// for none.
func newBox(parent, name, disk string) (*box, error) {
	b := &box{name: name, dir: filepath.Join(parent, name)}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	var said bytes.Buffer
	b.cmd = exec.Command("unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "bash", "-c", boxScript, "box", b.dir, name, disk)
	b.cmd.Stdout, b.cmd.Stderr = &said, &said
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(b.dir, "ready")); err == nil {
			break
		}
		if time.Now().After(end) || syscall.Kill(b.cmd.Process.Pid, 0) != nil {
			b.close()
			return nil, fmt.Errorf("box %s cannot be made: %s", name, said.String())
		}
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", b.cmd.Process.Pid, b.cmd.Process.Pid))
	if err == nil {
		b.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err != nil {
		b.close()
		return nil, fmt.Errorf("box %s: its first process: %w", name, err)
	}
	return b, nil
}

// enter is a command line that runs another one in the box.
func (b *box) enter(argv ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(b.pid), "--mount", "--net", "--pid", "--uts", "--root", "--wdns=/root"}, argv...)
}

// terminal opens a shell in the box.
func (b *box) terminal() (*terminal, error) {
	return openTerminal(b.enter("env", "-i", "HOME=/root", "USER=root", "TERM=dumb", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "bash")...)
}

// command runs one command in the box.
func (b *box) command(argv ...string) (string, error) {
	argv = b.enter(argv...)
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

// close ends the box with all that runs in it.
func (b *box) close() {
	_ = b.cmd.Process.Kill() // --kill-child: its first process goes along, and all others with that
	_ = b.cmd.Wait()
}

// here runs a command of this computer.
func here(argv ...string) error {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}

// output is what a command of this computer prints.
func output(argv ...string) (string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return string(out), nil
}

// copy puts a file of this computer into the box.
func (b *box) copy(from, to string, mode string) error {
	// Its mounts, but not yet its root.
	return here("nsenter", "--target", strconv.Itoa(b.pid), "--mount", "install", "-m", mode, from, filepath.Join(b.dir, "root", to))
}

// install puts a program into the box.
func (b *box) install(path, text string) error {
	argv := b.enter("bash", "-c", `cat >"$0" && chmod 755 "$0"`, path)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s in box %s: %w: %s", path, b.name, err, out)
	}
	return nil
}
