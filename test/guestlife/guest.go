package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"steadfast/test/testbed"
)

// patience bounds what a guest may take for one thing: this host may have much else to do.
const patience = 15 * time.Minute

// A machine is what a guest is booted in.
type machine struct {
	image   testbed.Image
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
	argv = append(argv, "--store", store, "--image", m.image.Name, "--memory", m.memory, "--console", "--net", network, "--stop-timeout", patience.String(),
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
		return m.image.Name + "-recorded.console"
	}
	return m.image.Name + ".console"
}

// guest is a guest that lives in a process of the product's.
type guest struct {
	r        *run
	cmd      *exec.Cmd
	console  *testbed.Console
	log      *os.File
	forwards []string      // where this host connects to the machine's ports, in their order
	ended    chan struct{} // it has, and exit is how
	exit     error
	note     string // about the present step
}

// boot starts a machine. stop is to follow.
func (r *run) boot(m machine) (*guest, error) {
	g := &guest{r: r, ended: make(chan struct{})}
	cmdline, err := testbed.ImageCommandLine(r.store(), m.image.Name)
	if err != nil {
		return nil, err
	}
	g.cmd = exec.CommandContext(r.ctx, r.bin, m.argv(r.store(), cmdline)...)
	g.cmd.Cancel = func() error { return g.cmd.Process.Signal(syscall.SIGKILL) }
	said, err := g.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	in, err := g.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if g.log, err = os.Create(filepath.Join(r.logs, m.log())); err != nil {
		return nil, err
	}
	var tee io.Writer = g.log
	if r.verbose {
		tee = io.MultiWriter(os.Stdout, g.log)
	}
	g.console = testbed.NewConsole(in, tee, patience)
	g.console.Ended, g.console.Exit = g.ended, func() error { return g.exit }
	g.cmd.Stdout = g.console
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

// await waits until the console says something, and returns what it said before that since
// the last call.
func (g *guest) await(text string) (string, error) { return g.console.Await(g.r.ctx, text) }

// typeLine types a line.
func (g *guest) typeLine(line string) error { return g.console.Type(line) }

// login waits for the prompt and logs in as root.
func (g *guest) login() error { return g.console.Login(g.r.ctx) }

// shell runs a command in the guest, which must succeed, and returns its output.
func (g *guest) shell(format string, args ...any) (string, error) {
	return g.console.Shell(g.r.ctx, format, args...)
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
	tail := g.console.Tail(tailBytes)
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
