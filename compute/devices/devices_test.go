package devices

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"steadfast/compute/device"
	"steadfast/fault"
)

// board is a machine for one device.
type board struct {
	outs      []device.Output
	level     bool
	now, wall uint64
}

func (b *board) Emit(out device.Output) { b.outs = append(b.outs, out) }
func (b *board) Interrupt(up bool)      { b.level = up }
func (b *board) Now() uint64            { return b.now }
func (b *board) Wall() uint64           { return b.wall }

func (b *board) sent() string {
	var s strings.Builder
	for _, out := range b.outs {
		s.Write(out.Data)
	}
	b.outs = nil
	return s.String()
}

func saved(d device.Device) []byte {
	var e device.Encoder
	d.Save(&e)
	return e.Bytes()
}

// move restores from's state into to, and checks that nothing was lost.
func move(t *testing.T, from, to device.Device) {
	t.Helper()
	was := saved(from)
	d := device.NewDecoder(was)
	if err := to.Restore(d); err != nil || d.Left() != 0 {
		t.Fatalf("%v, %d bytes left", err, d.Left())
	}
	if diff := cmp.Diff(was, saved(to)); diff != "" {
		t.Fatal(diff)
	}
	for n := range was {
		if err := to.Restore(device.NewDecoder(was[:n])); fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
	}
	other := append([]byte{was[0] + 1}, was[1:]...)
	if err := to.Restore(device.NewDecoder(other)); fault.KindOf(err) != fault.Invalid {
		t.Fatalf("another version: %v", err)
	}
	if err := to.Restore(device.NewDecoder(was)); err != nil {
		t.Fatal(err)
	}
}

func newUART() (*UART, *board) {
	b := &board{}
	return NewUART(b), b
}

func out(u *UART, reg uint64, v uint8) { u.Store(reg, 1, uint64(v)) }
func in(u *UART, reg uint64) uint8     { return uint8(u.Load(reg, 1)) }
func line(u *UART, p string)           { u.Deliver(&device.Input{Kind: UARTData, Data: []byte(p)}) }

func wantIIR(t *testing.T, u *UART, v uint8) {
	t.Helper()
	if got := in(u, uartIIR); got != v {
		t.Errorf("IIR is %#x, not %#x", got, v)
	}
}

// What serial8250_do_startup does to find out about the transmitter's interrupt:
// each time it is enabled it must come, or the driver takes the port for a broken one.
func TestUARTStartup(t *testing.T) {
	u, b := newUART()
	for _, v := range []uint8{fcrEnable, fcrEnable | fcrClearReceive | 4, 0} {
		out(u, uartIIR, v)
	}
	if v := in(u, uartLSR); v == 0xff || v&(lsrEmpty|lsrIdle) != lsrEmpty|lsrIdle {
		t.Errorf("LSR is %#x", v)
	}
	in(u, uartData)
	wantIIR(t, u, iirNone)
	if v := in(u, uartMSR); v != msrOnline {
		t.Errorf("MSR is %#x", v)
	}
	for range 2 {
		out(u, uartIER, ierEmpty)
		if !b.level {
			t.Error("no interrupt for an empty transmitter")
		}
		wantIIR(t, u, iirEmpty)
		if b.level {
			t.Error("the interrupt stays after it was told")
		}
		wantIIR(t, u, iirNone)
		out(u, uartIER, 0)
	}
	out(u, uartIER, ierEmpty)
	out(u, uartIER, 0)
	if b.level {
		t.Error("an interrupt that is not enabled")
	}
}

// What autoconfig tests: the registers that hold what is written, and the loopback.
func TestUARTRegisters(t *testing.T) {
	u, _ := newUART()
	out(u, uartIER, 0xff)
	out(u, uartMCR, 0xff)
	out(u, uartScratch, 0x5a)
	if a, b, c := in(u, uartIER), in(u, uartMCR), in(u, uartScratch); a != 0x0f || b != 0x1f || c != 0x5a {
		t.Errorf("IER %#x, MCR %#x, scratch %#x", a, b, c)
	}
	out(u, uartMCR, mcrLoop|0x0a) // RTS and OUT2
	if v := in(u, uartMSR); v&0xf0 != 0x90 {
		t.Errorf("MSR in loopback is %#x, not CTS and DCD", v)
	}
	out(u, uartData, 'x')
	if in(u, uartLSR)&lsrReady == 0 || in(u, uartData) != 'x' {
		t.Error("loopback does not loop back")
	}
	out(u, uartMCR, 0)
	out(u, uartLCR, lcrDLAB|3)
	out(u, uartData, 0x34)
	out(u, uartIER, 0x12)
	if a, b := in(u, uartData), in(u, uartIER); a != 0x34 || b != 0x12 {
		t.Errorf("the divisor is %#x%02x", b, a)
	}
	out(u, uartLCR, 3)
	if in(u, uartLCR) != 3 || in(u, uartIER) != 0x0f {
		t.Error("the divisor latch is in the way")
	}
	out(u, uartIIR, fcrEnable)
	if v := in(u, uartIIR); v&iirFIFO != iirFIFO {
		t.Errorf("IIR is %#x: no FIFO", v)
	}
	if u.Load(8, 1) != 0 {
		t.Error("there is a register 8")
	}
}

// The modem's lines change only in loopback, and say so once.
func TestUARTModem(t *testing.T) {
	u, b := newUART()
	out(u, uartIER, ierModem)
	out(u, uartMCR, mcrLoop|4) // CTS, DSR and DCD go, RI comes
	if !b.level {
		t.Error("no interrupt")
	}
	wantIIR(t, u, iirModem)
	if v := in(u, uartMSR); v != 0x40|0x0b {
		t.Errorf("MSR is %#x", v)
	}
	wantIIR(t, u, iirNone)
	out(u, uartMCR, 0)
	if v := in(u, uartMSR); v != msrOnline|0x0f {
		t.Errorf("MSR is %#x", v)
	}
}

// A driver that sends by interrupt, 16 bytes each.
func TestUARTTransmit(t *testing.T) {
	u, b := newUART()
	out(u, uartIIR, fcrEnable)
	text := strings.Repeat("the quick brown fox ", 20)
	left := text
	out(u, uartIER, ierEmpty)
	for b.level && left != "" {
		wantIIR(t, u, iirEmpty|iirFIFO)
		n := min(16, len(left))
		for _, c := range []byte(left[:n]) {
			out(u, uartData, c)
		}
		left = left[n:]
	}
	if got := b.sent(); got != text {
		t.Errorf("it sent %q", got)
	}
}

// The receiver's interrupts by what is there and the trigger level; what is beyond
// the FIFO waits, and nothing is lost.
func TestUARTReceive(t *testing.T) {
	for _, c := range []struct {
		fcr  uint8
		n    int
		want uint8
	}{
		{0, 1, iirReceived},
		{fcrEnable, 1, iirFIFO | iirReceived},
		{fcrEnable | 0x40, 3, iirFIFO | iirTimeout},
		{fcrEnable | 0x40, 4, iirFIFO | iirReceived},
		{fcrEnable | 0x80, 7, iirFIFO | iirTimeout},
		{fcrEnable | 0x80, 8, iirFIFO | iirReceived},
		{fcrEnable | 0xc0, 13, iirFIFO | iirTimeout},
		{fcrEnable | 0xc0, 14, iirFIFO | iirReceived},
	} {
		u, b := newUART()
		out(u, uartIIR, c.fcr)
		line(u, strings.Repeat("x", c.n))
		if b.level {
			t.Error("an interrupt that is not enabled")
		}
		out(u, uartIER, ierReceived|ierEmpty)
		if !b.level {
			t.Errorf("FCR %#x, %d bytes: no interrupt", c.fcr, c.n)
		}
		wantIIR(t, u, c.want)
		for range c.n {
			in(u, uartData)
		}
		wantIIR(t, u, c.want&iirFIFO|iirEmpty)
	}
}

func TestUARTHeld(t *testing.T) {
	u, b := newUART()
	out(u, uartIIR, fcrEnable|0x80)
	out(u, uartIER, ierReceived)
	text := strings.Repeat("0123456789abcdef", 100)
	line(u, text)
	to := NewUART(b)
	move(t, u, to)
	u = to
	var got []byte
	for b.level {
		if in(u, uartIIR)&0x0f&^8 != iirReceived {
			t.Fatal("an interrupt for something else")
		}
		for n := 0; n < 5 && in(u, uartLSR)&lsrReady != 0; n++ {
			got = append(got, in(u, uartData))
		}
	}
	if string(got) != text {
		t.Errorf("%d of %d bytes came, or others", len(got), len(text))
	}
	line(u, strings.Repeat("y", UARTHeldMax+3))
	if u.Room() != 0 || u.Dropped() != 3 {
		t.Errorf("room for %d, dropped %d", u.Room(), u.Dropped())
	}
	out(u, uartIIR, fcrEnable|fcrClearReceive)
	if u.Room() != uartFIFO {
		t.Errorf("clearing the FIFO made room for %d", u.Room())
	}
	out(u, uartIIR, fcrEnable)
	if u.Room() != uartFIFO {
		t.Error("the same mode again clears something")
	}
}

func newRTC() (*RTC, *board) {
	b := &board{now: 1000, wall: 1_700_000_000_123_456_789}
	return NewRTC(b), b
}

func set(r *RTC, reg uint64, v uint64) { r.Store(reg, 4, v) }

func readTime(r *RTC) uint64 {
	low := r.Load(rtcTimeLow, 4)
	return r.Load(rtcTimeHigh, 4)<<32 | low
}

func TestRTCTime(t *testing.T) {
	r, b := newRTC()
	if got := readTime(r); got != b.wall {
		t.Errorf("it is %d", got)
	}
	b.wall = 1<<32 - 1
	low := r.Load(rtcTimeLow, 4)
	b.wall++ // between the halves
	if got := r.Load(rtcTimeHigh, 4)<<32 | low; got != 1<<32-1 {
		t.Errorf("the halves are of two times: %#x", got)
	}
	const when = 1_600_000_000_000_000_000
	set(r, rtcTimeHigh, when>>32)
	set(r, rtcTimeLow, when&0xffff_ffff)
	b.wall += 77
	if got := readTime(r); got != when+77 {
		t.Errorf("it was set to %d", got)
	}
	if r.Load(rtcTimeLow, 8) != 0 || r.Load(0x20, 4) != 0 {
		t.Error("there are registers that are not there")
	}
}

// What rtc-goldfish.c does: set the alarm, be interrupted, clear that.
func TestRTCAlarm(t *testing.T) {
	r, b := newRTC()
	if _, ok := r.Deadline(); ok {
		t.Error("a deadline without an alarm")
	}
	alarm := func(at uint64) {
		set(r, rtcAlarmHigh, at>>32)
		set(r, rtcAlarmLow, at&0xffff_ffff)
		set(r, rtcEnabled, 1)
	}
	alarm(b.wall + 500)
	if at, ok := r.Deadline(); !ok || at != 1500 || r.Load(rtcAlarmStatus, 4) != 1 {
		t.Errorf("the deadline is %d, %v", at, ok)
	}
	to := NewRTC(b)
	move(t, r, to)
	r = to
	b.now, b.wall = 1499, b.wall+499
	if r.Fire(b.now); b.level {
		t.Error("too early")
	}
	b.now, b.wall = 1500, b.wall+1
	if r.Fire(b.now); !b.level || r.Load(rtcAlarmStatus, 4) != 0 {
		t.Error("no alarm")
	}
	if _, ok := r.Deadline(); ok {
		t.Error("a deadline after the alarm")
	}
	set(r, rtcClearInterrupt, 1)
	if b.level {
		t.Error("the line stays up")
	}
	if alarm(b.wall - 1); !b.level {
		t.Error("an alarm in the past does not come at once")
	}
	set(r, rtcEnabled, 0)
	if b.level {
		t.Error("an interrupt that is not enabled")
	}
	set(r, rtcClearInterrupt, 1)
	alarm(b.wall + 10)
	b.wall += 20 // the wall clock was set
	if at, ok := r.Deadline(); !ok || at != b.now {
		t.Errorf("the deadline is %d, %v", at, ok)
	}
	set(r, rtcClearAlarm, 1)
	if r.Fire(b.now); b.level {
		t.Error("an alarm that was cleared")
	}
	alarm(^uint64(0))
	b.now = ^uint64(0) - 5
	if _, ok := r.Deadline(); ok {
		t.Error("a deadline after the end of time")
	}
}

// FuzzDevices has bytes drive both: no panic, no more held than may be, and the same
// after a move.
func FuzzDevices(f *testing.F) {
	f.Add([]byte{2, 1, 1, 3, 0, 65, 200, 0, 0, 9, 1, 0, 200, 255, 255})
	f.Fuzz(func(t *testing.T, p []byte) {
		ub, rb := &board{}, &board{}
		u, r := NewUART(ub), NewRTC(rb)
		for ; len(p) >= 3; p = p[3:] {
			switch reg, v := uint64(p[0]&0x1f), uint64(p[1])|uint64(p[2])<<24; {
			case p[0] >= 240:
				to, clock := NewUART(ub), NewRTC(rb)
				for _, m := range [][2]device.Device{{u, to}, {r, clock}} {
					was := saved(m[0])
					if err := m[1].Restore(device.NewDecoder(was)); err != nil || !bytes.Equal(was, saved(m[1])) {
						t.Fatal(err)
					}
				}
				u, r = to, clock
			case p[0] >= 200:
				u.Deliver(&device.Input{Kind: UARTData, Data: make([]byte, 64*int(p[1]))})
				rb.now, rb.wall = rb.now+v, rb.wall+v
				r.Fire(rb.now)
			case p[0]&0x80 != 0:
				u.Store(reg, 1, v)
				r.Store(reg&^3, 4, v)
			default:
				u.Load(reg, 1)
				r.Load(reg&^3, 4)
			}
			if u.Room() < 0 || ub.level != (u.pending() != iirNone) || rb.level != (r.due && r.enabled) {
				t.Fatal("too much is held, or a line is wrong")
			}
		}
	})
}
