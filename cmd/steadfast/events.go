package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
)

// reconnectEvery is how long "events --follow" waits before it asks a node again that does not
// answer.
const reconnectEvery = time.Second

// severities of events, the least first.
var severities = []string{"info", "warning", "error"}

// eventsCommand is "steadfast events".
func (a *app) eventsCommand() *cobra.Command {
	f := &eventsFollower{a: a, seen: map[string]*steadfastv1.EventsSeen{}}
	c := &cobra.Command{
		Use: "events", Short: "Show what happened: on all members of the cluster", Args: exactly(0),
		Long: `Show the last events of all members of the cluster that answer, oldest first: time,
severity, member, kind, text. A member keeps its last thousand or so, until its
process ends; all are in its log, too. A member that does not answer is named on
standard error.

With --follow, go on with new ones until Ctrl-C. When the node that is asked ends,
it is asked again until it answers, and what was shown is not shown again.`,
		Example: `  steadfast events
  steadfast events --since 1h --severity warning
  steadfast events --follow --output json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(severities, f.severity) {
				return fault.New(fault.Invalid, "--severity %q is none of %s", f.severity, strings.Join(severities, ", "))
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return f.run(ctx)
		},
	}
	c.Flags().BoolVarP(&f.follow, "follow", "f", false, "wait for new events")
	c.Flags().BoolVar(&f.here, "here", false, "only events of the node that is asked")
	c.Flags().DurationVar(&f.since, "since", 0, "only events of so long ago or newer, like 2h")
	c.Flags().StringVar(&f.severity, "severity", "info", "only events at least so severe: info, warning, error")
	a.complete(c, "severity", func(context.Context) []string { return severities })
	return c
}

// eventsFollower shows events, each once, whoever ends meanwhile.
type eventsFollower struct {
	a            *app
	follow, here bool
	since        time.Duration
	severity     string
	// seen is up to where each member's events were shown.
	seen map[string]*steadfastv1.EventsSeen
}

// run shows events until there are no more, or with follow until ctx ends.
func (f *eventsFollower) run(ctx context.Context) error {
	after := time.Time{}
	if f.since > 0 {
		after = time.Now().Add(-f.since)
	}
	connected, told := false, false
	for {
		err := f.stream(ctx, after, func() {
			if told {
				f.a.note("%s answers again\n", f.a.socketPath())
			}
			connected, told = true, false
		})
		switch {
		case ctx.Err() != nil:
			return nil // Ctrl-C is how it ends
		case !f.follow || !connected:
			return err
		case err != nil && fault.KindOf(err) != fault.Unreachable && fault.KindOf(err) != fault.Canceled && fault.KindOf(err) != fault.Internal:
			return err // it would be so again
		}
		if !told {
			f.a.note("the node at %s has ended or does not answer; it is asked again until it does\n", f.a.socketPath())
			told = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(reconnectEvery):
		}
	}
}

// stream shows what one connection gives. answers is called once it answers.
func (f *eventsFollower) stream(ctx context.Context, after time.Time, answers func()) error {
	req := &steadfastv1.WatchSiteEventsRequest{KeptOnly: !f.follow, OnlyHere: f.here}
	for _, seen := range f.seen {
		req.Seen = append(req.Seen, seen)
	}
	stream, err := f.a.sites().WatchSiteEvents(ctx, req)
	if err != nil {
		return f.a.answer(err)
	}
	defer stream.Close()
	first := true
	for stream.Receive() {
		if first {
			answers()
			first = false
		}
		msg := stream.Msg()
		if n := msg.Notice; n != nil {
			f.notice(n)
		}
		if s := msg.Seen; s != nil {
			f.seen[s.Member] = s
		}
		e := msg.Event
		if e == nil || e.Time.AsTime().Before(after) || slices.Index(severities, e.Severity) < slices.Index(severities, f.severity) {
			continue
		}
		if err := f.a.printEvent(e); err != nil {
			return err
		}
	}
	if err := f.a.answer(stream.Err()); err != nil {
		return err
	}
	if f.follow {
		return fault.New(fault.Unreachable, "the node has ended the stream")
	}
	return nil
}

// notice tells of events that are missing, beside the events.
func (f *eventsFollower) notice(n *steadfastv1.EventsNotice) {
	if n.Problem == "" {
		f.a.note("events of %s come again\n", n.Member)
		return
	}
	f.a.note("events of %s are missing: %s\n", n.Member, n.Problem)
}

// printEvent prints an event as a line, of JSON or of text.
func (a *app) printEvent(e *steadfastv1.Event) error {
	if e == nil {
		return errors.New("the node sent an empty event")
	}
	if a.output == "json" {
		b, err := json.Marshal(toJSON(e.ProtoReflect()))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.out, "%s\n", b)
		return err
	}
	member := ""
	if e.Member != "" {
		member = fmt.Sprintf("%-8s  ", e.Member)
	}
	_, err := fmt.Fprintf(a.out, "%s  %-7s  %s%-20s  %s\n", when(e.Time), e.Severity, member, e.Kind, strings.ReplaceAll(e.Text, "\n", "; "))
	return err
}
