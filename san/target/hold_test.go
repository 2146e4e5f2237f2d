package target

import (
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/fault"
	"steadfast/iscsi"
	"steadfast/san/target/targettest"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

func reusePort(_, _ string, raw syscall.RawConn) error {
	return raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
}

// until waits for a condition.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain: " + what)
		}
	}
}

// logIn starts a login and returns where its end shows.
func logIn(c *targettest.Client, names string) <-chan error {
	done := make(chan error, 1)
	go func() {
		status, _, err := c.Login(names)
		if err == nil && status != iscsi.LoginSuccess {
			err = fault.New(fault.Internal, "%v", status)
		}
		done <- err
	}()
	return done
}

// TestHold holds logins of both kinds: they are counted apart, and go on when
// they are admitted. Other groups do not wait.
func TestHold(t *testing.T) {
	r := newRig(t, Config{Limits: Limits{HalfOpen: 1}})
	if err := r.srv.AddTarget(Target{Name: aliasTarget, Groups: []uint16{aliasTag}, Access: []Access{{Initiator: testInitiator}}}); err != nil {
		t.Fatal(err)
	}
	alias := r.listen(Portal{Address: "127.0.0.9:0", Group: aliasTag, Alias: true}) // held from the start
	c := r.dialTo(alias)
	done := logIn(c, aliasNames)
	until(t, "one is held", func() bool { return r.srv.Stats().Held == 1 })
	found := logIn(r.dialTo(alias), "InitiatorName="+testInitiator+"\nSessionType=Discovery\n")
	until(t, "two are held", func() bool { return r.srv.Stats().Held == 2 })
	if s := r.srv.Stats(); s.HalfOpen != 2 || s.Sessions != 0 {
		t.Errorf("%+v", s)
	}
	if got := len(r.srv.Connections(aliasTag)); got != 2 {
		t.Errorf("%d connections", got)
	}
	// They take no place of a login that goes on.
	other, _ := r.login("")
	r.alive(other)
	until(t, "its login is over", func() bool { return r.srv.Stats().HalfOpen == 2 })
	select {
	case err := <-done:
		t.Fatalf("answered while held: %v", err)
	case err := <-found:
		t.Fatalf("discovery answered while held: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	r.srv.AdmitLogins(aliasTag)
	for _, ch := range []<-chan error{done, found} {
		if err := <-ch; err != nil {
			t.Fatal(err)
		}
	}
	r.alive(c)
	until(t, "three sessions", func() bool {
		s := r.srv.Stats()
		return s.HalfOpen == 0 && s.Held == 0 && s.Sessions == 3
	})
	// What a group was told outlives its portals.
	if err := r.srv.Unlisten("127.0.0.9:0"); err != nil {
		t.Fatal(err)
	}
	r.loginTo(r.listen(Portal{Address: "127.0.0.8:0", Group: aliasTag, Alias: true}), "InitiatorName="+testInitiator+"\nSessionType=Discovery\n")
	r.alive(c)
}

// TestHoldEnds ends held logins: the initiator leaves, or says more before it is
// answered; the time is over; there are too many; the server closes. None is answered.
func TestHoldEnds(t *testing.T) {
	var marked atomic.Int32
	r := newRig(t, Config{
		Limits: Limits{HeldLogins: 2}, Times: Times{LoginHold: 300 * time.Millisecond},
		Closing: func(net.Conn) { marked.Add(1) },
	})
	r.srv.HoldLogins(1)
	none := func() bool { s := r.srv.Stats(); return s.HalfOpen == 0 && s.Held == 0 }
	held := func() bool { return r.srv.Stats().Held > 0 }

	leaving := r.dial()
	began := time.Now()
	done := logIn(leaving, testNames)
	until(t, "it is held", held)
	leaving.Close()
	until(t, "it is gone", none)
	if took := time.Since(began); took > 250*time.Millisecond {
		t.Errorf("its end was noticed after %v", took)
	}
	if err := <-done; err == nil {
		t.Error("answered")
	}

	began = time.Now()
	if err := <-logIn(r.dial(), testNames); err == nil {
		t.Error("answered")
	}
	if took := time.Since(began); took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("held for %v", took)
	}
	until(t, "it is gone", none)
	if marked.Load() != 2 {
		t.Errorf("%d connections closed openly", marked.Load())
	}

	eager := r.dial()
	logIn(eager, testNames)
	until(t, "it is held", held)
	if _, err := eager.Conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	until(t, "it is gone", none)

	a, b := logIn(r.dial(), testNames), logIn(r.dial(), testNames)
	until(t, "two are held", func() bool { return r.srv.Stats().Held == 2 })
	if err := <-logIn(r.dial(), testNames); err == nil {
		t.Error("a third was answered")
	}
	r.srv.Close(t.Context())
	if <-a == nil || <-b == nil {
		t.Error("answered by a server that closes")
	}
}

// TestHoldBetweenSteps holds a login that was answered once already: it ends in
// no session before it is admitted, and has its time after that.
func TestHoldBetweenSteps(t *testing.T) {
	r := newRig(t, Config{Times: Times{Login: 500 * time.Millisecond}})
	c := r.dial()
	if status, _, err := c.LoginStep(iscsi.StageSecurity, iscsi.StageOperational, true, testNames); err != nil || status != 0 {
		t.Fatal(status, err)
	}
	r.srv.HoldLogins(1)
	done := make(chan error, 1)
	go func() {
		status, _, err := c.LoginStep(iscsi.StageOperational, iscsi.StageFullFeature, true, "")
		if err == nil && status != iscsi.LoginSuccess {
			err = fault.New(fault.Internal, "%v", status)
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatal("went on while held: ", err)
	case <-time.After(700 * time.Millisecond): // more than a login may take
	}
	if n := r.srv.Stats().Sessions; n != 0 {
		t.Errorf("%d sessions", n)
	}
	r.srv.AdmitLogins(1)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r.alive(c)
}

// TestHoldRaces holds and admits while initiators log in: every login ends in a
// session, and none begins while HoldLogins holds.
func TestHoldRaces(t *testing.T) {
	var open atomic.Bool
	var early atomic.Int32
	open.Store(true)
	r := newRig(t, Config{})
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			r.srv.HoldLogins(1)
			before := r.srv.Stats().Sessions
			time.Sleep(500 * time.Microsecond)
			if r.srv.Stats().Sessions > before {
				early.Add(1)
			}
			r.srv.AdmitLogins(1)
			select {
			case <-stop:
				return
			case <-time.After(500 * time.Microsecond):
			}
		}
	}()
	var results []<-chan error
	for i := range 100 {
		c := r.dial()
		c.ISID[5] = byte(i)
		results = append(results, logIn(c, testNames))
	}
	for _, ch := range results {
		if err := <-ch; err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-done
	if early.Load() > 0 {
		t.Errorf("%d sessions began while held", early.Load())
	}
}
