package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/node/size"
)

// statusCommand is "steadfast status".
func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show how the node is", Example: "  steadfast status --output json", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.node().GetStatus(cmd.Context(), &steadfastv1.GetStatusRequest{})
			if err != nil {
				return err
			}
			s := r.Status
			return a.show(s, func(w io.Writer) {
				row(w, "node", s.NodeId)
				row(w, "version", s.Version)
				row(w, "state", s.State)
				if s.Problem != "" {
					row(w, "problem", s.Problem)
				}
				row(w, "started", when(s.Started))
				for _, p := range s.Portals {
					row(w, "portal", fmt.Sprintf("%s,%d", p.Address, p.Group))
				}
				for _, p := range s.Pools {
					row(w, "pool", fmt.Sprintf("%s: %s, %s of %s used (%s), %d drives", p.Name, p.State,
						size.Format(p.UsedBytes), size.Format(p.CapacityBytes), share(p.UsedBytes, p.CapacityBytes), len(p.Drives)))
				}
				row(w, "volumes", s.Volumes)
				row(w, "targets", s.Targets)
				row(w, "initiators", s.Initiators)
				row(w, "sessions", s.Sessions)
				if c := s.Counters; c != nil {
					row(w, "reads", fmt.Sprintf("%d, %s", c.Reads, size.Format(int64(c.ReadBytes))))
					row(w, "writes", fmt.Sprintf("%d, %s", c.Writes, size.Format(int64(c.WrittenBytes))))
					row(w, "errors", c.Errors)
				}
			})
		},
	}
}

// eventsCommand is "steadfast events".
func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use: "events", Short: "Show what happened on the node", Args: exactly(0),
		Long: `Show the last events, oldest first. With --follow, go on with new ones until
Ctrl-C. All events are in the node's log, too.`,
		Example: `  steadfast events
  steadfast events --follow --output json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			stream, err := a.node().WatchEvents(ctx, &steadfastv1.WatchEventsRequest{KeptOnly: !follow})
			if err != nil {
				return a.answer(err)
			}
			defer stream.Close()
			for stream.Receive() {
				if err := a.printEvent(stream.Msg().Event); err != nil {
					return err
				}
			}
			if ctx.Err() != nil {
				return nil // Ctrl-C is how it ends
			}
			return a.answer(stream.Err())
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "wait for new events")
	return c
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
	_, err := fmt.Fprintf(a.out, "%s  %-7s  %-20s  %s\n", when(e.Time), e.Severity, e.Kind, strings.ReplaceAll(e.Text, "\n", "; "))
	return err
}
