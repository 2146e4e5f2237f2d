// Guestlife has Debian guests live in the machine of this tree, puts them under load, and
// judges what they answer. It goes the way of a user: "steadfast image build" makes the
// guest's disk, whose packages are configured in the machine too, and "steadfast machine run"
// boots it.
//
//	-short   a small Debian boots to its login, Redis is used over the network with every
//	         answer checked, and the power button ends it: for CI
//	(none)   a whole Debian with systemd: nginx, PostgreSQL, stress-ng, fio, Redis, apt, a
//	         restart, and a boot that is recorded and replayed
//
// Each load checks what comes back. What fails is a bug of the machine until something else
// is found. It ends with "nightly: N passed, N failed, N skipped" ("guests: ..." with -short).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"steadfast/test/testbed"
)

// run is one run and its counts.
type run struct {
	ctx     context.Context
	bin     string        // the program under test
	dir     string        // goes away at the end
	logs    string        // stays: the guests' consoles
	cache   string        // packages and built disks
	seconds time.Duration // for each load
	only    *regexp.Regexp
	verbose bool

	passed, failed, skipped int
}

// A step is one thing that is shown of a guest.
type step struct {
	name string
	do   func(*guest) error
}

// errSkip begins the reason why something cannot be shown here.
var errSkip = errors.New("skipped")

func main() {
	short := flag.Bool("short", false, "only what CI runs")
	only := flag.String("only", "", "only loads whose names match")
	r := &run{}
	flag.DurationVar(&r.seconds, "time", time.Minute, "time of each load")
	flag.StringVar(&r.cache, "cache", ".cache/machine/image", "folder of packages and built disks")
	flag.BoolVar(&r.verbose, "v", false, "print the guests' consoles")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	r.ctx = ctx
	what := "nightly"
	if *short {
		what = "guests"
	}
	err := r.all(*short, *only)
	stop()
	if err != nil {
		fmt.Printf("FAIL %s: %v\n", what, err)
		r.failed++
	}
	fmt.Printf("%s: %d passed, %d failed, %d skipped\n", what, r.passed, r.failed, r.skipped)
	if r.failed > 0 {
		os.Exit(1)
	}
}

// all runs the chosen form in a folder that goes away.
func (r *run) all(short bool, only string) (err error) {
	if r.only, err = regexp.Compile(only); err != nil {
		return err
	}
	if r.bin, err = testbed.Binary(); err != nil {
		return err
	}
	if why := testbed.MissingForImages(); why != "" {
		r.skip("all", why)
		return nil
	}
	r.logs = filepath.Join(".cache", "guestlife")
	if err := os.MkdirAll(r.logs, 0o755); err != nil {
		return err
	}
	if r.dir, err = os.MkdirTemp("", "steadfast-guestlife-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	if short {
		return r.short()
	}
	return r.nightly()
}

// wanted tells whether a load was asked for.
func (r *run) wanted(name string) bool { return r.only.MatchString(name) }

// try runs a step on a guest, counts it and says how it went, and tells whether the guest is
// of any use after it.
func (r *run) try(g *guest, s step) bool {
	if !r.wanted(s.name) {
		return true
	}
	began := time.Now()
	err := s.do(g)
	switch {
	case errors.Is(err, errSkip):
		r.skip(s.name, err.Error())
	case err != nil:
		r.failed++
		fmt.Printf("FAIL %s: %v\n", s.name, err)
		g.showTail()
	default:
		r.passed++
		fmt.Printf("ok   %s  %.1fs%s\n", s.name, time.Since(began).Seconds(), g.takeNote())
	}
	return r.ctx.Err() == nil && g.alive()
}

// tryAll runs steps on a guest in their order. Only in the last one the guest may end: what
// cannot be tried because it is gone is a failure, whatever the step before it said.
func (r *run) tryAll(g *guest, steps []step) {
	for i, s := range steps {
		if r.try(g, s) {
			continue
		}
		if i < len(steps)-1 && r.ctx.Err() == nil {
			r.failed++
			fmt.Printf("FAIL %s: not tried, the machine has ended: %v\n", steps[i+1].name, g.exit)
		}
		return
	}
}

// skip counts what this host cannot show, and says why.
func (r *run) skip(name, why string) {
	r.skipped++
	fmt.Printf("SKIP %s: %s\n", name, strings.TrimPrefix(why, errSkip.Error()+": "))
}
