package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A redisLoad is what clients ask of Redis.
type redisLoad struct {
	clients  int
	commands int // of each, at least
	keys     int // of each
	pipeline int // commands that are under way at once, at most
	bytesMax int // of a value
}

// shortLoad is CI's.
var shortLoad = redisLoad{clients: 4, commands: 2500, keys: 200, pipeline: 32, bytesMax: 16 << 10}

// answerPatience bounds what one answer may take, or those to one batch of commands: what does
// not answer then has lost them.
const answerPatience = 5 * time.Minute

// openRedis lets this host use the guest's Redis, which listens on loopback as packaged.
func openRedis(g *guest) error {
	_, err := g.shell(`until redis-cli ping 2>/dev/null | grep -q PONG; do sleep 0.2; done
		until grep -q 10.0.2.15 /proc/net/fib_trie; do sleep 0.2; done
		redis-cli config set protected-mode no && redis-cli config set bind 0.0.0.0`)
	return err
}

// redisChecked has clients on this host set, change and read values of random bytes and
// sizes, many commands at once, and compares each answer with what a map says. It returns the
// clients, who know what Redis holds.
func redisChecked(g *guest, forward int, l redisLoad) ([]*redisClient, error) {
	if err := openRedis(g); err != nil {
		return nil, err
	}
	if err := g.says("OK", "redis-cli flushall"); err != nil {
		return nil, err
	}
	clients, err := eachClient(l.clients, func(i int) (*redisClient, error) {
		c := newRedisClient(uint64(i), l)
		return c, c.with(g.r.ctx, g.forwards[forward], c.work)
	})
	if err != nil {
		return nil, err
	}
	keys, commands, carried := 0, 0, 0
	for _, c := range clients {
		keys, commands, carried = keys+len(c.is), commands+c.answers, carried+c.bytes
	}
	g.remark("%d answers and %d MB checked", commands, carried/1e6)
	return clients, g.says(strconv.Itoa(keys), "redis-cli --raw dbsize")
}

// eachClient runs clients at the same time.
func eachClient(n int, do func(i int) (*redisClient, error)) ([]*redisClient, error) {
	all, errs := make([]*redisClient, n), make([]error, n)
	var wait sync.WaitGroup
	for i := range n {
		wait.Go(func() { all[i], errs[i] = do(i) })
	}
	wait.Wait()
	return all, errors.Join(errs...)
}

// redisClient is one client, whose keys are its own, and what they hold.
type redisClient struct {
	load    redisLoad
	name    string
	rand    *rand.Rand
	chacha  *rand.ChaCha8 // the values' bytes
	is      map[string][]byte
	answers int
	bytes   int // of values that were checked
}

func newRedisClient(seed uint64, l redisLoad) *redisClient {
	var key [32]byte
	key[0] = byte(seed)
	return &redisClient{load: l, name: fmt.Sprintf("c%d", seed), rand: rand.New(rand.NewPCG(seed, 1)), chacha: rand.NewChaCha8(key), is: map[string][]byte{}}
}

// with connects, and does something with the connection.
func (c *redisClient) with(ctx context.Context, at string, do func(net.Conn) error) (err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // so that nothing waits any more
	return do(conn)
}

// work does the load, and reads everything once more at its end.
func (c *redisClient) work(conn net.Conn) error {
	in := bufio.NewReader(conn)
	for c.answers < c.load.commands {
		var out, want bytes.Buffer
		for range 1 + c.rand.IntN(c.load.pipeline) {
			c.command(&out, &want)
		}
		if err := c.exchange(conn, in, out.Bytes(), want.Bytes()); err != nil {
			return err
		}
	}
	return c.readAll(conn, in)
}

// readAgain is readAll on a new connection.
func (c *redisClient) readAgain(conn net.Conn) error { return c.readAll(conn, bufio.NewReader(conn)) }

// readAll reads all keys.
func (c *redisClient) readAll(conn net.Conn, in *bufio.Reader) error {
	for k := range c.load.keys {
		var out, want bytes.Buffer
		c.get(&out, &want, c.key(k))
		if err := c.exchange(conn, in, out.Bytes(), want.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

func (c *redisClient) key(k int) string { return fmt.Sprintf("%s:%d", c.name, k) }

// command appends a random command and what is to be answered to it.
func (c *redisClient) command(out, want *bytes.Buffer) {
	c.answers++
	key := c.key(c.rand.IntN(c.load.keys))
	switch n := c.rand.IntN(100); {
	case n < 45:
		v := c.value()
		resp(out, "SET", key, string(v))
		want.WriteString("+OK\r\n")
		c.is[key] = v
		c.bytes += len(v)
	case n < 85:
		c.get(out, want, key)
	case n < 92 && len(c.is[key]) < c.load.bytesMax:
		v := c.value()
		c.is[key] = append(c.is[key], v...)
		resp(out, "APPEND", key, string(v))
		fmt.Fprintf(want, ":%d\r\n", len(c.is[key]))
	case n < 96:
		resp(out, "STRLEN", key)
		fmt.Fprintf(want, ":%d\r\n", len(c.is[key]))
	default:
		resp(out, "DEL", key)
		_, there := c.is[key]
		delete(c.is, key)
		fmt.Fprintf(want, ":%d\r\n", map[bool]int{true: 1}[there])
	}
}

func (c *redisClient) get(out, want *bytes.Buffer, key string) {
	resp(out, "GET", key)
	v, there := c.is[key]
	if !there {
		want.WriteString("$-1\r\n")
		return
	}
	fmt.Fprintf(want, "$%d\r\n%s\r\n", len(v), v)
	c.bytes += len(v)
}

// value returns random bytes, as often short as long.
func (c *redisClient) value() []byte {
	v := make([]byte, c.rand.IntN(1<<c.rand.IntN(bitLength(c.load.bytesMax)))+c.rand.IntN(2))
	_, _ = c.chacha.Read(v) // never fails
	return v
}

// bitLength is such that 1 << any number below it is at most n.
func bitLength(n int) (bits int) {
	for ; n > 0; n >>= 1 {
		bits++
	}
	return bits
}

// resp appends a command in the form of Redis' protocol.
func resp(out *bytes.Buffer, words ...string) {
	fmt.Fprintf(out, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(out, "$%d\r\n%s\r\n", len(w), w)
	}
}

// exchange sends commands, and reads and compares the answers meanwhile.
func (c *redisClient) exchange(conn net.Conn, in *bufio.Reader, out, want []byte) error {
	if err := conn.SetDeadline(time.Now().Add(answerPatience)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(out)
		sent <- err
	}()
	got := make([]byte, len(want))
	n, err := io.ReadFull(in, got)
	if at := differ(got[:n], want[:n]); at < n {
		return fmt.Errorf("redis answers %q, not %q, at byte %d of the answers to %.200q", near(got[:n], at), near(want, at), at, out)
	}
	if err != nil {
		return fmt.Errorf("%d bytes of %d bytes of answers came: %w", n, len(want), err)
	}
	return <-sent
}

// differ returns where a and b, of one length, differ first, or that length.
func differ(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// near is a piece of b around an offset.
func near(b []byte, at int) []byte { return b[max(0, at-20):min(len(b), at+40)] }

// benchmarkTests are what redis-benchmark runs, and benchmarkLine how it says that it did.
const benchmarkTests = "set,get,incr,lpush,rpop,sadd,hset,zadd,mset"

var benchmarkLine = regexp.MustCompile(`([A-Z]+)[^:\r\n]*: ([0-9.]+) requests per second`)

// redisBenchmark runs redis-benchmark in the guest, each test with so many requests.
func redisBenchmark(g *guest, requests int) error {
	out, err := g.shell("until redis-cli ping 2>/dev/null | grep -q PONG; do sleep 0.2; done; redis-benchmark -q -n %d -c 20 -P 16 -r 1000 -d 64 -t %s", requests, benchmarkTests)
	if err != nil {
		return err
	}
	rates := map[string]string{}
	for _, m := range benchmarkLine.FindAllStringSubmatch(out, -1) {
		rates[m[1]] = m[2]
	}
	for test := range strings.SplitSeq(benchmarkTests, ",") {
		if rates[strings.ToUpper(test)] == "" {
			return fmt.Errorf("redis-benchmark does not say how fast %s is: %s", test, out)
		}
	}
	if strings.Contains(out, "rror") {
		return fmt.Errorf("redis-benchmark: %s", out)
	}
	g.remark("SET %s, GET %s a second, 16 at once", rates["SET"], rates["GET"])
	return nil
}
