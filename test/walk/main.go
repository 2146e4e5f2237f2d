// Walk runs what the documentation has people type: every command of docs/walk.md, by hand on
// one computer and on three machines, and the Debian package: installed, looked at, upgraded
// and purged.
//
// Machines are boxes: namespaces with a root of their own over this computer's, which they
// cannot change. There is no systemd in them: a stand-in for systemctl runs what a unit's
// ExecStartPre and ExecStart say and starts it again when it ends; and one for scp copies
// from box to box. All else is what the page says.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"steadfast/internal/walkdoc"
)

// Headings of the page's parts.
const (
	byHand   = "By hand, on one computer"
	onThree  = "On three machines"
	pagePath = "docs/walk.md"
)

// run is one run of the harness.
type run struct {
	bin, deb string     // paths of the program and of the package
	dir      string     // of all files
	drives   []*os.File // of boxes
	verbose  bool
	passed   int
	failed   int
	skipped  int
}

func main() {
	r := &run{}
	only := flag.String("only", "deb,hand,machines", "parts to run: deb, hand, machines")
	flag.StringVar(&r.bin, "bin", "bin/steadfast", "the program")
	flag.StringVar(&r.deb, "deb", "", "the package; the newest in dist when empty")
	parent := flag.String("dir", os.TempDir(), "where files go: a disk with 8 GiB free")
	flag.BoolVar(&r.verbose, "v", false, "show what commands print")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := r.all(ctx, *parent, strings.Split(*only, ","))
	if err != nil {
		fmt.Println("walk:", err)
		r.failed++
	}
	fmt.Printf("walk: %d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	if r.failed > 0 {
		stop()
		os.Exit(1)
	}
}

// all runs the parts that are wanted.
func (r *run) all(ctx context.Context, parent string, parts []string) (err error) {
	known := map[string]func(context.Context) error{"deb": r.packageLife, "hand": r.byHand, "machines": r.onMachines}
	for _, p := range parts {
		if known[p] == nil {
			return fmt.Errorf("there is no part %q: deb, hand, machines", p)
		}
	}
	if os.Geteuid() != 0 {
		fmt.Printf("SKIP %s: boxes need root\n", strings.Join(parts, ", "))
		r.skipped += len(parts)
		return nil
	}
	if r.bin, err = filepath.Abs(r.bin); err != nil {
		return err
	}
	if r.deb == "" {
		r.deb = newest("dist/steadfast_*.deb")
	}
	if r.deb, err = filepath.Abs(r.deb); err != nil {
		return err
	}
	if r.dir, err = os.MkdirTemp(parent, "steadfast-walk"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	for _, p := range parts {
		if err := known[p](ctx); err != nil {
			r.failed++
			fmt.Printf("FAIL %s: %v\n", p, err)
		}
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
	}
	return nil
}

// newest returns the newest file of a pattern; the pattern when there is none.
func newest(pattern string) string {
	best, at := pattern, time.Time{}
	files, _ := filepath.Glob(pattern) // the pattern is right
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && info.ModTime().After(at) {
			best, at = f, info.ModTime()
		}
	}
	return best
}

// patience bounds one command: the longest build an image, or copy a machine on a computer
// that has much else to do.
const patience = 15 * time.Minute

// follow types a part of the page. Nothing after a command that fails would be worth its time.
func (r *run) follow(ctx context.Context, heading string, at map[string]*terminal) error {
	page, err := os.ReadFile(pagePath)
	if err != nil {
		return err
	}
	commands, err := walkdoc.Read(string(page), heading)
	if err != nil {
		return err
	}
	for _, c := range commands {
		if at[c.At] == nil {
			return fmt.Errorf("%s:%d: there is no %q", pagePath, c.Line, c.At)
		}
		started := time.Now()
		out, status, err := at[c.At].enter(ctx, c.Text, patience)
		first, _, _ := strings.Cut(c.Text, "\n")
		fmt.Printf("%6.1fs  %s  %s\n", time.Since(started).Seconds(), c.At, first)
		if r.verbose && out != "" {
			fmt.Printf("          %s\n", strings.ReplaceAll(strings.TrimSpace(out), "\n", "\n          "))
		}
		missing := c.Missing(out)
		switch {
		case err != nil:
			return fmt.Errorf("%s:%d: %s: %w\n%s", pagePath, c.Line, first, err, out)
		case status != 0:
			return fmt.Errorf("%s:%d: %s: status %d\n%s", pagePath, c.Line, first, status, out)
		case missing != "":
			return fmt.Errorf("%s:%d: %s: it is to print %q, and printed\n%s", pagePath, c.Line, first, missing, out)
		}
		r.passed++
	}
	return nil
}
