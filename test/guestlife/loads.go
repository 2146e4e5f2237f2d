package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// nginxPages are how many lines the pages have; a line is its number.
var nginxPages = []int{1, 10, 100, 1_000, 10_000, 100_000}

// nginxClients are at work at the same time.
const nginxClients = 32

// page is what a page holds: as seq prints it.
func page(lines int) []byte {
	var b bytes.Buffer
	for i := range lines {
		fmt.Fprintln(&b, i+1)
	}
	return b.Bytes()
}

// nginx has many clients read pages and pieces of them, and checks every byte.
func nginx(g *guest, long time.Duration) error {
	pages := map[int][]byte{}
	for _, n := range nginxPages {
		pages[n] = page(n)
		if _, err := g.shell("mkdir -p /var/www/html/n && seq 1 %d >/var/www/html/n/%d", n, n); err != nil {
			return err
		}
	}
	w := &web{base: "http://" + g.forwards[httpForward] + "/n/", pages: pages, patience: answerPatience}
	err := w.use(g.r.ctx, long)
	g.remark("%d requests, %d MB checked", w.requests.Load(), w.bytes.Load()/1e6)
	return err
}

// web is what is asked, how long an answer may take, and how much was answered.
type web struct {
	base            string
	pages           map[int][]byte
	patience        time.Duration
	requests, bytes atomic.Int64
}

// use has all clients ask for some time. One that fails ends the others.
func (w *web) use(ctx context.Context, long time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	end := time.Now().Add(long)
	var wait sync.WaitGroup
	for i := range nginxClients {
		wait.Go(func() {
			if err := w.client(ctx, uint64(i), end); err != nil {
				cancel(err) // the first is the one that tells
			}
		})
	}
	wait.Wait()
	return context.Cause(ctx)
}

// client asks once, and on until end; every other client has a new connection each time. What
// it has asked for then is waited for: an answer that never comes is not to be taken for one
// that was cut off.
func (w *web) client(ctx context.Context, seed uint64, end time.Time) error {
	rnd := rand.New(rand.NewPCG(seed, 2))
	transport := &http.Transport{DisableKeepAlives: seed%2 == 0}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport, Timeout: w.patience}
	for asked := false; !asked || time.Now().Before(end); asked = true {
		n := nginxPages[rnd.IntN(len(nginxPages))]
		body := w.pages[n]
		from, to := 0, len(body)
		if rnd.IntN(3) == 0 {
			from = rnd.IntN(len(body))
			to = from + 1 + rnd.IntN(len(body)-from)
		}
		if err := w.get(ctx, c, strconv.Itoa(n), from, to, body); err != nil {
			return err
		}
	}
	return nil
}

// get asks for a piece of a page, or for all of it.
func (w *web) get(ctx context.Context, c *http.Client, name string, from, to int, body []byte) (err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.base+name, nil)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if to-from < len(body) {
		status = http.StatusPartialContent
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != status || !bytes.Equal(got, body[from:to]) {
		return fmt.Errorf("page %s from %d to %d: status %d, %d bytes that are not the page's", name, from, to, res.StatusCode, len(got))
	}
	w.requests.Add(1)
	w.bytes.Add(int64(len(got)))
	return nil
}

// asPostgres runs a command as PostgreSQL's user, with its programs in PATH.
func asPostgres(g *guest, command string) (string, error) {
	return g.shell("cd / && runuser -u postgres -- env PATH=$(echo /usr/lib/postgresql/*/bin):$PATH sh -c '%s'", strings.ReplaceAll(command, "'", `'\''`))
}

// processed is how pgbench says how much it has done, and failed what went wrong.
var (
	processed = regexp.MustCompile(`number of transactions actually processed: (\d+)`)
	failed    = regexp.MustCompile(`number of failed transactions: (\d+)`)
)

// postgres has pgbench move money, and then counts it.
func (k *kept) postgres(g *guest, seconds int) error {
	if _, err := asPostgres(g, "until pg_isready -q; do sleep 0.5; done; dropdb --if-exists bench && createdb bench && pgbench --initialize --quiet --scale 2 bench"); err != nil {
		return err
	}
	out, err := asPostgres(g, fmt.Sprintf("pgbench --client 8 --jobs 2 --time %d bench", seconds))
	if err != nil {
		return err
	}
	done, bad := processed.FindStringSubmatch(out), failed.FindStringSubmatch(out)
	if done == nil || bad == nil || bad[1] != "0" || done[1] == "0" {
		return fmt.Errorf("pgbench: %s", out)
	}
	if k.transactions, err = strconv.Atoi(done[1]); err != nil {
		return err
	}
	g.remark("%s transactions", done[1])
	return balanced(g, k.transactions)
}

// balanced: as many rows in the history as there were transactions, the same sum of all
// balances in the three tables as of what the history says was moved; and the tables and
// their indexes are whole.
func balanced(g *guest, transactions int) error {
	const query = "select a = b and b = t and t = h, n, h from " +
		"(select sum(abalance) a from pgbench_accounts), (select sum(bbalance) b from pgbench_branches), " +
		"(select sum(tbalance) t from pgbench_tellers), (select sum(delta) h, count(*) n from pgbench_history)"
	out, err := asPostgres(g, `until pg_isready -q; do sleep 0.5; done; psql --quiet --tuples-only --no-align --command "`+query+`" bench`)
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("t|%d|", transactions); !strings.HasPrefix(out, want) {
		return fmt.Errorf("the balances and the history do not agree: %q; it was to begin with %q", out, want)
	}
	_, err = asPostgres(g, "pg_amcheck --install-missing --heapallindexed bench")
	return err
}

// stressors are those of stress-ng's that check what they compute, or what they are given.
const stressors = "cpu,vm,matrix,matrix-3d,fp,trig,vecmath,bitops,intmath,factor,prime,hash,crypt,str,wcs,qsort,mergesort,bsearch,hsearch,tsearch," +
	"memcpy,atomic,misaligned,mmap,mremap,malloc,stack,fault,fork,switch,futex,sem,mutex,pipe,sock,timer,sigsegv,sigfpe,signal,zlib"

// stress runs them one after the other. Those that stress-ng skips are skips of this run.
func stress(g *guest, seconds int) error {
	each := max(1, seconds/20)
	out, err := g.shell("cd /var/tmp && stress-ng --sequential 1 --with %s --timeout %ds --vm-bytes 64M --verify --no-rand-seed --metrics-brief 2>&1 | tail -n 1000; exit ${PIPESTATUS[0]}", stressors, each)
	if err != nil {
		return err
	}
	if bad := regexp.MustCompile(`(?m)^.*(fail:|failed: [1-9]|untrustworthy: [1-9]).*$`).FindString(out); bad != "" {
		return fmt.Errorf("stress-ng: %s", bad)
	}
	names := strings.Split(stressors, ",")
	skips, err := stressed(out, names)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(skips)) {
		g.r.skip("stress-ng "+name, skips[name])
	}
	g.remark("%d of %d stressors, %d s each", len(names)-len(skips), len(names), each)
	return nil
}

// stressedLine is how stress-ng says which stressors, and how many of each, have passed.
var stressedLine = regexp.MustCompile(`(?m) passed: \d+:(( \S+ \(\d+\))+)`)

// stressed reads what stress-ng says it has done of what was asked: each of the names has
// passed, or it is returned with the reason why it was skipped; else that is an error.
func stressed(out string, names []string) (skips map[string]string, err error) {
	m := stressedLine.FindStringSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("stress-ng does not say what has passed: %s", out)
	}
	passed := strings.Fields(m[1])
	skips = map[string]string{}
	for _, name := range names {
		if slices.Contains(passed, name) {
			continue
		}
		why := regexp.MustCompile(`(?mi)^stress-ng: \w+: +\[\d+\] (` + name + `:? .*(?:skip|not implemented|not supported).*|disabled '` + name + `'.*)$`).FindStringSubmatch(out)
		if why == nil {
			return nil, fmt.Errorf("stress-ng says neither that %s has passed nor why not: %s", name, out)
		}
		skips[name] = strings.TrimSpace(why[1])
	}
	return skips, nil
}

// fioArgs are the same when fio writes and when it reads what it wrote before a restart.
const fioArgs = "fio --name=kept --filename=/dev/vdb --offset=128m --size=64m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=32 --direct=1 --randseed=7 --verify=crc32c --verify_fatal=1"

// fio writes and reads back: the second disk in pieces of many sizes and with discards, a
// file with flushes, and what a restart must leave.
func (k *kept) fio(g *guest, seconds int) error {
	for _, command := range []string{
		fmt.Sprintf("for seed in $(seq %d); do fio --name=mixed --filename=/dev/vdb --size=128m --rw=randrw --bsrange=512-128k --blockalign=512 --ioengine=libaio --iodepth=16 --direct=1 --randseed=$seed --verify=crc32c --verify_fatal=1 --verify_backlog=64 || exit 1; done", max(1, seconds/20)),
		"fio --name=file --filename=/var/tmp/fio --size=32m --rw=randwrite --bs=4k --fsync=32 --ioengine=psync --verify=sha1 --verify_fatal=1 && rm /var/tmp/fio",
		fioArgs,
		"blkdiscard --offset 16M --length 32M /dev/vdb && sync && echo 3 >/proc/sys/vm/drop_caches && cmp --bytes 33554432 --ignore-initial 16777216:0 /dev/vdb /dev/zero",
	} {
		if _, err := g.shell("( %s ) 2>&1 | tail -n 40; exit ${PIPESTATUS[0]}", command); err != nil {
			return err
		}
	}
	k.fioWrote = true
	return nil
}

// fioReads verifies what fio wrote before.
func fioReads(g *guest) error {
	_, err := g.shell("%s --verify_only", fioArgs)
	return err
}
