// Package fault names what can go wrong and says, in one table, how each kind
// is told to everyone who may meet it: an initiator (SCSI sense), a program
// (API code), a person at a shell (exit status) and a reader (documentation
// anchor).
//
// An error carries a Kind when the code that made it knew the kind; wrapping
// with %w keeps it. Kinds are about what the caller can do next, not about
// where the error came from.
package fault

import (
	"errors"
	"fmt"
)

// Kind is the class of a failure.
type Kind uint8

// The kinds. The zero Kind is Internal, so that an error nobody classified is
// reported as our own fault and never as the caller's.
const (
	Internal    Kind = iota // a bug of ours or a broken environment
	Invalid                 // the request can never be right: a bad name, size or argument
	NotFound                // the named thing does not exist
	Exists                  // the named thing exists already
	Busy                    // the thing is in use: right request, wrong moment
	Denied                  // who asks may not
	ReadOnly                // the thing is write-protected
	Full                    // no space left in the pool
	Limit                   // a stated bound (count, depth, memory) is reached
	Corrupt                 // stored bytes do not match their checksum
	Failed                  // a drive or device failed and was taken out
	Unreachable             // a peer or process does not answer
	Fenced                  // this node may not act: its epoch is over
	Stale                   // the request is based on an older state
	Canceled                // the caller gave up, or the node is stopping
)

// Sense is a SCSI sense triple. SPC-4, 4.5.
type Sense struct {
	Key, ASC, ASCQ uint8
}

// Row is what the world is told about one Kind.
type Row struct {
	Name   string // the kind's name, stable: logs, metrics and JSON carry it
	Sense  Sense  // for an initiator
	API    string // Connect error code
	Exit   int    // exit status of the command line
	Anchor string // section of docs/FAULTS.md
}

// Of returns the table's row for k.
func (k Kind) Of() Row {
	if int(k) < len(table) {
		return table[k]
	}
	return table[Internal]
}

// String returns the kind's stable name.
func (k Kind) String() string { return k.Of().Name }

// table is the one place where a kind meets its codes.
var table = [...]Row{
	Internal:    {"internal", Sense{0x4, 0x44, 0x00}, "internal", 70, "internal"},
	Invalid:     {"invalid", Sense{0x5, 0x24, 0x00}, "invalid_argument", 64, "invalid"},
	NotFound:    {"not-found", Sense{0x5, 0x25, 0x00}, "not_found", 66, "not-found"},
	Exists:      {"exists", Sense{0x5, 0x24, 0x00}, "already_exists", 73, "exists"},
	Busy:        {"busy", Sense{0x2, 0x04, 0x07}, "failed_precondition", 75, "busy"},
	Denied:      {"denied", Sense{0x5, 0x20, 0x02}, "permission_denied", 77, "denied"},
	ReadOnly:    {"read-only", Sense{0x7, 0x27, 0x00}, "failed_precondition", 78, "read-only"},
	Full:        {"full", Sense{0x7, 0x27, 0x07}, "resource_exhausted", 79, "full"},
	Limit:       {"limit", Sense{0x5, 0x55, 0x00}, "resource_exhausted", 80, "limit"},
	Corrupt:     {"corrupt", Sense{0x3, 0x11, 0x00}, "data_loss", 81, "corrupt"},
	Failed:      {"failed", Sense{0x4, 0x44, 0x00}, "unavailable", 82, "failed"},
	Unreachable: {"unreachable", Sense{0x2, 0x04, 0x00}, "unavailable", 69, "unreachable"},
	Fenced:      {"fenced", Sense{0x2, 0x04, 0x0a}, "aborted", 83, "fenced"},
	Stale:       {"stale", Sense{0xb, 0x00, 0x00}, "aborted", 84, "stale"},
	Canceled:    {"canceled", Sense{0xb, 0x00, 0x00}, "canceled", 85, "canceled"},
}

// Error is an error of a known kind. Its text says what failed and, where the
// reader can do something about it, what to do.
type Error struct {
	Kind Kind
	Text string
	Err  error // the cause, or nil
}

// Error implements error.
func (e *Error) Error() string {
	switch {
	case e.Err == nil:
		return e.Text
	case e.Text == "":
		return e.Err.Error()
	}
	return e.Text + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of kind k. A %w in format keeps its cause.
func New(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// Wrap gives err the kind k and puts text before it. A nil err stays nil.
func Wrap(k Kind, err error, text string) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: k, Text: text, Err: err}
}

// KindOf returns the kind of the outermost classified error in err's chain,
// and Internal when there is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is of kind k. A nil err is of no kind.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// Kinds returns every kind, for tables in documentation and tests.
func Kinds() []Kind {
	all := make([]Kind, len(table))
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}
