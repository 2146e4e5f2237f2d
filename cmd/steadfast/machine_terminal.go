package main

import (
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/compute/vmm/standalone"
	"steadfast/fault"
)

// rawTerminal hands every key of a terminal on, until restore is called.
func rawTerminal(f *os.File) (restore func(), err error) {
	old, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "terminal")
	}
	raw := *old
	// termios(3), cfmakeraw.
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &raw); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "terminal")
	}
	var once sync.Once
	return func() {
		once.Do(func() { _ = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, old) }) // the terminal has gone, then
	}, nil
}

// guestScreen shows the console here, until it is hidden.
type guestScreen struct {
	w      io.Writer
	hidden atomic.Bool
}

// Write implements io.Writer.
func (s *guestScreen) Write(p []byte) (int, error) {
	if s.hidden.Load() {
		return len(p), nil
	}
	return s.w.Write(p)
}

func (s *guestScreen) hide() { s.hidden.Store(true) }

// endBySignal has a machine stop when this process is told to end, by force the second
// time. It returns what ends that.
func (a *app) endBySignal(m *standalone.Machine, grace time.Duration) (done func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, unix.SIGTERM)
	over := make(chan struct{})
	go func() {
		for first := true; ; first = false {
			select {
			case <-over:
				return
			case <-signals:
			}
			if first {
				a.remark("the power button is pressed; once more ends the machine at once")
				m.Stop(grace)
			} else {
				m.Stop(0)
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(over)
	}
}

// remark prints a line beside the output, on a terminal that may be a console, too.
func (a *app) remark(format string, args ...any) {
	end := "\n"
	if isTerminal(a.errs) {
		end = "\r\n"
	}
	a.note("steadfast: "+format+end, args...)
}
