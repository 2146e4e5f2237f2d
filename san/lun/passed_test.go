package lun_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"steadfast/fault"
	"steadfast/san/lun"
	"steadfast/san/lun/luntest"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// told is a volume whose unit another node shows, too. What is to be told there
// waits for the test to bring it.
type told struct {
	*luntest.Kept

	mu      sync.Mutex
	list    []lun.Notice
	brought chan struct{} // what Tell returns
}

func (v *told) Tell(list []lun.Notice) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.list = append(v.list, list...)
	return v.brought
}

// twoNodes are a node that serves a volume, and one that has it on standby.
type twoNodes struct {
	owner, far *rig
	v          *told
	standby    *lun.Standby
	late, away atomic.Bool // what is passed on is late; does not arrive
	passed     atomic.Int32
}

func newTwoNodes(t testing.TB) *twoNodes {
	w := &twoNodes{v: &told{Kept: newKept()}}
	other := luntest.NewRAM("other", 0x22, volumeSize)
	w.owner = &rig{t: t, srv: lun.NewServer(), plain: w.v.RAM, other: other}
	for _, v := range []lun.Volume{w.v, other} {
		if err := w.owner.srv.AddVolume(v); err != nil {
			t.Fatal(err)
		}
	}
	w.owner.srv.SetUnitPorts(w.v.ID(), groupPorts(scsi.ActiveOptimized, scsi.Standby))
	w.owner.view(mappings(w.owner)...)

	w.far = &rig{t: t, srv: lun.NewServer(), plain: w.v.RAM, other: other}
	w.standby = standbyOf(w.v.Kept)
	w.standby.PassOn(w.pass)
	w.far.srv.SetUnitPorts(w.v.ID(), groupPorts(scsi.ActiveOptimized, scsi.Standby))
	if err := w.far.srv.AddVolume(w.standby); err != nil {
		t.Fatal(err)
	}
	w.far.view(mappings(w.far)[:1]...)
	return w
}

func (w *twoNodes) pass(_ context.Context, p lun.Passed) (lun.Answer, error) {
	w.passed.Add(1)
	if w.away.Load() {
		return lun.Answer{}, fault.New(fault.Unreachable, "the owner does not answer")
	}
	p.Volume = w.v.ID()
	return w.owner.srv.Perform(p, w.late.Load)
}

// bring brings what there is to tell to the far node.
func (w *twoNodes) bring() {
	w.v.mu.Lock()
	list := w.v.list
	w.v.list = nil
	w.v.mu.Unlock()
	heard, err := w.far.srv.Hear(w.v.ID(), list)
	if err != nil {
		w.far.t.Error(err)
	}
	w.owner.srv.Heard(w.v.ID(), heard)
}

// through logs in at the far node.
func (w *twoNodes) through(initiator string) *host {
	h := w.far.login(initiator, farPort)
	h.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/29h/07h")
	return h
}

// registrations lists who is registered where the volume is served.
func (w *twoNodes) registrations() string {
	var list []string
	for _, u := range w.owner.srv.Units() {
		if u.Volume != w.v.ID() {
			continue
		}
		for _, r := range u.Reservations.Registrations {
			who := strings.TrimSuffix(strings.TrimPrefix(r.Nexus.Initiator, "iqn.2026-11.io.example:"), ",i,0x000000000001")
			list = append(list, fmt.Sprintf("%s@%d=%d", who, r.Nexus.Port.Tag, r.Key))
		}
		if u.Reservations.Type != 0 {
			list = append(list, u.Reservations.Type.String())
		}
	}
	return strings.Join(list, " ")
}

// TestPassedRegistrations: a host registers, reserves and preempts through the
// port in standby as through the others, for that very nexus; reads and writes
// are refused there as ever. SPC-4, 5.15.2.4.4 and 5.13.7.
func TestPassedRegistrations(t *testing.T) {
	w := newTwoNodes(t)
	a, far := w.owner.open(hostA), w.through(hostA)
	b, farB := w.owner.open(hostB), w.through(hostB)
	for i, h := range []*host{a, far, farB} {
		good(t, h.persist(scsi.ActionPersistRegister, 0, 0, uint64(min(i+1, 2)), 0))
	}
	if got := w.registrations(); got != "a@1=1 a@2=2 b@2=2" {
		t.Fatalf("registered: %s", got)
	}
	for _, h := range []*host{a, far} {
		if got := hexKeys(h); got != "00000003"+"00000018"+"0000000000000001"+"0000000000000002"+"0000000000000002" {
			t.Errorf("keys %s", got)
		}
	}
	good(t, far.persist(scsi.ActionPersistReserve, reserve.WriteExclusive, 2, 0, 0))
	a.want(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1), "conflict")
	b.want(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1), "conflict")
	far.want(plainLUN, transfer(scsi.OpRead10, 0, 1), nil, "2h/04h/0bh")
	for _, c := range []struct {
		cdb, out []byte
		ends     string
	}{
		{persistCDB(scsi.ActionPersistRegister, 0), persistList(9, 1, 0), "conflict"},
		{persistCDB(scsi.ActionPersistRelease, reserve.ExclusiveAccess), persistList(2, 0, 0), "5h/26h/04h"},
		{persistCDB(scsi.ActionPersistReserve, reserve.WriteExclusive), persistList(2, 0, 0)[:23], "5h/1ah/00h"},
		{cdb(scsi.OpReserve6), nil, "2h/04h/0bh"}, // SPC-2's way is not in SPC-4's list
		{cdb(scsi.OpRelease6), nil, "2h/04h/0bh"},
	} {
		far.want(plainLUN, c.cdb, c.out, c.ends)
	}
	if got := far.do(plainLUN, persistCDB(scsi.ActionPersistRelease, reserve.WriteExclusive), persistList(2, 0, 0)); got.Required != 24 {
		t.Errorf("asked for %d bytes, want 24", got.Required)
	}
	good(t, far.persist(scsi.ActionPersistPreempt, reserve.WriteExclusive, 2, 1, 0))
	if got := w.registrations(); got != "a@2=2 b@2=2" {
		t.Errorf("registered after PREEMPT: %s", got)
	}
	if got := a.next(plainLUN); got != "6h/2ah/05h" {
		t.Errorf("the preempted was told %s", got)
	}
	good(t, far.persist(scsi.ActionPersistClear, 0, 2, 0, 0))
	good(t, far.persist(scsi.ActionPersistRegister, 0, 0, 5, 0x04))
	if got := w.registrations(); got != "a@2=5 a@1=5 a@101=5" {
		t.Errorf("registered with ALL_TG_PT: %s", got)
	}
	b.ok(plainLUN, cdb(scsi.OpTestUnitReady), nil)
}

// TestPassedNames: an initiator's name without a port stands for the ports that
// are logged in where the command came in as well, and are not where it is performed.
func TestPassedNames(t *testing.T) {
	w := newTwoNodes(t)
	far := w.through(hostA)
	w.through(hostB)
	w.owner.login("iqn.2026-11.io.example:c", ownPort)
	name := func(list []byte, name string) []byte {
		id := make([]byte, 4+(len(name)+4)&^3)
		id[0], id[3] = 0x05, byte(len(id)-4)
		copy(id[4:], name)
		return append(list, id...)
	}
	named := name(name(nil, hostB), "iqn.2026-11.io.example:c")
	list := append(persistList(0, 7, 0x08), 0, 0, 0, byte(len(named)))
	list = append(list, named...)
	far.ok(plainLUN, cdb(scsi.OpPersistentOut, 5, uint32(len(list))), list)
	if got := w.registrations(); got != "a@2=7 b@2=7 c@2=7" {
		t.Errorf("registered: %s", got)
	}
}

// TestPassedPreemptAndAbort: the tasks of the preempted end where they are,
// before the answer.
func TestPassedPreemptAndAbort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTwoNodes(t)
		d := &device{}
		w.v.Gate = func(op string, off, n int64) {
			if op == "write" {
				d.gate(op, off, n)
			}
		}
		a, far := w.owner.open(hostA), w.through(hostB)
		good(t, a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0))
		good(t, far.persist(scsi.ActionPersistRegister, 0, 0, 2, 0))
		d.close()
		write := a.begin(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
		var answered atomic.Bool
		go a.Execute(write)
		synctest.Wait()
		go func() {
			good(t, far.persist(scsi.ActionPersistPreemptAbort, reserve.WriteExclusive, 2, 1, 0))
			answered.Store(true)
		}()
		synctest.Wait()
		if answered.Load() {
			t.Error("answered before the write had landed")
		}
		d.open()
		synctest.Wait()
		if !answered.Load() {
			t.Error("no answer although the write has landed")
		}
	})
}

// TestPassedNotPerformed: what cannot be asked for, comes too late, or is ended
// where it is performed, is never said to be done, nor done later.
func TestPassedNotPerformed(t *testing.T) {
	w := newTwoNodes(t)
	far := w.through(hostA)
	register := func(key uint64, ends string) {
		t.Helper()
		far.want(plainLUN, persistCDB(scsi.ActionPersistRegisterAny, 0), persistList(0, key, 0), ends)
	}
	register(1, "good")
	w.away.Store(true)
	register(2, "2h/04h/0ah")
	list := modeList(control(0x04, 0, 0x40))
	far.want(plainLUN, modeSelect(list), list, "2h/04h/0ah")
	w.away.Store(false)
	w.late.Store(true)
	register(3, "2h/04h/0ah")
	far.want(plainLUN, modeSelect(list), list, "2h/04h/0ah")
	w.late.Store(false)
	w.v.Fail = func(string, int64, int64) error { return fault.New(fault.Fenced, "another owns the group") }
	register(4, "2h/04h/0ah")
	w.v.Fail = nil
	if got := w.registrations(); got != "a@2=1" {
		t.Errorf("registered: %s", got)
	}
	// The owner is none any more: who passes on learns that nothing was done.
	if err := w.owner.srv.ReplaceVolume(standbyOf(w.v.Kept)); err != nil {
		t.Fatal(err)
	}
	passed := lun.Passed{Volume: w.v.ID(), Nexus: reserve.Nexus{Initiator: "i", Port: reserve.Port{Target: targetName, Tag: farPort}}}
	passed.CDB, passed.DataOut = persistCDB(scsi.ActionPersistRegister, 0), persistList(0, 5, 0)
	if _, err := w.owner.srv.Perform(passed, w.late.Load); !fault.Is(err, fault.Fenced) {
		t.Errorf("a node that does not serve the unit: %v", err)
	}
}

// TestPassedLate: whether a command is too late is asked when its turn has come,
// not when it came in: until then one that came in later may be answered.
func TestPassedLate(t *testing.T) {
	w := newTwoNodes(t)
	a, far := w.owner.open(hostA), w.through(hostB)
	hold, saving := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var released, saved atomic.Bool
	w.v.Gate = func(op string, _, _ int64) {
		if op == "save" {
			once.Do(func() { close(saving) })
			<-hold
			saved.Store(true)
		}
	}
	w.standby.PassOn(func(_ context.Context, p lun.Passed) (lun.Answer, error) {
		p.Volume = w.v.ID()
		if !released.Swap(true) {
			close(hold)
		}
		return w.owner.srv.Perform(p, func() bool {
			if !saved.Load() {
				t.Error("asked before the change that came first was saved")
			}
			return true
		})
	})
	var one sync.WaitGroup
	one.Go(func() { good(t, a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0)) })
	<-saving // and holds what the other one waits for
	ended := verdict(far.persist(scsi.ActionPersistRegister, 0, 0, 2, 0))
	one.Wait()
	if got := w.registrations(); got != "a@1=1" || ended != "2h/04h/0ah" {
		t.Errorf("registered %s, and it was told %s", got, ended)
	}
}

// TestPassedEnds: what is on its way when the unit becomes another here, or
// goes, holds nobody up.
func TestPassedEnds(t *testing.T) {
	for name, end := range map[string]func(*twoNodes) error{
		"takeover": func(w *twoNodes) error { return w.far.srv.ReplaceVolume(w.v) },
		"removal":  func(w *twoNodes) error { return w.far.srv.RemoveVolume(w.v.ID()) },
		"end":      func(w *twoNodes) error { w.far.srv.Close(); return nil },
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newTwoNodes(t)
			w.standby.PassOn(func(ctx context.Context, _ lun.Passed) (lun.Answer, error) {
				<-ctx.Done()
				return lun.Answer{}, ctx.Err()
			})
			far := w.through(hostA)
			task := far.begin(plainLUN, persistCDB(scsi.ActionPersistRegister, 0), persistList(0, 1, 0))
			answered := make(chan bool, 1)
			go func() { answered <- far.Execute(task) }()
			synctest.Wait()
			if err := end(w); err != nil {
				t.Error(name, err)
			}
			if got := <-answered; got != (name == "takeover") || got && verdict(task) != "2h/04h/0ah" {
				t.Errorf("%s: answered %v", name, got)
			}
			w.owner.srv.Close()
			w.far.srv.Close()
		})
	}
}

// TestPassedModeSelect: mode pages are the unit's, whatever port they are set
// through; who may not write may not set them either. SPC-4, 6.11 and table 68.
func TestPassedModeSelect(t *testing.T) {
	w := newTwoNodes(t)
	a, far, other := w.owner.open(hostA), w.through(hostB), w.through(hostA)
	list := modeList(control(0, 0, 0x40))
	far.ok(plainLUN, modeSelect(list), list)
	w.bring()
	for h, want := range map[*host]string{a: "6h/2ah/01h", other: "6h/2ah/01h", far: "2h/04h/0bh"} {
		if got := h.next(plainLUN); got != want {
			t.Errorf("told %s, want %s", got, want)
		}
	}
	sense := cdb(scsi.OpModeSense6, 1, uint8(0x08), 2, uint8(0x0a), 4, uint8(255))
	if got := a.ok(plainLUN, sense, nil); got[4+5] != 0x40 {
		t.Errorf("control mode page % x", got)
	}
	good(t, a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0))
	good(t, a.persist(scsi.ActionPersistReserve, reserve.WriteExclusive, 1, 0, 0))
	list = modeList(control(0, 0, 0))
	far.want(plainLUN, modeSelect(list), list, "conflict")
}

// TestPassedReset: who was told through the port in standby that a unit was reset
// finds none of its tasks left; when nobody can be asked it is not told so.
func TestPassedReset(t *testing.T) {
	for _, f := range []scsi.Function{scsi.LogicalUnitResetFunction, scsi.TargetWarmReset, scsi.ClearTaskSet} {
		synctest.Test(t, func(t *testing.T) {
			w := newTwoNodes(t)
			d := &device{}
			w.v.Gate = d.gate
			a, far := w.owner.open(hostA), w.through(hostB)
			w.away.Store(true)
			if got := far.Manage(f, scsi.MakeLUN(plainLUN), 0); got != scsi.FunctionRejected {
				t.Errorf("function %d with nobody to ask: %d", f, got)
			}
			if got := far.next(plainLUN); got != "2h/04h/0bh" {
				t.Errorf("%s after a function that was not performed", got)
			}
			w.away.Store(false)
			d.close()
			write := a.begin(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
			answered := make(chan bool, 1)
			go func() { answered <- a.Execute(write) }()
			synctest.Wait()
			var got atomic.Int32
			got.Store(-1)
			go func() { got.Store(int32(far.Manage(f, scsi.MakeLUN(plainLUN), 0))) }()
			synctest.Wait()
			if got.Load() != -1 {
				t.Errorf("function %d was answered before the write had landed", f)
			}
			d.open()
			if <-answered {
				t.Error("the write was answered, though it was aborted")
			}
			synctest.Wait()
			if scsi.FunctionResponse(got.Load()) != scsi.FunctionComplete {
				t.Errorf("function %d: %d", f, got.Load())
			}
			for h, wait := range map[*host]string{a: "good", far: "2h/04h/0bh"} {
				want := "6h/29h/03h"
				if f == scsi.ClearTaskSet {
					want = map[*host]string{a: "6h/2fh/00h", far: wait}[h]
				}
				if got := h.next(plainLUN); got != want {
					t.Errorf("function %d: told %s, want %s", f, got, want)
				}
			}
		})
	}
}

// TestPassedAborted: a command that is ended where it is performed gets an
// answer where it came in, for there nothing was ended.
func TestPassedAborted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTwoNodes(t)
		a, far := w.owner.open(hostA), w.through(hostB)
		hold := make(chan struct{})
		w.v.Gate = func(op string, _, _ int64) {
			if op == "save" {
				<-hold
			}
		}
		ended := ""
		go func() { ended = verdict(far.persist(scsi.ActionPersistRegister, 0, 0, 2, 0)) }()
		synctest.Wait()
		go a.Manage(scsi.ClearTaskSet, scsi.MakeLUN(plainLUN), 0)
		synctest.Wait()
		close(hold)
		synctest.Wait()
		if ended != "aborted" {
			t.Errorf("it was told %q", ended)
		}
	})
}

// TestFarAttentions: nexuses of the other node hear of what changes their
// registrations, once: there, or where they come to next.
func TestFarAttentions(t *testing.T) {
	w := newTwoNodes(t)
	a, far, farB := w.owner.open(hostA), w.through(hostA), w.through(hostB)
	gone := w.through("iqn.2026-11.io.example:gone")
	for i, h := range []*host{a, far, farB, gone} {
		good(t, h.persist(scsi.ActionPersistRegister, 0, 0, uint64(i+1), 0))
	}
	gone.Close()
	good(t, a.persist(scsi.ActionPersistReserve, reserve.WriteExclusiveRegistrantsOnly, 1, 0, 0))
	good(t, a.persist(scsi.ActionPersistRelease, reserve.WriteExclusiveRegistrantsOnly, 1, 0, 0))
	w.bring()
	before := far.told.Load()
	for _, h := range []*host{far, farB} {
		if got := h.next(plainLUN); got != "6h/2ah/04h" {
			t.Errorf("a release was told as %s", got)
		}
	}
	if before == 0 {
		t.Error("the transport was not told")
	}
	good(t, a.persist(scsi.ActionPersistPreempt, 0, 1, 3, 0)) // farB's
	w.bring()
	good(t, a.persist(scsi.ActionPersistClear, 0, 1, 0, 0)) // and this the other node never hears of
	w.v.mu.Lock()
	if n := len(w.v.list); n != 2 {
		t.Errorf("%d notices of CLEAR, want 2", n)
	}
	w.v.mu.Unlock()
	if got := farB.next(plainLUN); got != "6h/2ah/05h" {
		t.Errorf("a preempted registration was told as %s", got)
	}

	// They come to the node that serves the unit: what was told is not told again.
	for name, want := range map[string]string{hostA: "6h/2ah/03h", hostB: "2h/04h/0bh", "iqn.2026-11.io.example:gone": "6h/2ah/03h"} {
		h := w.owner.login(name, farPort)
		h.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/29h/00h")
		if got := h.next(plainLUN); got != want {
			t.Errorf("%s is told %s, want %s", name, got, want)
		}
	}
	if list, err := w.owner.srv.Hear(w.v.ID(), []lun.Notice{{ASC: 0x2a, ASCQ: 0x03}}); len(list) > 0 || err != nil {
		t.Errorf("a node that serves the unit heard of %v, %v", list, err)
	}
}

// TestFarAttentionsFirst: a command is answered when the nexuses of the other
// node were told what it did to them, or after a little while.
func TestFarAttentionsFirst(t *testing.T) {
	for name, do := range map[string]func(w *twoNodes, a *host){
		"RELEASE": func(_ *twoNodes, a *host) {
			a.persist(scsi.ActionPersistRelease, reserve.WriteExclusiveRegistrantsOnly, 1, 0, 0)
		},
		"LOGICAL UNIT RESET": func(_ *twoNodes, a *host) {
			a.Manage(scsi.LogicalUnitResetFunction, scsi.MakeLUN(plainLUN), 0)
		},
		"MODE SELECT": func(_ *twoNodes, a *host) {
			list := modeList(control(0x04, 0, 0x40))
			a.ok(plainLUN, modeSelect(list), list)
		},
		"clear reservations": func(w *twoNodes, _ *host) {
			_ = w.owner.srv.ClearReservations(w.v.ID())
		},
	} {
		for _, reached := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				w := newTwoNodes(t)
				a, far := w.owner.open(hostA), w.through(hostB)
				good(t, a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0))
				good(t, far.persist(scsi.ActionPersistRegister, 0, 0, 2, 0))
				good(t, a.persist(scsi.ActionPersistReserve, reserve.WriteExclusiveRegistrantsOnly, 1, 0, 0))
				brought := make(chan struct{})
				w.v.mu.Lock()
				w.v.brought = brought
				w.v.mu.Unlock()
				var done atomic.Bool
				go func() { do(w, a); done.Store(true) }()
				synctest.Wait()
				if w.v.mu.Lock(); len(w.v.list) == 0 || done.Load() {
					t.Errorf("%s: %d told, answered before: %t", name, len(w.v.list), done.Load())
				}
				w.v.mu.Unlock()
				if reached {
					close(brought)
					synctest.Wait()
				} else {
					time.Sleep(time.Second)
					synctest.Wait()
				}
				if !done.Load() {
					t.Errorf("%s: not answered (reached: %t)", name, reached)
				}
			})
		}
	}
}

// TestFarAttentionsTogether: a reset of all units tells another node of them at once: one that
// does not answer takes its time once, and not for each unit.
func TestFarAttentionsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var list []lun.Mapping
		var volumes []*told
		for i := range 100 {
			v := &told{Kept: luntest.NewKept(fmt.Sprint("v", i), byte(0x30+i), volumeSize), brought: make(chan struct{})}
			if err := r.srv.AddVolume(v); err != nil {
				t.Fatal(err)
			}
			volumes = append(volumes, v)
			list = append(list, lun.Mapping{LUN: uint16(i), Volume: v.ID()})
		}
		r.view(list...)
		a := r.login(hostA, 1)
		began := time.Now()
		if got := a.Manage(scsi.TargetWarmReset, 0, 0); got != scsi.FunctionComplete {
			t.Errorf("the reset: %d", got)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		for i, v := range volumes {
			if len(v.list) != 1 {
				t.Errorf("of unit %d another node was told %d times", i, len(v.list))
			}
		}
	})
}

// TestPassedDenied: another node cannot have anything else performed.
func TestPassedDenied(t *testing.T) {
	w := newTwoNodes(t)
	good := lun.Passed{
		Volume: w.v.ID(), Nexus: reserve.Nexus{Initiator: "i", Port: reserve.Port{Target: targetName, Tag: farPort}},
		CDB: persistCDB(scsi.ActionPersistRegister, 0), DataOut: persistList(0, 1, 0),
	}
	for name, c := range map[string]struct {
		spoil func(*lun.Passed)
		kind  fault.Kind
	}{
		"READ":               {func(p *lun.Passed) { p.CDB = transfer(scsi.OpRead10, 0, 1) }, fault.Denied},
		"WRITE":              {func(p *lun.Passed) { p.CDB, p.DataOut = transfer(scsi.OpWrite10, 0, 1), pattern(1, 1) }, fault.Denied},
		"no command":         {func(p *lun.Passed) { p.CDB = nil }, fault.Denied},
		"ABORT TASK":         {func(p *lun.Passed) { p.Function = scsi.AbortTask }, fault.Denied},
		"a port there isn't": {func(p *lun.Passed) { p.Nexus.Port.Tag = 9 }, fault.Denied},
		"another target":     {func(p *lun.Passed) { p.Nexus.Port.Target = "iqn.2026-11.io.example:u" }, fault.Denied},
		"no such unit":       {func(p *lun.Passed) { p.Volume[0]++ }, fault.NotFound},
	} {
		p := good
		c.spoil(&p)
		if a, err := w.owner.srv.Perform(p, w.late.Load); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
	for name, c := range map[string][]byte{
		"an unknown operation": {0xff, 0, 0, 0, 0, 0},
		"a short CDB":          good.CDB[:6],
	} {
		p := good
		p.CDB = c
		if a, err := w.owner.srv.Perform(p, w.late.Load); err != nil || a.Status != scsi.CheckCondition {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
	if got := w.registrations(); got != "" {
		t.Errorf("registered: %s", got)
	}
}

// TestPassedUnderLoad: changes of the unit's state through both nodes, while the
// one that is asked gives the unit up and gets it back.
func TestPassedUnderLoad(t *testing.T) {
	w := newTwoNodes(t)
	var load sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		r, port := w.owner, uint16(ownPort)
		if i%2 == 1 {
			r, port = w.far, farPort
		}
		h := r.login(fmt.Sprintf("iqn.2026-11.io.example:h%d", i), port)
		load.Go(func() {
			for n := uint64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				list := modeList(control(0, 0, byte(n)<<6))
				for _, c := range [][2][]byte{
					{persistCDB(scsi.ActionPersistRegisterAny, 0), persistList(0, n+1, 0)},
					{modeSelect(list), list},
					{persistCDB(scsi.ActionPersistPreemptAbort, reserve.WriteExclusive), persistList(n+1, n, 0)},
				} {
					task := h.begin(plainLUN, c[0], c[1])
					if !h.Execute(task) {
						continue // preempted and aborted
					}
					switch got := verdict(task); got {
					case "good", "conflict", "aborted", "2h/04h/0ah", "2h/04h/0bh":
					default:
						if !strings.HasPrefix(got, "6h/") && got != "5h/26h/00h" {
							t.Errorf("% x: %s", c[0], got)
						}
					}
				}
			}
		})
	}
	for i := 0; i < 60 || i%2 == 1 || w.passed.Load() < 100; i++ {
		var next lun.Volume = w.v
		if i%2 == 0 {
			next = standbyOf(w.v.Kept)
		}
		if err := w.owner.srv.ReplaceVolume(next); err != nil {
			t.Error(err)
		}
		w.bring()
	}
	close(stop)
	load.Wait()
	if err := w.owner.srv.RemoveVolume(w.v.ID()); err != nil {
		t.Error(err)
	}
}
