package ha

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"steadfast/cluster/group"
	"steadfast/fault"
	"steadfast/san/lun"
	"steadfast/scsi"
)

// owner answers over pipes, as a node does.
type unitOwner struct {
	take   func(ask unitRequest, late func() bool) (unitAnswer, error)
	dialed atomic.Int32
	ended  chan error
}

func newUnitOwner(take func(unitRequest, func() bool) (unitAnswer, error)) *unitOwner {
	return &unitOwner{take: take, ended: make(chan error, 1000)}
}

// clock counts in a synctest bubble, too.
func clock() func() group.Instant {
	began := time.Now()
	return func() group.Instant { return group.Instant(time.Since(began)) }
}

func (o *unitOwner) dial(context.Context) (net.Conn, error) {
	o.dialed.Add(1)
	here, there := net.Pipe()
	go func() {
		o.ended <- answerUnit(there, clock(), o.take)
		_ = there.Close()
	}()
	return here, nil
}

var aCommand = unitRequest{Group: "g", Volume: "00", Passed: &lun.Passed{CDB: []byte{0x5f, 6: 0}, DataOut: []byte{1, 2, 3}}}

// TestPassOn: a command comes to its owner whole, and its answer back.
func TestPassOn(t *testing.T) {
	want := lun.Answer{Status: scsi.CheckCondition, Sense: []byte{0x70, 0, 5}, Required: 24}
	o := newUnitOwner(func(ask unitRequest, late func() bool) (unitAnswer, error) {
		if ask.Group != "g" || !bytes.Equal(ask.Passed.CDB, aCommand.Passed.CDB) || !bytes.Equal(ask.Passed.DataOut, aCommand.Passed.DataOut) || late() {
			t.Errorf("came %+v, late %v", ask, late())
		}
		return unitAnswer{Answer: &want}, nil
	})
	got, err := passOn(t.Context(), func() unitDial { return o.dial }, aCommand)
	if err != nil || got.Status != want.Status || !bytes.Equal(got.Sense, want.Sense) || got.Required != want.Required {
		t.Errorf("%+v, %v", got, err)
	}
	if err := <-o.ended; err != nil {
		t.Error(err)
	}
}

// TestPassOnAgain: what was not performed is brought again for a while, to whom the
// group has then; what may have been is not.
func TestPassOnAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuses := newUnitOwner(func(unitRequest, func() bool) (unitAnswer, error) {
			return unitAnswer{}, fault.New(fault.Fenced, "not served here")
		})
		serves := newUnitOwner(func(unitRequest, func() bool) (unitAnswer, error) { return unitAnswer{Answer: &lun.Answer{}}, nil })
		began := time.Now()
		owner := func() unitDial {
			switch since := time.Since(began); {
			case since < time.Second:
				return nil
			case since < 2*time.Second:
				return refuses.dial
			}
			return serves.dial
		}
		if _, err := passOn(t.Context(), owner, aCommand); err != nil || refuses.dialed.Load() < 10 || serves.dialed.Load() != 1 {
			t.Errorf("%v, asked %d and %d times", err, refuses.dialed.Load(), serves.dialed.Load())
		}

		began = time.Now()
		_, err := passOn(t.Context(), func() unitDial { return refuses.dial }, aCommand)
		if took := time.Since(began); err == nil || took < passedRetry || took > passedRetry+time.Second {
			t.Errorf("refused for good: %v after %v", err, took)
		}

		// A connection that breaks behind the request: once only.
		var broken atomic.Int32
		breaks := func(context.Context) (net.Conn, error) {
			broken.Add(1)
			here, there := net.Pipe()
			go func() {
				_ = writeUnit(there, unitReady{Version: unitVersion})
				var ask unitRequest
				_ = readUnit(there, &ask)
				_ = there.Close()
			}()
			return here, nil
		}
		if _, err := passOn(t.Context(), func() unitDial { return breaks }, aCommand); !errors.Is(err, io.EOF) || broken.Load() != 1 {
			t.Errorf("%v, sent %d times", err, broken.Load())
		}

		// One of another release has done nothing either.
		other := func(context.Context) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				_ = writeUnit(there, unitReady{Version: unitVersion + 1})
				_, _ = there.Read(make([]byte, 1))
			}()
			return here, nil
		}
		if _, sent, err := askUnit(t.Context(), time.Second, other, aCommand); sent || !fault.Is(err, fault.Invalid) {
			t.Errorf("another version: sent %v, %v", sent, err)
		}
	})
}

// TestPassOnLate: an owner that is slow does not begin any more when who asked has
// given up, or might have; whoever asked has an answer in time, whatever happens.
func TestPassOnLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lates := make(chan bool, 3)
		slow := func(d time.Duration) *unitOwner {
			return newUnitOwner(func(_ unitRequest, late func() bool) (unitAnswer, error) {
				time.Sleep(d)
				lates <- late()
				return unitAnswer{Answer: &lun.Answer{}}, nil
			})
		}
		for _, c := range []struct {
			takes time.Duration
			late  bool
		}{{passedBegin - time.Second, false}, {passedBegin + time.Second, true}} {
			o := slow(c.takes)
			if _, err := passOn(t.Context(), func() unitDial { return o.dial }, aCommand); err != nil {
				t.Errorf("%v: %v", c.takes, err)
			}
			if got := <-lates; got != c.late {
				t.Errorf("late after %v: %v", c.takes, got)
			}
		}

		began := time.Now()
		o := slow(time.Hour)
		if _, err := passOn(t.Context(), func() unitDial { return o.dial }, aCommand); err == nil || time.Since(began) != passedTime {
			t.Errorf("an owner that is stopped: %v after %v", err, time.Since(began))
		}
		if !<-lates {
			t.Error("it would begin an hour later")
		}

		// Who asked goes before its time.
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		o = slow(2 * time.Second)
		if _, err := passOn(ctx, func() unitDial { return o.dial }, aCommand); err == nil {
			t.Error("it was not given up")
		}
		if !<-lates {
			t.Error("it would begin although nobody waits")
		}
	})
}

// TestUnitMessages: what does not fit is neither sent nor read.
func TestUnitMessages(t *testing.T) {
	if err := writeUnit(io.Discard, unitRequest{Group: string(make([]byte, unitBytesMax))}); !fault.Is(err, fault.Limit) {
		t.Errorf("too much to send: %v", err)
	}
	for name, b := range map[string][]byte{"too long": {0, 0x10, 0, 1}, "not JSON": {0, 0, 0, 1, 'x'}} {
		var v unitRequest
		if err := readUnit(bytes.NewReader(b), &v); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var v unitRequest
	if err := readUnit(bytes.NewReader([]byte{0, 0, 0, 9, '{'}), &v); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut short: %v", err)
	}
}
