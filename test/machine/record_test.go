package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// TestUseRedis: a server that is not up yet is asked again, and one that answers with what
// was not set is a mistake of the machine's at once.
func TestUseRedis(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(connection, i int) string
		asked  int
		wrong  bool
	}{
		{"right", func(_, i int) string { return fmt.Sprint("v", i*i) }, 1, false},
		{"not up yet", func(connection, i int) string {
			if connection == 0 {
				return ""
			}
			return fmt.Sprint("v", i*i)
		}, 2, false},
		{"wrong", func(_, i int) string { return fmt.Sprint("v", i*i+i/2) }, 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			asked := make(chan int)
			go func() {
				n := 0
				for ; ; n++ {
					conn, err := l.Accept()
					if err != nil {
						break
					}
					serveRedis(conn, func(i int) string { return c.answer(n, i) })
				}
				asked <- n
			}()
			done := make(chan error, 1)
			go func() { done <- useRedis(t.Context(), l.Addr().String(), 5) }()
			select {
			case err = <-done:
			case <-time.After(20 * time.Second):
				t.Error("it is asked again and again")
			}
			_ = l.Close()
			if n := <-asked; errors.Is(err, errWrong) != c.wrong || (err != nil) != c.wrong || n != c.asked {
				t.Errorf("%d connections, %v", n, err)
			}
		})
	}
}

// serveRedis answers the i-th GET with a value, and hangs up where there is none.
func serveRedis(conn net.Conn, value func(i int) string) {
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	for i := 0; ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if strings.HasPrefix(line, "SET") {
			_, _ = conn.Write([]byte("+OK\r\n"))
			continue
		}
		v := value(i)
		if v == "" {
			return
		}
		_, _ = fmt.Fprintf(conn, "$%d\r\n%s\r\n", len(v), v)
		i++
	}
}
