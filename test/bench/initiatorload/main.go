// Command initiatorload is generator/generator.c on the initiator of this tree:
// the same arguments, the same kinds of I/O, the same line of JSON.
//
//	initiatorload iscsi://HOST:PORT/TARGET/LUN [KEY=VALUE...]
//	  mode=read|write|fill bs=BYTES qd=N seconds=S warmup=S order=random|sequential
//	  seed=N span=BYTES initiator=IQN
//
// A disk of ours is a block.Device, whose calls return when they are done: so at
// a depth of N there are N goroutines, as there are behind a machine's disk. They
// run on as many processors as there are; the generator on libiscsi is one thread.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"steadfast/compute/initiator"
	"steadfast/iscsi"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "initiatorload:", err)
		os.Exit(1)
	}
}

// load is what was asked for.
type load struct {
	write, random, fill bool
	bs, qd              int
	seconds, warmup     time.Duration
	seed                uint64
	span                int64
	initiator           string
}

// report is the line that is printed; what its fields are is generator.c's.
type report struct {
	Ops, Total, Errors uint64
	IOPS               float64 `json:"iops"`
	P50                float64 `json:"p50_us"`
	P99                float64 `json:"p99_us"`
	Max                float64 `json:"max_us"`
}

var errUsage = errors.New("want iscsi://HOST:PORT/TARGET/LUN and KEY=VALUE...; see the top of main.go")

// parse reads the arguments behind the URL.
func parse(args []string) (l load, err error) {
	l = load{bs: 4096, qd: 1, seconds: 5 * time.Second, warmup: 500 * time.Millisecond, random: true, seed: 1, initiator: "iqn.2026-11.io.steadfast.test:generator"}
	for _, a := range args {
		key, v, _ := strings.Cut(a, "=")
		var err error
		switch key {
		case "mode":
			l.write, l.fill = v != "read", v == "fill"
			if !slices.Contains([]string{"read", "write", "fill"}, v) {
				err = errUsage
			}
		case "bs":
			l.bs, err = strconv.Atoi(v)
		case "qd":
			l.qd, err = strconv.Atoi(v)
		case "seconds":
			l.seconds, err = time.ParseDuration(v + "s")
		case "warmup":
			l.warmup, err = time.ParseDuration(v + "s")
		case "order":
			l.random = v == "random"
		case "seed":
			l.seed, err = strconv.ParseUint(v, 10, 64)
		case "span":
			l.span, err = strconv.ParseInt(v, 10, 64)
		case "initiator":
			l.initiator = v
		default:
			err = errUsage
		}
		if err != nil {
			return l, fmt.Errorf("%s: %w", a, err)
		}
	}
	if l.bs <= 0 || l.qd <= 0 || l.bs > 16<<20 || l.qd > 1024 || l.bs%512 != 0 {
		return l, errors.New("bs or qd is out of range")
	}
	if l.fill {
		l.random, l.warmup = false, 0
	}
	return l, nil
}

func run(args []string) (err error) {
	if len(args) == 0 {
		return errUsage
	}
	at, err := url.Parse(args[0])
	if err != nil {
		return err
	}
	target, lun, ok := strings.Cut(strings.Trim(at.Path, "/"), "/")
	number, err := strconv.Atoi(lun)
	if !ok || err != nil {
		return errUsage
	}
	l, err := parse(args[1:])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d, err := initiator.Open(ctx, initiator.Config{
		Initiator: l.initiator, ISID: iscsi.ISID{0x80, 0, 0, 0, 0, 7}, Target: target, LUN: number, Portals: []string{at.Host},
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	r, err := l.drive(d)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// drive does the I/O, and tells what it saw.
func (l *load) drive(d *initiator.Disk) (report, error) {
	size := d.Size()
	if l.span > 0 {
		size = min(size, l.span)
	}
	places := size / int64(l.bs)
	if places == 0 {
		return report{}, fmt.Errorf("a disk of %d bytes", d.Size())
	}
	began := time.Now()
	var next, total atomic.Int64
	var users sync.WaitGroup
	took := make([][]time.Duration, l.qd)
	failed := make([]error, l.qd)
	from := began.Add(l.warmup)
	end := from.Add(l.seconds)
	for u := range l.qd {
		users.Go(func() {
			rng := rand.New(rand.NewPCG(l.seed, uint64(u)))
			buf := make([]byte, l.bs)
			for i := 0; i+8 <= len(buf); i += 8 {
				binary.LittleEndian.PutUint64(buf[i:], rng.Uint64())
			}
			list := make([]time.Duration, 0, 1<<16)
			for {
				start := time.Now()
				n := next.Add(1) - 1
				if l.fill && n >= places || !l.fill && start.After(end) {
					break
				}
				if l.random {
					n = rng.Int64N(places)
				}
				if failed[u] = l.one(d, rng, buf, n%places*int64(l.bs)); failed[u] != nil {
					break
				}
				total.Add(1)
				if now := time.Now(); now.After(from) && (l.fill || !now.After(end)) {
					list = append(list, now.Sub(start))
				}
			}
			took[u] = list
		})
	}
	users.Wait()
	long := l.seconds
	if l.fill {
		long = time.Since(began)
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	r := report{Ops: uint64(len(all)), Total: uint64(total.Load()), IOPS: float64(len(all)) / long.Seconds()}
	if len(all) > 0 {
		us := func(i int) float64 { return float64(all[i].Nanoseconds()) / 1e3 }
		r.P50, r.P99, r.Max = us(len(all)/2), us(len(all)*99/100), us(len(all)-1)
	}
	return r, errors.Join(failed...)
}

// one is one I/O. What is written compresses no more than random data, and no two
// sectors are alike.
func (l *load) one(d *initiator.Disk, rng *rand.Rand, buf []byte, off int64) error {
	if !l.write {
		return d.ReadAt(buf, off)
	}
	for i := 0; i+8 <= len(buf); i += 512 {
		binary.LittleEndian.PutUint64(buf[i:], rng.Uint64())
	}
	return d.WriteAt(buf, off, 0)
}
