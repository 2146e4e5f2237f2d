// Guest is what runs in the emulated machine of test/pair, whose kernel is the
// initiator:
//
//	guest load PORT DISK  does on a disk what the host asks on a serial port
//	                      (test/pair/remote)
//	guest stamp           copies lines, in a while, and says before each how long the
//	                      machine was up, as the kernel does in its log
//
// It reads and writes past the page cache, so that every answer is the storage's.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/test/pair/remote"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "GUEST fail:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "stamp":
		return stamp(os.Stdin, os.Stdout)
	case len(args) == 3 && args[0] == "load":
		return load(args[1], args[2])
	}
	return fmt.Errorf("guest load PORT DISK | guest stamp, not %q", args)
}

// load serves until the port ends, which is not before the machine does.
func load(port, path string) error {
	line, err := openPort(port)
	if err != nil {
		return err
	}
	defer func() { _ = line.Close() }()
	d, err := openDisk(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	story, tell := io.Pipe()
	defer func() { _ = tell.Close() }()
	go func() { _ = stamp(story, os.Stderr) }()
	return remote.Serve(line, d, tell)
}

// openPort opens a serial port for bytes as they are.
func openPort(path string) (*os.File, error) {
	// Blocking: the runtime cannot wait for a terminal in any other way.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		// As cfmakeraw has it, at the speed of a port that has none.
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		err = unix.IoctlSetTermios(fd, unix.TCSETS, t)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return file, nil
}

// linesMax bounds what waits for a slow console; what is beyond is lost, and who
// writes does not wait: it may be the daemon whose times are measured.
const linesMax = 4096

// lineDelay is how long a line waits. An emulated console takes the processor's
// time for each letter, and the lock that the emulated network card waits for: to
// write what iscsid says while it reconnects would make it miss its connection.
const lineDelay = 2 * time.Second

// line is one that waits.
type line struct {
	text string
	due  time.Time
}

// stamp copies lines with their time, after lineDelay, or at the end of in.
func stamp(in io.Reader, out io.Writer) error {
	lines := make(chan line, linesMax)
	ended := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		var err error
		for l := range lines {
			if err != nil {
				continue
			}
			select {
			case <-ended:
			case <-time.After(time.Until(l.due)):
			}
			_, err = io.WriteString(out, l.text)
		}
		done <- err
	}()
	scan := bufio.NewScanner(in)
	for scan.Scan() {
		select {
		case lines <- line{fmt.Sprintf("[%12.6f] %s\n", uptime().Seconds(), scan.Text()), time.Now().Add(lineDelay)}:
		default:
		}
	}
	close(ended)
	close(lines)
	if err := <-done; err != nil {
		return err
	}
	return scan.Err()
}

// uptime is CLOCK_MONOTONIC.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
