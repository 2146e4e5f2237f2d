package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"steadfast/fault"
	"steadfast/internal/logline"
	"steadfast/internal/memlock"
	"steadfast/node"
	"steadfast/node/config"
	"steadfast/node/guard"
)

// nodeCommand is "steadfast node".
func (a *app) nodeCommand() *cobra.Command {
	var path string
	var check bool
	c := &cobra.Command{
		Use: "node", Short: "Run a storage node, or a host of machines", Args: noSuchCommand,
		Long: `Run a storage node until SIGTERM or SIGINT. It then asks initiators to log out,
waits for what is in progress, and closes its pools. A second signal ends it at
once, which loses nothing that was acknowledged.

With host = true under [cluster], run a host of virtual machines instead. The end of
its process is the end of its machines, as in a power cut, and the cluster starts them
on another host; "steadfast host maintenance" before a stop shuts their guests down.`,
		Example: `  steadfast node --config /etc/steadfast/steadfast.toml
  steadfast node --config steadfast.toml --check
  steadfast node --config host.toml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(path)
			if err != nil {
				return err
			}
			if check {
				_, err := fmt.Fprintf(a.out, "%s is valid\n", path)
				return err
			}
			return a.serve(cmd.Context(), cfg)
		},
	}
	c.Flags().StringVar(&path, "config", config.DefaultPath, "the configuration file")
	c.Flags().BoolVar(&check, "check", false, "only check the configuration")
	c.AddCommand(a.nodeDrain())
	return c
}

// logPatience is how long the end of a node waits for a log that hangs.
const logPatience = 2 * time.Second

// serve runs a node until a signal.
func (a *app) serve(ctx context.Context, cfg config.Config) error {
	ctx, stop := a.signals(ctx)
	defer stop()
	node.LimitMemory(a.getenv)
	node.RaisePriority()
	ctx, exit := context.WithCancel(ctx)
	defer exit()
	self, err := os.Executable()
	if err != nil {
		return fault.Wrap(fault.Internal, err, "this program's path")
	}
	log := logline.New(a.errs)
	defer log.Close(logPatience)
	logger := newLogger(log, cfg.Log)
	stayInMemory(logger)
	n, err := node.Start(ctx, node.Options{Config: cfg, Version: version, Log: logger, Recent: log.Recent, Getenv: a.getenv, Exit: exit, Guard: self})
	if err != nil {
		return err
	}
	<-ctx.Done()
	return n.Stop()
}

// stayInMemory has the system keep this program in memory. Where that is not allowed it
// works, with less margin.
func stayInMemory(log *slog.Logger) {
	if err := memlock.Lock(); err != nil {
		log.Warn("where memory is short the system may have this process wait for its own, and others take that for its death", "error", err)
	}
}

// newLogger returns a logger as configured.
func newLogger(w io.Writer, l config.Log) *slog.Logger {
	opts := &slog.HandlerOptions{Level: slog.Level(l.Level)}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// signals returns a context that ends with the first signal to stop. The
// second ends the process: acknowledged writes are safe without a clean stop,
// and whoever sends it has reasons not to wait.
func (a *app) signals(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	got := make(chan os.Signal, 2)
	signal.Notify(got, syscall.SIGTERM, syscall.SIGINT)
	done := make(chan struct{})
	go func() {
		for seen := 0; ; seen++ {
			select {
			case s := <-got:
				if seen > 0 {
					os.Exit(128 + int(s.(syscall.Signal)))
				}
				cancel(fault.New(fault.Canceled, "signal %v", s))
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(got)
		close(done)
		cancel(nil)
	}
}

// guardCommand is the process beside a node that tells others of its death.
func (a *app) guardCommand() *cobra.Command {
	return &cobra.Command{
		Use: guard.Command + " PID", Hidden: true, Short: "Tell the other members when the node that started this has ended", Args: exactly(1),
		Example: "  steadfast guard 4711",
		RunE: func(_ *cobra.Command, args []string) error {
			pid, err := strconv.Atoi(args[0])
			if err != nil {
				return fault.New(fault.Invalid, "%q is no process", args[0])
			}
			log := newLogger(a.errs, config.Log{})
			stayInMemory(log)
			return guard.Run(a.in, pid, log)
		},
	}
}
