package target

import (
	"bytes"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"steadfast/iscsi"
	"steadfast/san/target/targettest"
)

// transfer writes data by the rules negotiated, and reads it back.
type transfer struct {
	c          *targettest.Client
	initialR2T bool
	immediate  bool
	firstBurst int
	maxBurst   int
	segment    int // longest Data-Out, and immediate data, sent
	recv       int // our MaxRecvDataSegmentLength
}

func (x *transfer) write(lba int, data []byte) error {
	c := x.c
	first := min(x.firstBurst, len(data))
	n := 0
	if x.immediate {
		n = min(first, x.segment)
	}
	unsolicited := n
	if !x.initialR2T {
		unsolicited = first
	}
	flags := byte(iscsi.FlagWrite)
	if unsolicited == n {
		flags |= iscsi.FlagFinal
	}
	h := c.Command(flags, len(data), targettest.Write10(lba, len(data)/512)...)
	itt := h.InitiatorTag()
	if err := c.Send(h, nil, data[:n]); err != nil {
		return err
	}
	if unsolicited > n {
		if err := x.sequence(itt, iscsi.NoTag, data, n, unsolicited); err != nil {
			return err
		}
	}
	sent := unsolicited
	for {
		r, _, err := c.Recv()
		if err != nil {
			return err
		}
		switch {
		case r.InitiatorTag() != itt:
			return fmt.Errorf("%v for task %d", r.Opcode(), r.InitiatorTag())
		case r.Opcode() == iscsi.OpR2T:
			off, n := int(r.BufferOffset()), int(r.DesiredLength())
			if off != sent || n == 0 || n > x.maxBurst || off+n > len(data) {
				return fmt.Errorf("R2T for %d at %d, %d sent", n, off, sent)
			}
			if err := x.sequence(itt, r.TargetTag(), data, off, off+n); err != nil {
				return err
			}
			sent += n
		case r.Opcode() == iscsi.OpSCSIResponse:
			if r.SCSIStatus() != 0 || r.Residual() != 0 || sent != len(data) {
				return fmt.Errorf("status %#x residual %d after %d of %d bytes", r.SCSIStatus(), r.Residual(), sent, len(data))
			}
			return nil
		default:
			return fmt.Errorf("unexpected %v", r.Opcode())
		}
	}
}

func (x *transfer) sequence(itt, ttt uint32, data []byte, from, to int) error {
	for sn := uint32(0); from < to; sn++ {
		n := min(x.segment, to-from)
		h := x.c.DataOut(itt, ttt, sn, from, from+n == to)
		if err := x.c.Send(h, nil, data[from:from+n]); err != nil {
			return err
		}
		from += n
	}
	return nil
}

func (x *transfer) read(lba, n int) ([]byte, error) {
	h := x.c.Command(iscsi.FlagFinal|iscsi.FlagRead, n, targettest.Read10(lba, n/512)...)
	if err := x.c.Send(h, nil, nil); err != nil {
		return nil, err
	}
	var got []byte
	burst := 0
	for sn := uint32(0); ; sn++ {
		r, data, err := x.c.Recv()
		if err != nil {
			return nil, err
		}
		burst += len(data)
		if r.Opcode() != iscsi.OpDataIn || r.DataSN() != sn || int(r.BufferOffset()) != len(got) || len(data) > x.recv || burst > x.maxBurst {
			return nil, fmt.Errorf("%v SN %d at %d with %d bytes, burst %d", r.Opcode(), r.DataSN(), r.BufferOffset(), len(data), burst)
		}
		got = append(got, data...)
		if r.Final() {
			burst = 0
		}
		if r.Flags()&iscsi.FlagStatus != 0 {
			if !r.Final() || r.SCSIStatus() != 0 || r.Residual() != 0 {
				return nil, fmt.Errorf("final Data-In %x", r)
			}
			return got, nil
		}
	}
}

// TestTransfers moves data of all lengths under all negotiations, against a
// plain array.
func TestTransfers(t *testing.T) {
	r := newRig(t, Config{Limits: Limits{Memory: 4 << 20, SessionMemory: 1 << 20}})
	rapid.Check(t, func(t *rapid.T) {
		x := transfer{
			initialR2T: rapid.Bool().Draw(t, "initialR2T"), immediate: rapid.Bool().Draw(t, "immediate"),
			firstBurst: 512 * rapid.IntRange(1, 200).Draw(t, "firstBurst"), maxBurst: 512 * rapid.IntRange(1, 400).Draw(t, "maxBurst"),
			segment: rapid.IntRange(512, 262144).Draw(t, "segment"), recv: rapid.IntRange(512, 262144).Draw(t, "recv"),
		}
		digests := rapid.SampledFrom([]string{"None", "CRC32C"})
		yes := map[bool]string{true: "Yes", false: "No"}
		x.firstBurst = min(x.firstBurst, x.maxBurst)
		r.disk.Slow.Store(rapid.Bool().Draw(t, "slow"))
		c, err := targettest.Dial(r.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		status, _, err := c.Login(fmt.Sprintf(testNames+"InitialR2T=%s\nImmediateData=%s\nFirstBurstLength=%d\nMaxBurstLength=%d\n"+
			"MaxRecvDataSegmentLength=%d\nHeaderDigest=%s\nDataDigest=%s\nMaxOutstandingR2T=%d\n",
			yes[x.initialR2T], yes[x.immediate], x.firstBurst, x.maxBurst, x.recv,
			digests.Draw(t, "headerDigest"), digests.Draw(t, "dataDigest"), rapid.IntRange(1, 8).Draw(t, "r2t")))
		if err != nil || status != 0 {
			t.Fatal(status, err)
		}
		x.c = c
		for range rapid.IntRange(1, 4).Draw(t, "rounds") {
			n := 512 * rapid.IntRange(1, 1200).Draw(t, "blocks")
			lba := rapid.IntRange(0, 4096).Draw(t, "lba")
			want := pattern(n, byte(rapid.IntRange(0, 255).Draw(t, "seed")))
			if err := x.write(lba, want); err != nil {
				t.Fatalf("%+v write: %v", x, err)
			}
			got, err := x.read(lba, n)
			if err != nil {
				t.Fatalf("%+v read: %v", x, err)
			}
			if !bytes.Equal(got, want) || !bytes.Equal(r.disk.Peek(lba*512, n), want) {
				t.Fatal("data differs")
			}
		}
	})
}

// TestResiduals has the cases of RFC 7143, 11.4.5.
func TestResiduals(t *testing.T) {
	r := newRig(t, Config{})
	c, _ := r.login("")
	for _, tc := range []struct {
		name   string
		flags  byte
		length int
		cdb    []byte
		data   []byte
		flag   byte
		count  uint32
	}{
		{"read, nothing expected", iscsi.FlagRead, 0, targettest.Read10(0, 1), nil, iscsi.FlagOverflow, 512},
		{"read, no direction", 0, 0, targettest.Read10(0, 1), nil, iscsi.FlagOverflow, 512},
		{"read, more expected", iscsi.FlagRead, 10000, targettest.Read10(0, 1), nil, iscsi.FlagUnderflow, 10000 - 512},
		{"read, less expected", iscsi.FlagRead, 200, targettest.Read10(0, 1), nil, iscsi.FlagOverflow, 312},
		{"write, nothing expected", iscsi.FlagWrite, 0, targettest.Write10(0, 1), nil, iscsi.FlagOverflow, 512},
		{"write, more expected", iscsi.FlagWrite, 1024, targettest.Write10(0, 1), pattern(1024, 0), iscsi.FlagUnderflow, 512},
		{"write, less expected", iscsi.FlagWrite, 200, targettest.Write10(0, 1), pattern(200, 0), iscsi.FlagOverflow, 312},
		{"write, right", iscsi.FlagWrite, 512, targettest.Write10(0, 1), pattern(512, 0), 0, 0},
	} {
		h := c.Command(iscsi.FlagFinal|tc.flags, tc.length, tc.cdb...)
		r.send(c, h, tc.data)
		a, _, err := c.Recv()
		if err != nil {
			t.Fatal(err)
		}
		const both = iscsi.FlagOverflow | iscsi.FlagUnderflow
		if a.SCSIStatus() != 0 || a.Flags()&both != tc.flag || a.Residual() != tc.count {
			t.Errorf("%s: %v status %#x flags %#x residual %d", tc.name, a.Opcode(), a.SCSIStatus(), a.Flags(), a.Residual())
		}
	}
}

// TestWriteOfNothing announces data for a write that has none. RFC 7143, 11.3.4.
func TestWriteOfNothing(t *testing.T) {
	r := newRig(t, Config{})
	c, _ := r.login("InitialR2T=No\n")
	for range 100 {
		h := c.Command(iscsi.FlagWrite, 0, targettest.Write10(0, 0)...)
		r.send(c, h, nil)
		r.send(c, c.DataOut(h.InitiatorTag(), iscsi.NoTag, 0, 0, true), nil)
		if status, _ := r.expectStatus(c, h.InitiatorTag()); status != 0 {
			t.Errorf("status %#x", status)
		}
	}
	r.alive(c)
}

// TestDataOutMisuse breaks the rules of data-out one by one. The task ends
// with the sense the RFC names, and the session lives on.
func TestDataOutMisuse(t *testing.T) {
	r := newRig(t, Config{})
	const sequence, amount, unsolicited, length, bidi = 0x0b4b00, 0x0b0c0d, 0x0b0c0c, 0x052400, 0x052000
	half := pattern(512, 1)
	for _, tc := range []struct {
		name   string
		keys   string
		flags  byte
		length int
		data   []byte
		// after sends Data-Outs; ttt is the R2T's tag, or NoTag if none is
		// awaited.
		r2t   bool
		after func(c *targettest.Client, itt, ttt uint32)
		want  int
	}{
		{"DataSN twice", "", iscsi.FlagFinal, 1024, nil, true, func(c *targettest.Client, itt, ttt uint32) {
			c.Send(c.DataOut(itt, ttt, 0, 0, false), nil, half)
			c.Send(c.DataOut(itt, ttt, 0, 512, true), nil, half)
		}, sequence},
		{"DataSN reversed", "", iscsi.FlagFinal, 1024, nil, true, func(c *targettest.Client, itt, ttt uint32) {
			c.Send(c.DataOut(itt, ttt, 1, 0, false), nil, half)
			c.Send(c.DataOut(itt, ttt, 0, 512, true), nil, half)
		}, sequence},
		{"offset", "", iscsi.FlagFinal, 1024, nil, true, func(c *targettest.Client, itt, ttt uint32) {
			c.Send(c.DataOut(itt, ttt, 0, 512, true), nil, half)
		}, sequence},
		{"too much", "", iscsi.FlagFinal, 512, nil, true, func(c *targettest.Client, itt, ttt uint32) {
			c.Send(c.DataOut(itt, ttt, 0, 0, true), nil, pattern(1024, 1))
		}, amount},
		{"too little", "", iscsi.FlagFinal, 1024, nil, true, func(c *targettest.Client, itt, ttt uint32) {
			c.Send(c.DataOut(itt, ttt, 0, 0, true), nil, half)
		}, amount},
		{"no final bit", "", iscsi.FlagFinal, 512, nil, true, func(c *targettest.Client, itt, ttt uint32) {
			c.Send(c.DataOut(itt, ttt, 0, 0, false), nil, half)
			c.Send(c.DataOut(itt, ttt, 1, 512, true), nil, nil)
		}, amount},
		{"wrong tag, then right", "", iscsi.FlagFinal, 512, nil, true, func(c *targettest.Client, itt, ttt uint32) {
			c.Send(c.DataOut(itt, ttt+1, 0, 0, true), nil, half)
			c.Send(c.DataOut(itt, ttt, 0, 0, true), nil, half)
		}, sequence},
		{"unsolicited beside R2T", "", iscsi.FlagFinal, 512, nil, true, func(c *targettest.Client, itt, ttt uint32) {
			c.Send(c.DataOut(itt, iscsi.NoTag, 0, 0, true), nil, half)
			c.Send(c.DataOut(itt, ttt, 0, 0, true), nil, half)
		}, unsolicited},
		{"immediate data forbidden", "ImmediateData=No\n", iscsi.FlagFinal, 512, half, false, nil, unsolicited},
		{"immediate data over first burst", "FirstBurstLength=512\n", iscsi.FlagFinal, 1024, pattern(1024, 0), false, nil, amount},
		{"immediate data over length", "", iscsi.FlagFinal, 512, pattern(1024, 0), false, nil, amount},
		{"more after immediate", "InitialR2T=No\nFirstBurstLength=1024\n", 0, 2048, half, false, func(c *targettest.Client, itt, _ uint32) {
			c.Send(c.DataOut(itt, iscsi.NoTag, 0, 512, true), nil, pattern(1024, 0))
		}, amount},
		{"bidirectional", "", iscsi.FlagFinal | iscsi.FlagRead, 512, half, false, nil, bidi},
		{"length over the limit", "", iscsi.FlagFinal, 17 << 20, nil, false, nil, length},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.t = t
			before := r.disk.Landed.Load()
			c, _ := r.login(tc.keys)
			h := c.Command(tc.flags|iscsi.FlagWrite, tc.length, targettest.Write10(0, tc.length/512)...)
			r.send(c, h, tc.data)
			ttt := iscsi.NoTag
			if tc.r2t {
				a, _ := r.expect(c, iscsi.OpR2T)
				ttt = a.TargetTag()
			}
			if tc.after != nil {
				tc.after(c, h.InitiatorTag(), ttt)
			}
			if status, sense := r.expectStatus(c, h.InitiatorTag()); status != 2 || sense != tc.want {
				t.Errorf("status %#x sense %#06x, want %#06x", status, sense, tc.want)
			}
			r.alive(c)
			if r.disk.Landed.Load() != before {
				t.Error("the write landed")
			}
		})
	}
	// Immediate data on a command without the W bit.
	c, _ := r.login("")
	h := c.Command(iscsi.FlagFinal|iscsi.FlagRead, 512, targettest.Read10(0, 1)...)
	r.send(c, h, half)
	if status, sense := r.expectStatus(c, h.InitiatorTag()); status != 2 || sense != unsolicited {
		t.Errorf("read with data: status %#x sense %#x", status, sense)
	}
	// With InitialR2T, a command that announces more data breaks the rules;
	// what it sends is thrown away.
	c, _ = r.login("InitialR2T=Yes\n")
	h = c.Command(iscsi.FlagWrite, 1024, targettest.Write10(0, 2)...)
	r.send(c, h, half)
	r.send(c, c.DataOut(h.InitiatorTag(), iscsi.NoTag, 0, 512, true), half)
	if status, sense := r.expectStatus(c, h.InitiatorTag()); status != 2 || sense != unsolicited {
		t.Errorf("unsolicited: status %#x sense %#x", status, sense)
	}
	// Data for a task nobody knows.
	r.send(c, c.DataOut(4711, 12, 0, 0, true), half)
	r.alive(c)
	// A segment longer than declared ends the connection.
	c, _ = r.login("")
	h = c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 1<<20, targettest.Write10(0, 2048)...)
	r.send(c, h, make([]byte, 262144+4))
	r.expectEnd(c)
}

func TestDigestErrors(t *testing.T) {
	r := newRig(t, Config{})
	keys := "HeaderDigest=CRC32C\nDataDigest=CRC32C\n"
	c, _ := r.login(keys)
	r.alive(c)
	const crc = 0x0b4705

	// Immediate data: Reject, and the command ends with the CRC sense.
	c.SpoilData = true
	h := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...)
	r.send(c, h, pattern(512, 3))
	if j, data := r.expect(c, iscsi.OpReject); iscsi.RejectReason(j.Response()) != iscsi.RejectDataDigest || !bytes.Equal(data[16:20], h[16:20]) {
		t.Errorf("reject %x %x", j, data)
	}
	if status, sense := r.expectStatus(c, h.InitiatorTag()); status != 2 || sense != crc {
		t.Errorf("status %#x sense %#x", status, sense)
	}
	// Solicited data.
	h = c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...)
	r.send(c, h, nil)
	a, _ := r.expect(c, iscsi.OpR2T)
	c.SpoilData = true
	r.send(c, c.DataOut(h.InitiatorTag(), a.TargetTag(), 0, 0, true), pattern(512, 3))
	r.expect(c, iscsi.OpReject)
	if status, sense := r.expectStatus(c, h.InitiatorTag()); status != 2 || sense != crc {
		t.Errorf("status %#x sense %#x", status, sense)
	}
	// A ping.
	c.SpoilData = true
	h = c.Request(iscsi.OpNopOut)
	r.send(c, h, []byte("ping"))
	r.expect(c, iscsi.OpReject)
	r.alive(c)
	if r.disk.Landed.Load() != 0 {
		t.Error("broken data landed")
	}
	// A broken header ends the connection: nothing behind it can be found.
	c.SpoilHeader = true
	r.send(c, c.Command(iscsi.FlagFinal, 0, 0), nil)
	r.expectEnd(c)
}
