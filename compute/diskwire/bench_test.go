package diskwire

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/block"
	"steadfast/compute/filedisk"
)

// plain is memory as a disk, with nothing around it.
type plain struct {
	block.Device
	b []byte
}

func (d plain) ReadAt(p []byte, off int64) error                 { copy(p, d.b[off:]); return nil }
func (d plain) WriteAt(p []byte, off int64, _ block.Flags) error { copy(d.b[off:], p); return nil }
func (d plain) Flush() error                                     { return nil }
func (d plain) Size() int64                                      { return int64(len(d.b)) }

// benchBytes is the size of the benchmarks' disks.
const benchBytes = 64 << 20

// kind is what a benchmark asks for.
type kind struct {
	write bool
	size  int
	depth int
}

func (k kind) String() string {
	name := map[bool]string{false: "read", true: "write"}[k.write]
	return fmt.Sprintf("%s-%dk-qd%d", name, k.size>>10, k.depth)
}

var kinds = []kind{{false, 4 << 10, 1}, {false, 4 << 10, 32}, {true, 4 << 10, 32}, {false, 1 << 20, 4}, {true, 1 << 20, 4}}

// drive asks a device n times, so many at once.
func drive(d block.Device, k kind, n int64) error {
	var left atomic.Int64
	left.Store(n)
	var all sync.WaitGroup
	failed := make(chan error, k.depth)
	for range k.depth {
		all.Go(func() {
			p := make([]byte, k.size)
			for i := left.Add(-1); i >= 0; i = left.Add(-1) {
				off := i * 7919 % (benchBytes / int64(k.size)) * int64(k.size)
				var err error
				if k.write {
					err = d.WriteAt(p, off, 0)
				} else {
					err = d.ReadAt(p, off)
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(failed)
	return <-failed
}

// cpu is what this process has used.
func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// load is a process that has a disk of another's, and asks it: write size depth n.
func load(args []string) {
	var v [4]int
	for i := range v {
		v[i], _ = strconv.Atoi(args[i]) // it is the test's own
	}
	_ = unix.SetNonblock(3, true) // it is, or else it waits with a thread
	c, err := Open(os.NewFile(3, "socket"), os.NewFile(4, "memory"))
	if err == nil {
		k := kind{v[0] != 0, v[1], v[2]}
		if err = drive(c, k, 1000); err == nil {
			began, used := time.Now(), cpu()
			err = drive(c, k, int64(v[3]))
			fmt.Println(time.Since(began).Nanoseconds(), (cpu() - used).Nanoseconds())
		}
	}
	if err != nil {
		fmt.Println(err)
	}
}

func report(b *testing.B, k kind, took, used time.Duration) {
	b.ReportMetric(float64(b.N)/took.Seconds(), "IOPS")
	b.ReportMetric(float64(b.N)*float64(k.size)/1e6/took.Seconds(), "MB/s")
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N)/1e3, "cpu-us/op")
}

// BenchmarkDirect is what a device does without a process between: memory, and a file.
func BenchmarkDirect(b *testing.B) {
	name := filepath.Join(b.TempDir(), "disk")
	must(b, os.WriteFile(name, make([]byte, benchBytes), 0o600))
	file, err := filedisk.Open(name, false)
	must(b, err)
	defer file.Close()
	for what, d := range map[string]block.Device{"ram": plain{b: make([]byte, benchBytes)}, "file": file} {
		for _, k := range kinds {
			b.Run(what+"/"+k.String(), func(b *testing.B) {
				began, used := time.Now(), cpu()
				must(b, drive(d, k, int64(b.N)))
				report(b, k, time.Since(began), cpu()-used)
			})
		}
	}
}

// BenchmarkProcesses is what it does for another process. The CPU is that of both.
func BenchmarkProcesses(b *testing.B) {
	for _, k := range kinds {
		b.Run(k.String(), func(b *testing.B) {
			s, err := NewServer(plain{b: make([]byte, benchBytes)}, Options{})
			must(b, err)
			served := make(chan error, 1)
			go func() { served <- s.Serve(context.Background()) }()
			write := 0
			if k.write {
				write = 1
			}
			cmd := exec.Command("/proc/self/exe", "load", fmt.Sprint(write), fmt.Sprint(k.size), fmt.Sprint(k.depth), fmt.Sprint(b.N))
			socket, memory := s.Theirs()
			cmd.ExtraFiles = []*os.File{socket, memory}
			cmd.Stderr = os.Stderr
			used := cpu()
			out, err := cmd.Output()
			must(b, err)
			used = cpu() - used
			must(b, s.Given())
			must(b, <-served)
			var took, theirs time.Duration
			if _, err := fmt.Sscan(string(out), &took, &theirs); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			report(b, k, took, used+theirs)
		})
	}
}

// BenchmarkOneProcess is both sides in one, for its profile and its allocations.
func BenchmarkOneProcess(b *testing.B) {
	for _, k := range kinds {
		b.Run(k.String(), func(b *testing.B) {
			c := serve(b, plain{b: make([]byte, benchBytes)}, Options{}).client
			must(b, drive(c, k, 1000))
			b.ReportAllocs()
			b.ResetTimer()
			began, used := time.Now(), cpu()
			must(b, drive(c, k, int64(b.N)))
			report(b, k, time.Since(began), cpu()-used)
		})
	}
}

// TestAllocates: a request allocates nothing once everything has been used.
func TestAllocates(t *testing.T) {
	c := serve(t, plain{b: make([]byte, benchBytes)}, Options{}).client
	p := make([]byte, 4096)
	most := 0.5
	if racing {
		most = 10 // its pools forget on purpose
	}
	n := testing.AllocsPerRun(2000, func() {
		if c.WriteAt(p, 8192, 0) != nil || c.ReadAt(p, 4096) != nil || c.Flush() != nil {
			t.Error("it fails")
		}
	})
	if n > most {
		t.Errorf("%v allocations by three requests", n)
	}
}
