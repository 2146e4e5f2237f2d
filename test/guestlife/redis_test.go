package main

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
)

// fakeRedis answers commands; wrong, if it is not nil, changes an answer.
func fakeRedis(t *testing.T, conn net.Conn, wrong func(command string, answer []byte) []byte) {
	t.Helper()
	is := map[string]string{}
	in := bufio.NewReader(conn)
	for {
		words, err := readCommand(in)
		if err != nil {
			return
		}
		var out bytes.Buffer
		v, there := is[words[1]]
		switch words[0] {
		case "SET":
			is[words[1]] = words[2]
			out.WriteString("+OK\r\n")
		case "GET":
			if !there {
				out.WriteString("$-1\r\n")
			} else {
				out.WriteString("$" + strconv.Itoa(len(v)) + "\r\n" + v + "\r\n")
			}
		case "APPEND":
			is[words[1]] += words[2]
			out.WriteString(":" + strconv.Itoa(len(is[words[1]])) + "\r\n")
		case "STRLEN":
			out.WriteString(":" + strconv.Itoa(len(v)) + "\r\n")
		case "DEL":
			delete(is, words[1])
			out.WriteString(":" + map[bool]string{true: "1", false: "0"}[there] + "\r\n")
		}
		answer := out.Bytes()
		if wrong != nil {
			answer = wrong(words[0], answer)
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

func readCommand(in *bufio.Reader) ([]string, error) {
	number := func() (int, error) {
		line, err := in.ReadString('\n')
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(line[1:]))
	}
	n, err := number()
	var words []string
	for range n {
		size, e := number()
		if e != nil {
			return nil, e
		}
		b := make([]byte, size+2)
		if _, e := io.ReadFull(in, b); e != nil {
			return nil, e
		}
		words = append(words, string(b[:size]))
	}
	return words, err
}

// TestJudge: a server that answers rightly passes, and one wrong byte in any kind of answer
// is noticed.
func TestJudge(t *testing.T) {
	load := redisLoad{clients: 1, commands: 2000, keys: 20, pipeline: 16, bytesMax: 1 << 10}
	judged := func(wrong func(string, []byte) []byte) error {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			fakeRedis(t, theirs, wrong)
		}()
		err := newRedisClient(3, load).work(ours)
		_ = ours.Close()
		<-done
		return err
	}
	if err := judged(nil); err != nil {
		t.Error(err)
	}
	for _, kind := range []string{"SET", "GET", "APPEND", "STRLEN", "DEL"} {
		n := 0
		err := judged(func(command string, answer []byte) []byte {
			if command == kind {
				if n++; n == 50 {
					answer[len(answer)-3] ^= 1
				}
			}
			return answer
		})
		if err == nil || !strings.Contains(err.Error(), "redis answers") {
			t.Errorf("a wrong byte in the answer to %s: %v", kind, err)
		}
	}
}

// TestBenchmarkLine: the form in which redis-benchmark tells what it has done.
func TestBenchmarkLine(t *testing.T) {
	const said = "SET: rps=0.0 (overall: 0.0)\rSET: 4347.83 requests per second, p50=1.9 msec\r\nMSET (10 keys): 12.50 requests per second\n"
	all := benchmarkLine.FindAllStringSubmatch(said, -1)
	if len(all) != 2 || all[0][1] != "SET" || all[0][2] != "4347.83" || all[1][1] != "MSET" || all[1][2] != "12.50" {
		t.Errorf("%q", all)
	}
}
