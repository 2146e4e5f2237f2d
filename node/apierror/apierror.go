// Package apierror carries a fault.Kind through the API: the server side turns
// an error into a Connect error with the kind in its details, the client side
// turns it back, so that the command line's exit status is the same as if the
// error had been its own.
package apierror

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
)

// ToConnect returns what the API answers for err. A nil err stays nil.
func ToConnect(err error) error {
	if err == nil {
		return nil
	}
	var already *connect.Error
	if errors.As(err, &already) {
		return err
	}
	kind := fault.KindOf(err)
	if kind == fault.Internal && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		kind = fault.Canceled
	}
	row := kind.Of()
	var code connect.Code
	if code.UnmarshalText([]byte(row.API)) != nil {
		code = connect.CodeInternal
	}
	out := connect.NewError(code, err)
	if d, err := connect.NewErrorDetail(&steadfastv1.Fault{Kind: row.Name, Anchor: row.Anchor}); err == nil {
		out.AddDetail(d)
	}
	return out
}

// FromConnect returns err with its kind again. An error that says no kind
// (from a proxy, or because nobody answered) gets the one its code is closest
// to. A nil err stays nil.
func FromConnect(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	for _, d := range ce.Details() {
		v, err := d.Value()
		if err != nil {
			continue
		}
		if f, ok := v.(*steadfastv1.Fault); ok {
			return fault.New(kindNamed(f.Kind), "%s", ce.Message())
		}
	}
	return fault.New(kindOfCode(ce.Code()), "%s", ce.Message())
}

// kindNamed returns the kind of a name; a name of a newer version is Internal.
func kindNamed(name string) fault.Kind {
	for _, k := range fault.Kinds() {
		if k.String() == name {
			return k
		}
	}
	return fault.Internal
}

// kindOfCode returns the first kind that is told as code.
func kindOfCode(code connect.Code) fault.Kind {
	switch code {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded:
		return fault.Unreachable
	case connect.CodeUnimplemented:
		return fault.Invalid
	default:
	}
	for _, k := range fault.Kinds() {
		if k.Of().API == code.String() {
			return k
		}
	}
	return fault.Internal
}
