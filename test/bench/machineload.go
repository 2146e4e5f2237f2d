package main

import (
	"context"
	"encoding/binary"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// redisLoad is one use of redis-benchmark.
type redisLoad struct {
	test     string
	pipeline int
	requests int
}

// redisLoads take some seconds on the slower side.
var redisLoads = []redisLoad{{"set", 1, 8_000}, {"get", 1, 8_000}, {"set", 16, 60_000}, {"get", 16, 60_000}}

// redisClients are the connections of redis-benchmark. Its usual 50 are too many for QEMU's
// user-mode network, which listens with a backlog of one: connections are reset, or hang.
const redisClients = 4

func (l redisLoad) row() string {
	if l.pipeline == 1 {
		return "machine-redis-" + l.test
	}
	return fmt.Sprintf("machine-redis-%s-pipeline%d", l.test, l.pipeline)
}

// redisPatience bounds one use, on whatever machine.
const redisPatience = 3 * time.Minute

func redisRows() (rows []string) {
	for _, l := range redisLoads {
		rows = append(rows, l.row())
	}
	return rows
}

// redis measures Redis in the guest.
func (m *machineBench) redis() error {
	if err := m.running(); err != nil {
		return err
	}
	for _, g := range m.guests {
		if _, err := g.order(m.ctx, "redis-server --bind 0.0.0.0 --protected-mode no --save '' --appendonly no --dir /tmp --daemonize yes >/dev/null; until redis-cli ping >/dev/null 2>&1; do sleep 0.1; done"); err != nil {
			return err
		}
	}
	for _, l := range redisLoads {
		if !m.wants(l.row()) {
			continue
		}
		values, err := m.both(func(side int) (float64, error) { return m.redisBenchmark(m.guests[side].redis, l) })
		if err != nil {
			return err
		}
		tell(l.row(), medianOf(values[ours]), medianOf(values[theirs]), qemuName)
	}
	for _, g := range m.guests {
		if _, err := g.order(m.ctx, "redis-cli shutdown nosave; true"); err != nil {
			return err
		}
	}
	return nil
}

// redisBenchmark returns answers a second.
func (m *machineBench) redisBenchmark(address string, l redisLoad) (float64, error) {
	ctx, cancel := context.WithTimeout(m.ctx, redisPatience)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, "redis-benchmark", "-h", host, "-p", port, "-t", l.test, "-c", strconv.Itoa(redisClients), "-n", strconv.Itoa(l.requests), "-P", strconv.Itoa(l.pipeline), "-r", "10000", "--csv").Output()
	if err != nil {
		return 0, fmt.Errorf("redis-benchmark: %w: %s", errors.Join(err, ctx.Err()), out)
	}
	rows, err := csv.NewReader(strings.NewReader(string(out))).ReadAll()
	if err != nil || len(rows) == 0 || len(rows[len(rows)-1]) < 2 {
		return 0, fmt.Errorf("redis-benchmark printed %q: %w", out, err)
	}
	return strconv.ParseFloat(rows[len(rows)-1][1], 64)
}

// diskLoad is one kind of I/O in the guest.
type diskLoad struct {
	name, kind, order string
	bytes             int
}

var diskLoads = []diskLoad{
	{"machine-blk-read", "read", "sequential", 1 << 20},
	{"machine-blk-write", "write", "sequential", 1 << 20},
	{"machine-blk-randread-4k", "read", "random", 4 << 10},
	{"machine-blk-randwrite-4k", "write", "random", 4 << 10},
}

// unit is what io returns the rate in.
func (l diskLoad) unit() string {
	if l.bytes > 64<<10 {
		return "MBps"
	}
	return "iops"
}

func diskRows() (rows []string) {
	for _, l := range diskLoads {
		rows = append(rows, l.name)
	}
	return rows
}

// disks measures the guest's I/O.
func (m *machineBench) disks() error {
	if err := m.running(); err != nil {
		return err
	}
	for _, l := range diskLoads {
		if !m.wants(l.name) {
			continue
		}
		values, err := m.both(func(side int) (float64, error) { return m.guests[side].io(m.ctx, l, m.seconds) })
		if err != nil {
			return err
		}
		tell(l.name+"/"+l.unit(), medianOf(values[ours]), medianOf(values[theirs]), qemuName)
	}
	return nil
}

// io runs a load in the guest, and returns I/Os a second by this host's clock, or MB.
func (g *guest) io(ctx context.Context, l diskLoad, seconds float64) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, orderPatience)
	defer cancel()
	g.screen.forget()
	if _, err := fmt.Fprintf(g.in, "guestload disk /dev/vdb %s %s %d %g\n", l.kind, l.order, l.bytes, seconds); err != nil {
		return 0, err
	}
	_, began, err := g.screen.await(ctx, "load-begin")
	if err != nil {
		return 0, err
	}
	_, ended, err := g.screen.await(ctx, "load-end ")
	if err != nil {
		return 0, err
	}
	if _, _, err := g.screen.await(ctx, "\n"); err != nil {
		return 0, err
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(g.screen.before()), 64)
	rate := n / ended.Sub(began).Seconds()
	if l.unit() == "MBps" {
		rate *= float64(l.bytes) / 1e6
	}
	return rate, err
}

// streams measures one stream of TCP, in each direction.
func (m *machineBench) streams() error {
	if err := m.running(); err != nil {
		return err
	}
	for _, g := range m.guests {
		if _, err := g.order(m.ctx, fmt.Sprintf("(guestload net %d >/tmp/listens 2>&1 &) ; until grep -q listening /tmp/listens; do sleep 0.1; done", loadPort)); err != nil {
			return err
		}
	}
	for _, row := range []struct {
		name string
		one  func(address string, seconds float64) (float64, error)
	}{{"machine-net-rx", toGuest}, {"machine-net-tx", fromGuest}} {
		if !m.wants(row.name) {
			continue
		}
		values, err := m.both(func(side int) (float64, error) { return row.one(m.guests[side].load, m.seconds) })
		if err != nil {
			return err
		}
		tell(row.name+"/MBps", medianOf(values[ours]), medianOf(values[theirs]), qemuName)
	}
	return nil
}

// streamBuffer is how much is written or read at a time.
const streamBuffer = 256 << 10

// streamPatience bounds what a stream takes besides its time: what is under way when that is
// over has to arrive.
const streamPatience = time.Minute

// dialGuest connects to guestload's net and says what is wanted of it.
func dialGuest(address string, seconds float64, kind byte) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(time.Duration(seconds*float64(time.Second)) + streamPatience)
	_, err = c.Write([]byte{kind})
	if err := errors.Join(err, c.SetDeadline(deadline)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c.(*net.TCPConn), nil
}

// toGuest sends for some time, and returns MB a second that the guest has read.
func toGuest(address string, seconds float64) (rate float64, err error) {
	c, err := dialGuest(address, seconds, 'k')
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	began, b := time.Now(), make([]byte, streamBuffer)
	for time.Since(began).Seconds() < seconds {
		if _, err := c.Write(b); err != nil {
			return 0, err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return 0, err
	}
	var n [8]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return 0, fmt.Errorf("the guest's answer: %w", err)
	}
	return float64(binary.BigEndian.Uint64(n[:])) / 1e6 / time.Since(began).Seconds(), nil
}

// fromGuest reads for some time, and returns MB a second.
func fromGuest(address string, seconds float64) (rate float64, err error) {
	c, err := dialGuest(address, seconds, 's')
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	b := make([]byte, streamBuffer)
	if _, err := io.ReadFull(c, b); err != nil {
		return 0, err
	}
	began, total := time.Now(), 0
	for time.Since(began).Seconds() < seconds {
		n, err := c.Read(b)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return float64(total) / 1e6 / time.Since(began).Seconds(), nil
}
