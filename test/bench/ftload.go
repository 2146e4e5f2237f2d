package main

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Work of the loads: some seconds of each.
const (
	ftComputes       = 30_000
	ftCompiles       = 1
	ftRequests       = 8_000
	ftCappedRequests = 3_000
	ftDurables       = 400
	// ftSettle is how long the guest is left alone before its rest is looked at, and ftRest
	// how long it is.
	ftSettle = 3 * time.Second
	ftRest   = 20 * time.Second
)

// ftRedis starts a Redis in the guest, at a port, with more words. Ten times a second it would
// look at its allocator, which takes a tenth of this processor.
const ftRedis = "redis-server --hz 1 --dynamic-hz no --port %d --bind 0.0.0.0 --protected-mode no --save '' --dir /root %s --daemonize yes >/dev/null; until redis-cli -p %d ping >/dev/null 2>&1; do sleep 0.1; done"

// ftPostgres is a shell command of PostgreSQL's user, with its programs in PATH.
const ftPostgres = "cd / && runuser -u postgres -- env PATH=$(echo /usr/lib/postgresql/*/bin):$PATH sh -c '%s'"

// prepare has the guest start what its loads need.
func (f *ftBench) prepare() error {
	if _, err := f.console.Shell(f.ctx, "redis-cli shutdown nosave 2>/dev/null; "+ftRedis, redisPort, "--appendonly no", redisPort); err != nil {
		return err
	}
	if f.wants("ft-mips-pgbench", "ft-log-pgbench", "ft-speed-pgbench") {
		if _, err := f.console.Shell(f.ctx, ftPostgres, "until pg_isready -q; do sleep 0.5; done; createdb bench && pgbench --initialize --quiet --scale 2 bench"); err != nil {
			return err
		}
	}
	if f.wants("ft-log-receive", "ft-speed-receive") {
		_, err := f.console.Shell(f.ctx, "(guestload net %d >/tmp/listens 2>&1 &) ; until grep -q listening /tmp/listens; do sleep 0.1; done", loadPort)
		return err
	}
	return nil
}

// during measures what a load costs that returns how much it did, and in ms how long
// one of it took, if that is known.
func (f *ftBench) during(load func() (work, p50 float64, err error)) (r ftResult, err error) {
	// What is written back later is of nobody's time.
	if _, err := f.console.Shell(f.ctx, "sync"); err != nil {
		return r, err
	}
	lag, stop := f.watchLag()
	before, err := f.spent()
	if err != nil {
		return r, errors.Join(err, stop())
	}
	work, p50, err := load()
	after, e := f.spent()
	if err := errors.Join(err, e, stop()); err != nil {
		return r, err
	}
	if f.second != nil {
		if err := f.primary.broken(); err != nil {
			return r, err
		}
	}
	wall := after.at.Sub(before.at)
	processors := wall.Seconds() * float64(runtime.NumCPU())
	others := after.busy - before.busy - (after.own - before.own) - (after.primary - before.primary) - (after.secondary - before.secondary)
	return ftResult{
		work: work, p50: p50, executed: after.executed - before.executed, log: after.log - before.log, wall: wall,
		primary: after.primary - before.primary, secondary: after.secondary - before.secondary,
		busy: (after.busy - before.busy).Seconds() / processors, others: others.Seconds() / processors, lagNS: *lag,
	}, nil
}

// ftSpent is what was spent up to a moment.
type ftSpent struct {
	at                       time.Time
	executed, log            float64
	primary, secondary, busy time.Duration
	own                      time.Duration // of this process and its clients
}

func (f *ftBench) spent() (s ftSpent, err error) {
	status, err := f.primary.Status(f.ctx)
	if err != nil {
		return s, err
	}
	s.at, s.executed = time.Now(), float64(status.Count-status.Idled)
	if s.primary, err = cpuTime(f.primary.PID()); err != nil {
		return s, err
	}
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			return s, err
		}
		s.own += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	if s.busy, err = busyTime(); err != nil || f.second == nil {
		return s, err
	}
	s.log = float64(status.Pair.LogBytes)
	s.secondary, err = cpuTime(f.second.PID())
	return s, err
}

// lagEvery is how often the secondary's lag is looked at.
const lagEvery = 250 * time.Millisecond

// watchLag looks at how far the secondary is behind until stop is called: at most that many
// nanoseconds.
func (f *ftBench) watchLag() (most *float64, stop func() error) {
	most = new(float64)
	if f.second == nil {
		return most, func() error { return nil }
	}
	ctx, cancel := context.WithCancel(f.ctx)
	done := make(chan error, 1)
	go func() {
		for pause(ctx, lagEvery) == nil {
			s, err := f.primary.Status(f.ctx)
			if err != nil || s.Pair == nil {
				done <- err
				return
			}
			*most = max(*most, float64(s.Pair.LagNS))
		}
		done <- nil
	}()
	return most, func() error { cancel(); return <-done }
}

// rest has the guest do nothing.
func (f *ftBench) rest() (ftResult, error) {
	if err := pause(f.ctx, ftSettle); err != nil {
		return ftResult{}, err
	}
	return f.during(func() (float64, float64, error) { return 1, 0, pause(f.ctx, ftRest) })
}

// compute is a shell that never waits.
func (f *ftBench) compute() (ftResult, error) {
	return f.during(func() (float64, float64, error) {
		_, err := f.console.Shell(f.ctx, "for n in $(seq %d); do i=$((n*n)); done", ftComputes)
		return ftComputes, 0, err
	})
}

// compile compiles a program some times.
func (f *ftBench) compile() (ftResult, error) {
	return f.during(func() (float64, float64, error) {
		_, err := f.console.Shell(f.ctx, "for n in $(seq %d); do gcc -O2 -c -o /root/bench.o /root/bench.c; done", ftCompiles)
		return ftCompiles, 0, err
	})
}

// pgbenchDone is how pgbench says how many transactions there were.
var pgbenchDone = regexp.MustCompile(`number of transactions actually processed: ([0-9]+)`)

// pgbench moves money in a database on the guest's disk.
func (f *ftBench) pgbench() (ftResult, error) {
	return f.during(func() (float64, float64, error) {
		out, err := f.console.Shell(f.ctx, ftPostgres, fmt.Sprintf("pgbench --client 4 --jobs 1 --no-vacuum --time %d bench", int(3*f.seconds)))
		if err != nil {
			return 0, 0, err
		}
		m := pgbenchDone.FindStringSubmatch(out)
		if m == nil {
			return 0, 0, fmt.Errorf("pgbench printed %q", out)
		}
		n, err := strconv.ParseFloat(m[1], 64)
		return n, 0, err
	})
}

// redis has redis-benchmark ask the guest, as fast as it goes.
func (f *ftBench) redis() (ftResult, error) {
	return f.during(func() (float64, float64, error) { return ftAsk(f.ctx, f.redisAt, redisClients, ftRequests) })
}

// capped is redis with a primary that has only a share of a processor.
func (f *ftBench) capped() (r ftResult, err error) {
	c, err := newFTCap(f.primary.PID(), ftShare)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	return f.during(func() (float64, float64, error) { return ftAsk(f.ctx, f.redisAt, redisClients, ftCappedRequests) })
}

// durable is a Redis that answers when its disk has what it was told, asked by one client.
func (f *ftBench) durable() (r ftResult, err error) {
	if _, err := f.console.Shell(f.ctx, "rm -rf /root/appendonlydir; "+ftRedis, durablePort, "--appendonly yes --appendfsync always", durablePort); err != nil {
		return r, err
	}
	r, err = f.during(func() (float64, float64, error) { return ftAsk(f.ctx, f.durableAt, 1, ftDurables) })
	_, e := f.console.Shell(f.ctx, "redis-cli -p %d shutdown nosave; true", durablePort)
	return r, errors.Join(err, e)
}

// receive has the guest take a stream.
func (f *ftBench) receive() (ftResult, error) {
	return f.during(func() (float64, float64, error) {
		began := time.Now()
		rate, err := toGuest(f.loadAt, f.seconds)
		return rate * time.Since(began).Seconds(), 0, err
	})
}

// ftAsk has redis-benchmark set values, and returns how many and the median of what one took,
// in ms.
func ftAsk(ctx context.Context, address string, clients, requests int) (work, p50 float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, redisPatience)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, 0, err
	}
	out, err := exec.CommandContext(ctx, "redis-benchmark", "-h", host, "-p", port, "-t", "set", "-c", strconv.Itoa(clients), "-n", strconv.Itoa(requests), "-r", "10000", "--csv").Output()
	if err != nil {
		return 0, 0, fmt.Errorf("redis-benchmark: %w: %s", errors.Join(err, ctx.Err()), out)
	}
	p50, err = ftMedianOf(string(out))
	return float64(requests), p50, err
}

// ftMedianOf reads what redis-benchmark prints with --csv: p50_latency_ms.
func ftMedianOf(text string) (float64, error) {
	rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if err != nil || len(rows) < 2 {
		return 0, fmt.Errorf("redis-benchmark printed %q: %w", text, err)
	}
	for i, name := range rows[0] {
		if name == "p50_latency_ms" && i < len(rows[len(rows)-1]) {
			return strconv.ParseFloat(rows[len(rows)-1][i], 64)
		}
	}
	return 0, fmt.Errorf("redis-benchmark says no p50: %q", text)
}
