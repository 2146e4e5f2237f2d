package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"steadfast/test/testbed"
)

const scaleName = "iqn.2026-11.io.steadfast.test:scale"

// loginsAtOnce is how many initiators log in side by side, as after a power
// cut in a rack.
const loginsAtOnce = 64

// usage is what a process holds.
type usage struct {
	rss         int64 // bytes
	descriptors int
	goroutines  int // 0 where nobody tells
}

// measure reads a server's usage.
func measure(ctx context.Context, server testbed.Server) (u usage, err error) {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", server.PID()))
	if err != nil {
		return u, err
	}
	u.descriptors = len(fds)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", server.PID()))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				return u, err
			}
			u.rss = kib << 10
		}
	}
	if meter, ok := server.(testbed.Meter); ok {
		n, err := meter.Metric(ctx, "go_goroutines")
		if err != nil {
			return u, err
		}
		u.goroutines = int(n)
	}
	return u, nil
}

// sessions fills a node with sessions, each on a volume of its own, and takes
// them away again.
func sessions(ctx context.Context, r *report, peer string, count int) (err error) {
	dir, err := os.MkdirTemp("", "steadfast-scale-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	port, err := testbed.FreePort("127.0.0.1")
	if err != nil {
		return err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	cfg := testbed.Config{Dir: dir, Portals: []string{address}, Initiators: []testbed.Initiator{{Name: scaleName}}}
	for n := range count {
		cfg.Volumes = append(cfg.Volumes, testbed.Volume{Name: fmt.Sprintf("v%04d", n), Size: 16 << 20, LUN: n + 1})
	}
	started := time.Now()
	server, err := testbed.New(ctx, peer, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	fmt.Printf("     %d volumes made and mapped in %v\n", count, time.Since(started).Round(time.Millisecond))
	// One session comes and goes first: what a server starts once and keeps is
	// not a leak.
	one, err := login(address, scaleName, testbed.Target, 0xfffff)
	if err != nil {
		return err
	}
	if err := errors.Join(one.ready(1), one.logout()); err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	before, err := measure(ctx, server)
	if err != nil {
		return err
	}
	open, times, err := loginAll(address, count)
	defer func() {
		for _, i := range open {
			_ = i.vanish() // a second close does nothing
		}
	}()
	if err != nil {
		return err
	}
	slices.Sort(times)
	during, err := measure(ctx, server)
	if err != nil {
		return err
	}
	r.check(len(open) == count, "%d sessions on %d volumes: logins p50 %v, p99 %v, worst %v (%d at a time)", len(open), count,
		times[len(times)/2].Round(time.Millisecond), times[len(times)*99/100].Round(time.Millisecond), times[len(times)-1].Round(time.Millisecond), loginsAtOnce)
	// ESXi gives a login five seconds.
	r.check(times[len(times)-1] < 5*time.Second, "every login within 5 s")
	r.check(true, "resident memory %d MiB before, %d MiB with the sessions: %d KiB a session", before.rss>>20, during.rss>>20, (during.rss-before.rss)/int64(count)>>10)
	for n, i := range open {
		if n%2 == 0 {
			err = errors.Join(err, i.logout())
		} else {
			err = errors.Join(err, i.vanish())
		}
	}
	if err != nil {
		return err
	}
	after, err := settle(ctx, server, before)
	if err != nil {
		return err
	}
	r.check(after.descriptors <= before.descriptors, "descriptors: %d before, %d with the sessions, %d after", before.descriptors, during.descriptors, after.descriptors)
	if before.goroutines > 0 {
		r.check(after.goroutines <= before.goroutines, "goroutines: %d before, %d with the sessions, %d after", before.goroutines, during.goroutines, after.goroutines)
	} else {
		r.skip("goroutines: %s tells of none", server.Name())
	}
	return nil
}

// loginAll opens the sessions, each of which then uses its volume.
func loginAll(address string, count int) (open []*initiator, times []time.Duration, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan int)
	for range loginsAtOnce {
		wg.Go(func() {
			for n := range next {
				started := time.Now()
				i, one := login(address, scaleName, testbed.Target, uint32(n+1))
				took := time.Since(started)
				if one == nil {
					one = i.ready(n + 1)
				}
				mu.Lock()
				if i != nil {
					open = append(open, i)
				}
				times = append(times, took)
				err = errors.Join(err, one)
				mu.Unlock()
			}
		})
	}
	for n := range count {
		next <- n
	}
	close(next)
	wg.Wait()
	return open, times, err
}

// settle waits until the server holds no more than before, or for 20 s.
func settle(ctx context.Context, server testbed.Server, before usage) (usage, error) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		now, err := measure(ctx, server)
		done := now.descriptors <= before.descriptors && now.goroutines <= before.goroutines
		if err != nil || done || time.Now().After(deadline) {
			return now, err
		}
		time.Sleep(200 * time.Millisecond)
	}
}
