package target

import (
	"bytes"
	"testing"
	"time"

	"steadfast/iscsi"
	"steadfast/san/target/targettest"
	"steadfast/scsi"
)

// TestCommandOrder sends commands outside the window, twice, and before their
// turn. RFC 7143, 4.2.2.1.
func TestCommandOrder(t *testing.T) {
	r := newRig(t, Config{Limits: Limits{QueueDepth: 8}})
	c, _ := r.login("")
	r.alive(c)
	next := c.CmdSN
	ignored := func(name string, sn uint32) {
		t.Helper()
		h := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...)
		h.SetCmdSN(sn)
		r.send(c, h, pattern(512, 9))
		// A ping behind it is answered first: the command is not.
		ping := c.Request(iscsi.OpNopOut)
		ping.SetImmediate()
		ping.SetCmdSN(next)
		ping.SetTargetTag(iscsi.NoTag)
		r.send(c, ping, nil)
		if a, _ := r.expect(c, iscsi.OpNopIn); a.InitiatorTag() != ping.InitiatorTag() {
			t.Errorf("%s: answered", name)
		}
		c.CmdSN = next
	}
	ignored("seen before", next-1)
	ignored("long ago", next-1000)
	ignored("beyond the window", c.MaxCmdSN+1)
	if r.disk.Landed.Load() != 0 {
		t.Error("an ignored command ran")
	}
	// Three commands in reverse order run in order: the last write wins.
	var hs []iscsi.Header
	for range 3 {
		hs = append(hs, c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...))
	}
	for i := 2; i >= 0; i-- {
		r.send(c, hs[i], pattern(512, byte(i)))
	}
	for range hs {
		a, _ := r.expect(c, iscsi.OpSCSIResponse)
		if a.SCSIStatus() != 0 {
			t.Errorf("status %#x", a.SCSIStatus())
		}
	}
	// Writes to one place may be done in any order once they are begun; what
	// is promised is that all were begun in order and none is lost.
	if r.disk.Landed.Load() != 3 {
		t.Errorf("%d writes landed", r.disk.Landed.Load())
	}
	r.alive(c)
	if c.ExpCmdSN != c.CmdSN {
		t.Errorf("ExpCmdSN %d, next is %d", c.ExpCmdSN, c.CmdSN)
	}
	if c.MaxCmdSN-c.ExpCmdSN != 7 {
		t.Errorf("window %d", c.MaxCmdSN-c.ExpCmdSN+1)
	}
}

func TestImmediateBound(t *testing.T) {
	r := newRig(t, Config{Limits: Limits{Immediate: 2}})
	release := make(chan struct{})
	r.disk.Gate = func(*scsi.Task) { <-release }
	c, _ := r.login("")
	for range 3 {
		h := c.Command(iscsi.FlagFinal|iscsi.FlagRead, 512, targettest.Read10(0, 1)...)
		h.SetImmediate()
		c.CmdSN--
		r.send(c, h, nil)
	}
	if a, _ := r.expect(c, iscsi.OpReject); iscsi.RejectReason(a.Response()) != iscsi.RejectImmediate {
		t.Errorf("reason %#x", a.Response())
	}
	close(release)
	r.expect(c, iscsi.OpDataIn)
	r.expect(c, iscsi.OpDataIn)
	r.alive(c)
}

// manage sends an immediate task management request.
func manage(c *targettest.Client, f scsi.Function, ref, refSN uint32) iscsi.Header {
	h := c.Request(iscsi.OpTaskRequest)
	h.SetImmediate()
	c.CmdSN--
	h.SetFunction(uint8(f))
	h.SetReferencedTag(ref)
	h.SetRefCmdSN(refSN)
	return h
}

func (r *rig) expectManaged(c *targettest.Client, want scsi.FunctionResponse) {
	r.t.Helper()
	for {
		h, _, err := c.Recv()
		if err != nil {
			r.t.Fatal(err)
		}
		if h.Opcode() == iscsi.OpNopIn {
			continue
		}
		if h.Opcode() != iscsi.OpTaskResponse || scsi.FunctionResponse(h.Response()) != want {
			r.t.Fatalf("%v %d, want %d", h.Opcode(), h.Response(), want)
		}
		return
	}
}

func TestTaskManagement(t *testing.T) {
	t.Run("abort a write that awaits data", func(t *testing.T) {
		r := newRig(t, Config{})
		c, _ := r.login("")
		h := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 1024, targettest.Write10(0, 2)...)
		r.send(c, h, nil)
		a, _ := r.expect(c, iscsi.OpR2T)
		r.send(c, manage(c, scsi.AbortTask, h.InitiatorTag(), h.CmdSN()), nil)
		r.expectManaged(c, scsi.FunctionComplete)
		// Data that was on its way is thrown away.
		r.send(c, c.DataOut(h.InitiatorTag(), a.TargetTag(), 0, 0, true), pattern(1024, 5))
		r.alive(c)
		if r.disk.Landed.Load() != 0 {
			t.Error("an aborted write landed")
		}
	})
	t.Run("unknown tasks and functions", func(t *testing.T) {
		r := newRig(t, Config{})
		c, _ := r.login("")
		r.alive(c)
		r.send(c, manage(c, scsi.AbortTask, 99, c.CmdSN-1), nil)
		r.expectManaged(c, scsi.TaskDoesNotExist)
		r.send(c, manage(c, scsi.TaskReassign, 99, 0), nil)
		r.expectManaged(c, scsi.ReassignUnsupported)
		r.send(c, manage(c, 77, 0, 0), nil)
		r.expectManaged(c, scsi.FunctionUnsupported)
		r.alive(c)
	})
	t.Run("abort a command that has not come", func(t *testing.T) {
		r := newRig(t, Config{})
		c, _ := r.login("")
		missing := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...)
		h := manage(c, scsi.AbortTask, missing.InitiatorTag(), missing.CmdSN())
		r.send(c, h, nil)
		r.expectManaged(c, scsi.FunctionComplete)
		r.alive(c) // its turn has come: the missing one is taken as received
		r.send(c, missing, pattern(512, 1))
		r.alive(c)
		if r.disk.Landed.Load() != 0 {
			t.Error("an aborted write landed")
		}
	})
	t.Run("abort early command", func(t *testing.T) {
		r := newRig(t, Config{})
		c, _ := r.login("")
		first := c.Command(iscsi.FlagFinal, 0, 0)
		early := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...)
		r.send(c, early, pattern(512, 1))
		r.send(c, manage(c, scsi.AbortTask, early.InitiatorTag(), early.CmdSN()), nil)
		r.expectManaged(c, scsi.FunctionComplete)
		r.send(c, first, nil)
		r.expectStatus(c, first.InitiatorTag())
		r.alive(c)
		if r.disk.Landed.Load() != 0 {
			t.Error("an aborted write landed")
		}
	})
	t.Run("reset early commands", func(t *testing.T) {
		r := newRig(t, Config{})
		c, _ := r.login("")
		first := c.Command(iscsi.FlagFinal, 0, 0)
		r.send(c, c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...), pattern(512, 1))
		elsewhere := c.Command(iscsi.FlagFinal, 0, 0)
		elsewhere.SetLUN(1 << 48)
		r.send(c, elsewhere, nil)
		r.send(c, manage(c, scsi.LogicalUnitResetFunction, 0, 0), nil)
		r.expectManaged(c, scsi.FunctionComplete)
		r.send(c, first, nil)
		r.expectStatus(c, first.InitiatorTag())
		r.expectStatus(c, elsewhere.InitiatorTag()) // not that unit's
		r.alive(c)
		if r.disk.Landed.Load() != 0 {
			t.Error("a write that the reset ended landed")
		}
	})
	t.Run("abort waits for the write to land", func(t *testing.T) {
		r := newRig(t, Config{})
		entered, release, marked := make(chan struct{}), make(chan struct{}), make(chan struct{})
		r.disk.Marked = func() { close(marked) }
		r.disk.Gate = func(t *scsi.Task) {
			if t.CDB[0] == 0x2a {
				entered <- struct{}{}
				<-release
			}
		}
		c, _ := r.login("")
		h := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...)
		r.send(c, h, pattern(512, 1))
		<-entered
		r.send(c, manage(c, scsi.LogicalUnitResetFunction, 0, 0), nil)
		// The connection is read meanwhile: a ping is answered, a command
		// that comes after the reset waits, and is not ended by it.
		later := c.Command(iscsi.FlagFinal|iscsi.FlagRead, 512, targettest.Read10(0, 1)...)
		r.send(c, later, nil)
		w := c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 1024, targettest.Write10(8, 2)...)
		r.send(c, w, pattern(512, 4))
		ping := c.Request(iscsi.OpNopOut)
		ping.SetTargetTag(iscsi.NoTag)
		r.send(c, ping, []byte("still there"))
		if _, data := r.expect(c, iscsi.OpNopIn); string(data) != "still there" {
			t.Errorf("ping: %q", data)
		}
		<-marked
		close(release)
		// The aborted write is not answered; the reset is, then the rest.
		r.expectManaged(c, scsi.FunctionComplete)
		for range 2 {
			a, _, err := c.Recv()
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case a.Opcode() == iscsi.OpDataIn && a.InitiatorTag() == later.InitiatorTag():
			case a.Opcode() == iscsi.OpR2T && a.InitiatorTag() == w.InitiatorTag():
				go func() { <-entered }()
				r.send(c, c.DataOut(w.InitiatorTag(), a.TargetTag(), 0, 512, true), pattern(512, 6))
			default:
				t.Fatalf("unexpected %v for %d", a.Opcode(), a.InitiatorTag())
			}
		}
		if status, _ := r.expectStatus(c, w.InitiatorTag()); status != 0 {
			t.Errorf("status %#x", status)
		}
		if want := append(pattern(512, 4), pattern(512, 6)...); !bytes.Equal(r.disk.Peek(8*512, 1024), want) {
			t.Error("held write went wrong")
		}
	})
	t.Run("cold reset ends the sessions", func(t *testing.T) {
		r := newRig(t, Config{})
		c, _ := r.login("")
		other := r.dial()
		other.ISID[3]++
		if status, _, err := other.Login(testNames); err != nil || status != 0 {
			t.Fatal(status, err)
		}
		r.send(c, manage(c, scsi.TargetColdReset, 0, 0), nil)
		r.expectManaged(c, scsi.FunctionComplete)
		r.expectEnd(c)
		r.expectEnd(other)
	})
	t.Run("held commands die with the connection", func(t *testing.T) {
		r := newRig(t, Config{})
		entered, release := make(chan struct{}), make(chan struct{})
		r.disk.Gate = func(t *scsi.Task) {
			if t.CDB[0] == 0x2a {
				close(entered)
				<-release
			}
		}
		c, _ := r.login("")
		r.send(c, c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 512, targettest.Write10(0, 1)...), pattern(512, 1))
		<-entered
		r.send(c, manage(c, scsi.LogicalUnitResetFunction, 0, 0), nil)
		r.send(c, c.Command(iscsi.FlagFinal|iscsi.FlagRead, 512, targettest.Read10(0, 1)...), nil)
		r.send(c, c.Command(iscsi.FlagFinal|iscsi.FlagWrite, 4096, targettest.Write10(0, 8)...), nil)
		s := r.session(c)
		c.Close()
		select {
		case <-s.gone:
			t.Error("the session is gone before its write landed")
		case <-time.After(20 * time.Millisecond):
		}
		close(release)
		<-s.gone
	})
}
