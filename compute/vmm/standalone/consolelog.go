package standalone

import (
	"errors"
	"os"

	"steadfast/fault"
)

// consoleLogMax is how large a console's log grows, in bytes, before a new one begins: a
// guest may write without end, and the disk is the host's.
const consoleLogMax = 256 << 20

// ConsoleLog is a file that is appended to. What would make it larger than consoleLogMax
// goes to a new one; the old one is NAME.1 then, in the place of the one before. It
// implements io.WriteCloser; a console writes to it from one goroutine.
type ConsoleLog struct {
	name        string
	f           *os.File
	bytes, most int64
}

// OpenConsoleLog opens a console's log. Fails with fault.Denied.
func OpenConsoleLog(name string) (*ConsoleLog, error) {
	l := &ConsoleLog{name: name, most: consoleLogMax}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *ConsoleLog) open() error {
	f, err := os.OpenFile(l.name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fault.Wrap(fault.Denied, err, "the console's log")
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fault.Wrap(fault.Denied, err, "the console's log"), f.Close())
	}
	l.f, l.bytes = f, info.Size()
	if !info.Mode().IsRegular() {
		l.most = 1<<63 - 1 // a terminal or a pipe keeps nothing
	}
	return nil
}

// Write implements io.Writer.
func (l *ConsoleLog) Write(p []byte) (int, error) {
	if l.bytes > 0 && int64(len(p)) > l.most-l.bytes {
		if err := l.next(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.bytes += int64(n)
	return n, fault.Wrap(fault.Failed, err, "the console's log")
}

// next begins a new file.
func (l *ConsoleLog) next() error {
	if err := os.Rename(l.name, l.name+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fault.Wrap(fault.Denied, err, "the console's log")
	}
	old := l.f
	err := l.open()
	if err == nil {
		err = fault.Wrap(fault.Failed, old.Close(), "the console's log")
	}
	return err
}

// Close closes it.
func (l *ConsoleLog) Close() error { return l.f.Close() }
