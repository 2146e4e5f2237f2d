package target

import (
	"bufio"
	"log/slog"
	"net"
	"syscall"
	"testing"

	"steadfast/iscsi"
	"steadfast/san/target/targettest"
)

// BenchmarkCommands keeps 32 commands of 4 KiB outstanding over loopback:
// reads from memory, and reads and writes that a worker performs. The figure
// cpu-us/op is the processor time of target and initiator together.
func BenchmarkCommands(b *testing.B) {
	for _, bc := range []struct {
		name  string
		write bool
		slow  bool
	}{{"read", false, false}, {"read slow", false, true}, {"write", true, true}} {
		b.Run(bc.name, func(b *testing.B) {
			disk := targettest.NewDisk(64 << 20)
			disk.Slow.Store(bc.slow)
			srv, err := New(Config{Log: slog.New(slog.DiscardHandler)}, disk)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { srv.Close(b.Context()) })
			if err := srv.AddTarget(Target{Name: testTarget, Access: []Access{{Initiator: testInitiator}}}); err != nil {
				b.Fatal(err)
			}
			addr, err := srv.Listen(Portal{Address: "127.0.0.1:0", Group: 1})
			if err != nil {
				b.Fatal(err)
			}
			c, err := targettest.Dial(addr.String())
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			if status, _, err := c.Login(testNames + "ImmediateData=Yes\n"); err != nil || status != 0 {
				b.Fatal(status, err)
			}
			b.ReportAllocs()
			b.SetBytes(4096)
			before := cpuTime(b)
			b.ResetTimer()
			if err := pipeline(c, b.N, bc.write); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			b.ReportMetric(float64(cpuTime(b)-before)/1e3/float64(b.N), "cpu-us/op")
		})
	}
}

// pipeline performs n commands, 32 at a time. It answers a run of responses
// with a run of commands in one write, and allocates nothing for them.
func pipeline(c *targettest.Client, n int, write bool) error {
	in := bufio.NewReaderSize(c.Conn, 256<<10)
	flags, cdb, payload := byte(iscsi.FlagFinal|iscsi.FlagRead), targettest.Read10(0, 8), []byte(nil)
	if write {
		flags, cdb, payload = iscsi.FlagFinal|iscsi.FlagWrite, targettest.Write10(0, 8), pattern(4096, 1)
	}
	var out []byte
	sent, free := 0, 32
	for done := 0; done < n; {
		for ; free > 0 && sent < n; free, sent = free-1, sent+1 {
			h := c.Command(flags, 4096, cdb...)
			h.CDB()[4] = byte(sent) // spread over the disk
			h.SetDataLength(len(payload))
			out = append(append(out, h[:]...), payload...)
		}
		if _, err := c.Conn.Write(out); err != nil {
			return err
		}
		out = out[:0]
		for first := true; done < n && (first || in.Buffered() >= iscsi.HeaderSize); done, free, first = done+1, free+1, false {
			b, err := in.Peek(iscsi.HeaderSize)
			if err != nil {
				return err
			}
			h := iscsi.Header(b)
			if h.SCSIStatus() != 0 || h.Flags()&iscsi.FlagFinal == 0 {
				return net.ErrClosed
			}
			c.StatSN = h.StatSN()
			if _, err := in.Discard(iscsi.HeaderSize + h.DataLength()); err != nil {
				return err
			}
		}
	}
	return nil
}

// cpuTime returns the processor time of the process in nanoseconds.
func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
