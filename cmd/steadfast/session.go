package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/size"
)

// sessionCommand is "steadfast session".
func (a *app) sessionCommand() *cobra.Command {
	return group("session", "Show who is logged in", a.sessionList(), a.sessionShow(), a.sessionDrop())
}

func (a *app) sessionList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List sessions", Example: "  steadfast session list", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.sessions().ListSessions(cmd.Context(), &steadfastv1.ListSessionsRequest{})
			if err != nil {
				return err
			}
			return table(a, r.Sessions, "ID INITIATOR TARGET ADDRESS COMMANDS IN OUT SINCE", func(s *steadfastv1.Session) []any {
				target := s.Target
				if target == "" {
					target = "(discovery)"
				}
				return []any{s.Id, s.Initiator, target, s.Address, s.Commands, size.Format(int64(s.ReceivedBytes)), size.Format(int64(s.SentBytes)), when(s.Since)}
			})
		},
	}
}

// sessionID reads a session's number.
func sessionID(arg string) (int32, error) {
	id, err := strconv.ParseUint(arg, 10, 16)
	if err != nil || id == 0 {
		return 0, fault.New(fault.Invalid, "%q is not a session's number; see \"steadfast session list\"", arg)
	}
	return int32(id), nil
}

func (a *app) sessionShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a session", Example: "  steadfast session show 1", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := sessionID(args[0])
			if err != nil {
				return err
			}
			r, err := a.sessions().GetSession(cmd.Context(), &steadfastv1.GetSessionRequest{Id: id})
			if err != nil {
				return err
			}
			s := r.Session
			return a.show(s, func(w io.Writer) {
				row(w, "id", s.Id)
				row(w, "initiator", s.Initiator)
				row(w, "initiator alias", s.InitiatorAlias)
				row(w, "ISID", s.Isid)
				row(w, "target", s.Target)
				row(w, "portal", fmt.Sprintf("%s,%d", s.Portal, s.Group))
				row(w, "address", s.Address)
				row(w, "since", when(s.Since))
				row(w, "received", size.Format(int64(s.ReceivedBytes)))
				row(w, "sent", size.Format(int64(s.SentBytes)))
				row(w, "commands", fmt.Sprintf("%d, %d not answered yet", s.Commands, s.OutstandingCommands))
				row(w, "data buffers", size.Format(s.MemoryBytes))
				row(w, "digests", fmt.Sprintf("header %s, data %s", onOff(s.HeaderDigest), onOff(s.DataDigest)))
			})
		},
	}
}

func (a *app) sessionDrop() *cobra.Command {
	return &cobra.Command{
		Use: "drop ID", Short: "End a session; the initiator may log in again", Args: exactly(1),
		Long: `End a session at once. Its commands are aborted, as on a broken cable; an
initiator that is still admitted logs in again and repeats them. To keep one
out, unmap its volumes or remove it.`,
		Example: "  steadfast session drop 1",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := sessionID(args[0])
			if err != nil {
				return err
			}
			if _, err := a.sessions().DropSession(cmd.Context(), &steadfastv1.DropSessionRequest{Id: id}); err != nil {
				return err
			}
			return a.did(nil, "dropped session %d", id)
		},
	}
}
