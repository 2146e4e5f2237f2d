// Scale shows what a node holds at size, and that it lets go of it.
//
//	sessions  1,000 volumes and 1,000 sessions on one node: login time, resident
//	          memory; then half log out and half just vanish, and no goroutine
//	          or descriptor may be left
//	fill      a pool filled to 70 % and 90 % and overwritten at random five times:
//	          speed, write amplification, the longest write
//	snapshots a clone of 1 TiB, and 2,000 snapshots of one volume: made, opened
//	          with, deleted, their space back
//	huge      a 64 TiB volume with 26 million random 4 KiB mappings, written,
//	          closed, opened and read inside 256 MiB of memory (a cgroup; root)
//
// It ends with "scale: N passed, N failed, N skipped".
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// report counts what was shown.
type report struct{ passed, failed, skipped int }

func (r *report) check(ok bool, format string, args ...any) {
	word := "ok  "
	if ok {
		r.passed++
	} else {
		r.failed++
		word = "FAIL"
	}
	fmt.Printf("%s %s\n", word, fmt.Sprintf(format, args...))
}

func (r *report) skip(format string, args ...any) {
	r.skipped++
	fmt.Printf("SKIP %s\n", fmt.Sprintf(format, args...))
}

func main() {
	only := flag.String("only", "sessions,snapshots,fill,huge", "parts to run")
	peer := flag.String("peer", "steadfast", "server for the sessions' part")
	count := flag.Int("sessions", 1000, "sessions, and volumes")
	mappings := flag.Int64("mappings", 26_000_000, "random 4 KiB mappings of the huge volume")
	size := flag.Int64("fill-size", 2<<30, "bytes of the pool files of the fill and snapshots parts")
	inside := flag.String("inside", "", "run the huge part in this process, in this folder (used by itself)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := &report{}
	if *inside != "" {
		if err := hugeInside(ctx, *inside, *mappings); err != nil {
			fmt.Fprintln(os.Stderr, "scale:", err)
			os.Exit(1)
		}
		return
	}
	parts := []struct {
		name string
		run  func() error
	}{
		{"sessions", func() error { return sessions(ctx, r, *peer, *count) }},
		{"snapshots", func() error { return snapshots(ctx, r, *size) }},
		{"fill", func() error { return fill(ctx, r, *size) }},
		{"huge", func() error { return huge(ctx, r, *mappings) }},
	}
	chosen := strings.Split(*only, ",")
	for _, p := range parts {
		if !slices.Contains(chosen, p.name) {
			continue
		}
		if err := p.run(); err != nil {
			r.check(false, "%s: %v", p.name, err)
		}
	}
	fmt.Printf("scale: %d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	if r.failed > 0 {
		os.Exit(1)
	}
}
