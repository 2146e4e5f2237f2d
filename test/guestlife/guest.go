package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience bounds what a guest may take for one thing: this host may have much else to do.
const patience = 15 * time.Minute

// A machine is what a guest is booted in.
type machine struct {
	image   image
	memory  string
	ports   []int  // of the guest, that this host connects to
	scratch string // the file of a second disk, "" for none
	record  string // folder of a recording, "" for none
}

// unhurried has systemd wait for what takes long: this host may have much else to do, and that
// is no fault of the machine's.
const unhurried = " systemd.default_timeout_start_sec=900 systemd.default_device_timeout_sec=900"

// argv is the command that runs the machine; cmdline is the image's.
func (m machine) argv(store, cmdline string) []string {
	argv := []string{"machine", "run"}
	if m.record != "" {
		argv = []string{"machine", "record", "--to", m.record}
	}
	network := "user"
	for _, p := range m.ports {
		network += ",forward=127.0.0.1:0:" + strconv.Itoa(p)
	}
	argv = append(argv, "--store", store, "--image", m.image.name, "--memory", m.memory, "--console", "--net", network, "--stop-timeout", patience.String(),
		"--append", cmdline+unhurried)
	if m.scratch != "" {
		argv = append(argv, "--disk", m.scratch)
	}
	return argv
}

// log is the file's name of the console: a recording of an image does not replace what the
// image did before.
func (m machine) log() string {
	if m.record != "" {
		return m.image.name + "-recorded.console"
	}
	return m.image.name + ".console"
}

// guest is a guest that lives in a process of the product's.
type guest struct {
	r        *run
	cmd      *exec.Cmd
	in       io.WriteCloser
	log      *os.File
	forwards []string      // where this host connects to the machine's ports, in their order
	ended    chan struct{} // it has, and exit is how
	exit     error
	note     string        // about the present step
	more     chan struct{} // the console says more

	mu   sync.Mutex
	text []byte // what the console said
	read int    // how much of it was awaited already
}

// boot starts a machine. stop is to follow.
func (r *run) boot(m machine) (*guest, error) {
	g := &guest{r: r, ended: make(chan struct{}), more: make(chan struct{}, 1)}
	cmdline, err := r.cmdline(m.image)
	if err != nil {
		return nil, err
	}
	g.cmd = exec.CommandContext(r.ctx, r.bin, m.argv(r.store(), cmdline)...)
	g.cmd.Cancel = func() error { return g.cmd.Process.Signal(syscall.SIGKILL) }
	said, err := g.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if g.in, err = g.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if g.log, err = os.Create(filepath.Join(r.logs, m.log())); err != nil {
		return nil, err
	}
	g.cmd.Stdout = g
	if err := g.cmd.Start(); err != nil {
		return nil, errors.Join(err, g.log.Close())
	}
	forwards := make(chan string, len(m.ports))
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		g.hear(said, forwards)
	}()
	go func() {
		<-heard // before Wait, which closes the pipe
		g.exit = g.cmd.Wait()
		close(g.ended)
	}()
	for range m.ports {
		select {
		case at := <-forwards:
			g.forwards = append(g.forwards, at)
		case <-g.ended:
			return nil, errors.Join(fmt.Errorf("the machine does not start: %w", g.exit), g.log.Close())
		case <-time.After(patience):
			return nil, errors.Join(errors.New("the machine does not say where its forwards are"), g.stop())
		}
	}
	return g, nil
}

// forwarded is what the product says of each forward, in their order.
var forwarded = regexp.MustCompile(`connections to (\S+) are the guest's`)

// hear prints what the product says, but for the forwards, which it passes on.
func (g *guest) hear(said io.Reader, forwards chan<- string) {
	for s := bufio.NewScanner(said); s.Scan(); {
		if m := forwarded.FindStringSubmatch(s.Text()); m != nil && len(forwards) < cap(forwards) {
			forwards <- m[1]
			continue
		}
		fmt.Println("note " + s.Text())
	}
}

// Write takes what the guest writes on its console.
func (g *guest) Write(p []byte) (int, error) {
	g.mu.Lock()
	g.text = append(g.text, p...)
	g.mu.Unlock()
	select {
	case g.more <- struct{}{}:
	default:
	}
	if g.r.verbose {
		_, _ = os.Stdout.Write(p)
	}
	return g.log.Write(p)
}

// await waits until the console says something, and returns what it said before that since
// the last call.
func (g *guest) await(text string) (string, error) {
	ctx, cancel := context.WithTimeout(g.r.ctx, patience)
	defer cancel()
	for {
		g.mu.Lock()
		i := bytes.Index(g.text[g.read:], []byte(text))
		before := ""
		if i >= 0 {
			before = string(g.text[g.read : g.read+i])
			g.read += i + len(text)
		}
		g.mu.Unlock()
		if i >= 0 {
			return before, nil
		}
		select {
		case <-g.more:
		case <-g.ended:
			return "", errors.Join(fmt.Errorf("the machine has ended, and its console never said %q", text), g.exit)
		case <-ctx.Done():
			return "", fmt.Errorf("the console did not say %q: %w", text, ctx.Err())
		}
	}
}

// typeLine types a line.
func (g *guest) typeLine(line string) error {
	_, err := io.WriteString(g.in, line+"\n")
	return err
}

// login waits for the prompt and logs in as root.
func (g *guest) login() error {
	if _, err := g.await("login: "); err != nil {
		return err
	}
	if err := g.typeLine("root"); err != nil {
		return err
	}
	if _, err := g.await("# "); err != nil {
		return err
	}
	// A prompt that nothing else looks like, and no wrapped lines.
	if err := g.typeLine("stty -echo cols 500; export NO_COLOR=1 TERM=dumb LC_ALL=C.UTF-8; PS1= PS2=; bind 'set enable-bracketed-paste off' 2>/dev/null; echo re''ady"); err != nil {
		return err
	}
	_, err := g.await("ready")
	return err
}

// tabs are what a shell at a terminal takes for a wish to have a word completed.
var tabs = regexp.MustCompile(`\t+`)

// shell runs a command in the guest, which must succeed, and returns its output.
func (g *guest) shell(format string, args ...any) (string, error) {
	command := tabs.ReplaceAllString(fmt.Sprintf(format, args...), " ")
	if err := g.typeLine("( " + command + "\n) 2>&1 </dev/null; echo \"=status:\"$?="); err != nil {
		return "", err
	}
	out, err := g.await("=status:")
	if err != nil {
		return out, fmt.Errorf("%s: %w", command, err)
	}
	out = strings.TrimSpace(strings.ReplaceAll(out, "\r", ""))
	status, err := g.await("=")
	if err == nil && status != "0" {
		err = fmt.Errorf("%s: status %s: %s", command, status, out)
	}
	return out, err
}

// says fails unless a command's output is what it is to be.
func (g *guest) says(want, format string, args ...any) error {
	got, err := g.shell(format, args...)
	if err == nil && got != want {
		err = fmt.Errorf("%s: %q; it was to be %q", fmt.Sprintf(format, args...), got, want)
	}
	return err
}

// remark adds something to the line that says how the present step went.
func (g *guest) remark(format string, args ...any) { g.note = fmt.Sprintf(format, args...) }

// takeNote returns the remark on the present step.
func (g *guest) takeNote() string {
	if g.note == "" {
		return ""
	}
	note := " (" + g.note + ")"
	g.note = ""
	return note
}

// alive tells whether the machine still runs.
func (g *guest) alive() bool {
	select {
	case <-g.ended:
		return false
	default:
		return true
	}
}

// powerOff presses the power button; the machine must end of itself, and in order.
func (g *guest) powerOff() error {
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-g.ended:
		g.remark("%.1f s of a processor in all", processor(g.cmd))
		return g.exit
	case <-g.r.ctx.Done():
		return g.r.ctx.Err()
	case <-time.After(patience):
		return errors.New("the power button does not end the machine")
	}
}

// tailBytes is how much of a console's end tells why something failed.
const tailBytes = 2000

// showTail prints the console's end.
func (g *guest) showTail() {
	g.mu.Lock()
	tail := string(g.text[max(0, len(g.text)-tailBytes):])
	g.mu.Unlock()
	fmt.Println("     the end of the console (all of it: " + g.log.Name() + "):")
	for line := range strings.Lines(tail) {
		fmt.Println("     " + strings.TrimRight(line, "\r\n"))
	}
}

// stop ends the machine if it still runs.
func (g *guest) stop() error {
	if g.alive() {
		_ = g.cmd.Process.Kill() // or it ends just now
	}
	<-g.ended
	return g.log.Close()
}
