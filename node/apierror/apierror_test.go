package apierror_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"connectrpc.com/connect"

	"steadfast/fault"
	"steadfast/node/apierror"
)

// TestRoundTrip: every kind comes through with its own code and its text.
func TestRoundTrip(t *testing.T) {
	for _, k := range fault.Kinds() {
		err := fmt.Errorf("volume: %w", fault.New(k, "what happened"))
		wire := apierror.ToConnect(err)
		if got, want := connect.CodeOf(wire).String(), k.Of().API; got != want {
			t.Errorf("%s: code %s; want %s", k, got, want)
		}
		back := apierror.FromConnect(wire)
		if !fault.Is(back, k) || back.Error() != err.Error() {
			t.Errorf("%s came back as %s: %v", k, fault.KindOf(back), back)
		}
	}
}

func TestForeignErrors(t *testing.T) {
	if apierror.ToConnect(nil) != nil || apierror.FromConnect(nil) != nil {
		t.Error("nil did not stay nil")
	}
	if got := connect.CodeOf(apierror.ToConnect(context.Canceled)); got != connect.CodeCanceled {
		t.Errorf("a canceled context is told as %s", got)
	}
	for code, want := range map[connect.Code]fault.Kind{
		connect.CodeUnavailable: fault.Unreachable, connect.CodeNotFound: fault.NotFound, connect.CodeUnknown: fault.Internal,
	} {
		if got := fault.KindOf(apierror.FromConnect(connect.NewError(code, errors.New("x")))); got != want {
			t.Errorf("code %s is of kind %s; want %s", code, got, want)
		}
	}
}
