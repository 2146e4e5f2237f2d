package machine

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"

	"steadfast/compute/device"
	"steadfast/fault"
)

// LogVersion is the version of a log's bytes: docs/formats/machine-log.md.
const LogVersion = 1

// logMagic begins a log.
const logMagic = "SFmlog\x00"

// Bounds of a log's parts, in bytes.
const (
	entryMax = 64 << 20
)

// Kinds of entries of a log.
const (
	entryInput uint8 = 1 // an Input
	entryHash  uint8 = 2 // what the machine's digest was at a count
	entryEnd   uint8 = 3 // the recording ended at a count
)

// Entry is one entry of a log: an Input, a digest that was taken, or the end.
type Entry struct {
	At    uint64
	Input *device.Input // or
	Hash  *Hash         // or, with neither, the end
}

// LogWriter writes a log of a machine's Inputs. Each is in the writer's hands when the
// call returns; Flush puts it into the file's.
type LogWriter struct {
	w    *bufio.Writer
	last uint64
	buf  []byte
	// Bytes is how much was written.
	Bytes int64
}

// NewLog begins a log.
func NewLog(w io.Writer) (*LogWriter, error) {
	l := &LogWriter{w: bufio.NewWriterSize(w, 256<<10)}
	_, err := l.w.Write(append([]byte(logMagic), LogVersion))
	l.Bytes = int64(len(logMagic) + 1)
	return l, fault.Wrap(fault.Failed, err, "writing a machine's log")
}

// Input appends an Input, which is of no earlier count than what is there.
func (l *LogWriter) Input(in *device.Input) error {
	b := l.begin(entryInput, in.At)
	b = binary.AppendUvarint(b, uint64(in.Port))
	b = append(b, in.Kind, in.Status)
	b = binary.AppendUvarint(b, in.ID)
	return l.end(append(b, in.Data...))
}

// Hash appends the machine's digest at a count: a replay compares it.
func (l *LogWriter) Hash(at uint64, h Hash) error {
	return l.end(append(l.begin(entryHash, at), h[:]...))
}

// End appends where the recording ended, and flushes.
func (l *LogWriter) End(at uint64) error {
	if err := l.end(l.begin(entryEnd, at)); err != nil {
		return err
	}
	return l.Flush()
}

// Flush hands all entries to the file.
func (l *LogWriter) Flush() error {
	return fault.Wrap(fault.Failed, l.w.Flush(), "writing a machine's log")
}

func (l *LogWriter) begin(kind uint8, at uint64) []byte {
	b := append(l.buf[:0], kind)
	b = binary.AppendUvarint(b, at-l.last)
	l.last = at
	return b
}

// end writes an entry: its length, its bytes, their checksum.
func (l *LogWriter) end(b []byte) error {
	l.buf = b[:0]
	var frame [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(frame[:], uint64(len(b)))
	sum := binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli))
	for _, p := range [][]byte{frame[:n], b, sum} {
		if _, err := l.w.Write(p); err != nil {
			return fault.Wrap(fault.Failed, err, "writing a machine's log")
		}
		l.Bytes += int64(len(p))
	}
	return nil
}

// LogReader reads a log.
type LogReader struct {
	r    *bufio.Reader
	last uint64
}

// ReadLog begins to read a log. Fails with fault.Corrupt, or fault.Invalid for another
// version.
func ReadLog(r io.Reader) (*LogReader, error) {
	l := &LogReader{r: bufio.NewReaderSize(r, 256<<10)}
	head := make([]byte, len(logMagic)+1)
	if _, err := io.ReadFull(l.r, head); err != nil || string(head[:len(logMagic)]) != logMagic {
		return nil, fault.New(fault.Corrupt, "this is no log of a machine")
	}
	if v := head[len(logMagic)]; v != LogVersion {
		return nil, fault.New(fault.Invalid, "a machine's log of version %d; this program reads version %d", v, LogVersion)
	}
	return l, nil
}

// Next returns the next entry. io.EOF: the log ends here without an end, as that of a
// recorder that died does; what is there of a last, torn entry is no entry. Fails with
// fault.Corrupt, or fault.Failed where the log cannot be read: what comes then is not known,
// and a machine that took it for the end would go on as another.
func (l *LogReader) Next() (e Entry, err error) {
	head, err := l.r.Peek(binary.MaxVarintLen64) // fewer, and an error, near the end
	size, n := binary.Uvarint(head)
	switch {
	case n == 0 && err != nil:
		return e, ended(err)
	case n <= 0:
		return e, fault.New(fault.Corrupt, "a machine's log: the length of an entry is no number")
	}
	_, _ = l.r.Discard(n) // it is there
	if size == 0 || size > entryMax {
		return e, fault.New(fault.Corrupt, "a machine's log: an entry of %d bytes", size)
	}
	b := make([]byte, size+4)
	if _, err := io.ReadFull(l.r, b); err != nil {
		return e, ended(err)
	}
	b, sum := b[:size], binary.LittleEndian.Uint32(b[size:])
	if crc32.Checksum(b, castagnoli) != sum {
		if _, err := l.r.Peek(1); err != nil {
			return e, ended(err) // the last one, and torn
		}
		return e, fault.New(fault.Corrupt, "a machine's log: a checksum is wrong")
	}
	return l.decode(b)
}

// ended is what the error of a read means: that the file is over, or that it cannot be read.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return io.EOF
	}
	return fault.Wrap(fault.Failed, err, "reading a machine's log")
}

func (l *LogReader) decode(b []byte) (e Entry, err error) {
	kind := b[0]
	delta, b, ok := uvarint(b[1:])
	e.At = l.last + delta
	if !ok || e.At < l.last {
		return e, fault.New(fault.Corrupt, "a machine's log: an entry without its count")
	}
	l.last = e.At
	switch {
	case kind == entryInput:
		e.Input, ok = decodeInput(b, e.At)
	case kind == entryHash && len(b) == len(Hash{}):
		e.Hash = (*Hash)(b)
	case kind == entryEnd && len(b) == 0:
	default:
		ok = false
	}
	if !ok {
		return e, fault.New(fault.Corrupt, "a machine's log: an entry of kind %d that makes no sense", kind)
	}
	return e, nil
}

func decodeInput(b []byte, at uint64) (*device.Input, bool) {
	in := &device.Input{At: at}
	port, b, ok := uvarint(b)
	if !ok || port > 1<<16-1 || len(b) < 3 {
		return nil, false
	}
	in.Port, in.Kind, in.Status = device.Port(port), b[0], b[1]
	if in.ID, b, ok = uvarint(b[2:]); !ok {
		return nil, false
	}
	if len(b) > 0 {
		in.Data = b
	}
	return in, true
}

func uvarint(b []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, false
	}
	return v, b[n:], true
}
