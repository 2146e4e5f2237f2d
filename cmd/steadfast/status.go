package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/node/size"
)

// Exit statuses of "status --check", as monitoring systems have them.
const (
	exitExposed exitStatus = 1
	exitDown    exitStatus = 2
)

// statusCommand is "steadfast status".
func (a *app) statusCommand() *cobra.Command {
	var check bool
	c := &cobra.Command{
		Use: "status", Short: "Show how everything is, and what is not redundant", Args: exactly(0),
		Long: `Show the site on a page, as the node that is asked sees it: boxes with their
members, the quorum, resource groups, virtual machines, pools, and at its end what
does not work or would not survive the next failure, with what to do. Of a node in
no cluster, show the node. It answers without a quorum, too, with what it knows.

With --check print only the end of it, and exit with status 0 when all is
redundant, 1 when something is not, 2 when something does not work.`,
		Example: `  steadfast status
  steadfast status --check
  steadfast status --output json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.sites().GetSite(cmd.Context(), &steadfastv1.GetSiteRequest{})
			if err != nil {
				return err
			}
			switch {
			case a.output == "json":
				err = a.printJSON(toJSON(r.Site.ProtoReflect()))
			case check:
				_, err = io.WriteString(a.out, risksText(r.Site.GetRisks()))
			default:
				_, err = io.WriteString(a.out, siteText(r.Site))
			}
			if err != nil || !check {
				return err
			}
			return checked(r.Site.GetRisks())
		},
	}
	c.Flags().BoolVar(&check, "check", false, "exit with status 1 when something is not redundant, 2 when it does not work")
	return c
}

// checked is the exit status for risks; nil: there are none.
func checked(risks []*steadfastv1.Risk) error {
	switch {
	case len(risks) == 0:
		return nil
	case risks[0].Level == "down": // what is worst comes first
		return exitDown
	}
	return exitExposed
}

// nodeRows are the lines about a node in no cluster.
func nodeRows(w io.Writer, s *steadfastv1.Status) {
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
}
