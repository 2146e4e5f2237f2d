// Command guestload is what the bench runs inside a guest, whoever emulates it:
//
//	guestload disk FILE read|write sequential|random BYTES SECONDS
//	guestload net PORT
//	guestload memory BYTES
//
// disk does I/O of so many bytes, past the guest's page cache, one at a time, and
// prints "load-begin" and "load-end OPERATIONS": the bench has its own clock. net serves
// connections: one that begins with 's' is sent to until it is closed, and one with
// 'k' is read to its end, and answered with the number of its bytes, eight of them, big
// endian. memory touches so many bytes and holds them until its standard input ends.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("load-failed", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("disk FILE read|write sequential|random BYTES SECONDS, net PORT, or memory BYTES")

func run(args []string) error {
	switch {
	case len(args) == 6 && args[0] == "disk":
		size, err1 := strconv.Atoi(args[4])
		seconds, err2 := strconv.ParseFloat(args[5], 64)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		return disk(args[1], args[2] == "write", args[3] == "random", size, time.Duration(seconds*float64(time.Second)))
	case len(args) == 2 && args[0] == "net":
		return serve(args[1])
	case len(args) == 2 && args[0] == "memory":
		size, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return touch(size)
	}
	return errUsage
}

// aligned returns memory as O_DIRECT wants it, with bytes that do not compress.
func aligned(size int) ([]byte, error) {
	b, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	for at := 0; at+8 <= len(b); at += 8 {
		binary.LittleEndian.PutUint64(b[at:], rand.Uint64())
	}
	return b, err
}

func disk(name string, write, random bool, size int, long time.Duration) error {
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return err
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	blocks := end / int64(size)
	b, err := aligned(size)
	if err != nil {
		return err
	}
	fmt.Println("load-begin")
	n := int64(0)
	for began := time.Now(); time.Since(began) < long; n++ {
		at := n % blocks
		if random {
			at = rand.Int64N(blocks)
		}
		if write {
			_, err = f.WriteAt(b, at*int64(size))
		} else {
			_, err = f.ReadAt(b, at*int64(size))
		}
		if err != nil {
			return err
		}
	}
	fmt.Println("load-end", n)
	return f.Close()
}

func serve(port string) error {
	l, err := net.Listen("tcp4", ":"+port)
	if err != nil {
		return err
	}
	fmt.Println("load-listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			talk(c)
			_ = c.Close() // it has said all
		}()
	}
}

// talk does what a connection asks for. That it ends, however, is in the order of things.
func talk(c net.Conn) {
	b := make([]byte, 256<<10)
	if _, err := io.ReadFull(c, b[:1]); err != nil {
		return
	}
	if b[0] == 's' {
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
	// Without the shortcuts of io.Copy, which would bring a buffer of its own.
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, b)
	if err == nil {
		_, _ = c.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
	}
}

func touch(size int) error {
	b := make([]byte, size)
	for at := 0; at < len(b); at += 4096 {
		b[at] = 1
	}
	fmt.Println("load-touched")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
