package lun_test

import (
	"bytes"
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

// keptRig is a rig whose plain volume is a StateKeeper.
func keptRig(t testing.TB, v *luntest.Kept) *rig {
	r := &rig{t: t, srv: lun.NewServer(), plain: v.RAM, other: luntest.NewRAM("other", 0x22, volumeSize)}
	for _, v := range []lun.Volume{v, r.other} {
		if err := r.srv.AddVolume(v); err != nil {
			t.Fatal(err)
		}
	}
	r.view(mappings(r)...)
	return r
}

func newKept() *luntest.Kept { return luntest.NewKept("plain", 0x11, volumeSize) }

// good fails the test when a task did not end with GOOD.
func good(t testing.TB, task *scsi.Task) {
	t.Helper()
	if got := verdict(task); got != "good" {
		t.Fatal(got)
	}
}

// TestTakeover carries a unit to another server by its volume alone: what
// initiators can tell of it is as it was, but that they have lost their nexus,
// and with it what RESERVE(6) reserved. SAM-5, 6.3.4; SPC-2, 5.5.1.
func TestTakeover(t *testing.T) {
	v := newKept()
	r := keptRig(t, v)
	a, b := r.open(hostA), r.open(hostB)
	away := r.open("iqn.2026-11.io.example:away")
	list := modeList(control(0x04, 0, 0x40))
	a.ok(plainLUN, modeSelect(list), list)
	b.next(plainLUN)
	away.next(plainLUN)
	for i, h := range []*host{a, b, away} {
		good(t, h.persist(scsi.ActionPersistRegister, 0, 0, uint64(i+1), 0)) // without APTPL
	}
	away.Close()
	r.plain.Tell(lun.Threshold)
	a.next(plainLUN)
	good(t, a.persist(scsi.ActionPersistReserve, reserve.ExclusiveAccess, 1, 0, 0))
	good(t, a.persist(scsi.ActionPersistPreempt, reserve.ExclusiveAccess, 1, 3, 0)) // the one that is away

	peer := keptRig(t, v)
	a, b = peer.login(hostA, 1), peer.login(hostB, 1)
	away = peer.login("iqn.2026-11.io.example:away", 1)
	for h, attentions := range map[*host][]string{
		a: {"6h/29h/07h", "good"}, b: {"6h/29h/07h", "6h/38h/07h", "good"}, away: {"6h/29h/07h", "6h/2ah/05h", "6h/38h/07h", "good"},
	} {
		for i, want := range attentions {
			if h == away && want == "6h/38h/07h" {
				continue // it was not logged in when the threshold was crossed
			}
			if got := h.next(plainLUN); got != want {
				t.Errorf("attention %d: %s, want %s", i, got, want)
			}
		}
	}
	b.want(plainLUN, transfer(scsi.OpRead10, 0, 1), nil, "conflict")
	a.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
	if got := hexKeys(a); got != "00000004"+"00000010"+"0000000000000001"+"0000000000000002" {
		t.Errorf("generation and keys %s", got)
	}
	if task := a.do(plainLUN, transfer(scsi.OpRead10, volumeBlocks, 1), nil); task.Sense[0] != 0x72 {
		t.Error("D_SENSE did not come over")
	}
	if again := peer.login(hostB, 1); again.next(plainLUN) != "6h/29h/07h" {
		t.Error("a nexus that begins later")
	}
}

// TestTakeoverUnchanged: a unit that nothing was changed of is taken over like
// any other, RESERVE(6) ends, and a capacity that changed unseen is told.
func TestTakeoverUnchanged(t *testing.T) {
	v := newKept()
	r := keptRig(t, v)
	a := r.open(hostA) // a power on, the first time
	a.ok(plainLUN, cdb(scsi.OpReserve6), nil)
	v.Grow(1 << 20)
	peer := keptRig(t, v)
	b := peer.login(hostB, 1)
	for _, want := range []string{"6h/29h/07h", "6h/2ah/09h", "good"} {
		if got := b.next(plainLUN); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	b.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
	third := keptRig(t, v).login(hostB, 1)
	third.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/29h/07h")
	third.ok(plainLUN, cdb(scsi.OpTestUnitReady), nil)
}

// TestDurableSaves: with APTPL the state outlives a loss of power, and so does
// that APTPL has ended. No attribute is written beside it.
func TestDurableSaves(t *testing.T) {
	v := newKept()
	r := keptRig(t, v)
	a := r.open(hostA)
	for i, c := range []struct {
		do      func()
		durable bool
	}{
		{func() { good(t, a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0)) }, false},
		{func() { good(t, a.persist(scsi.ActionPersistRegister, 0, 1, 1, aptpl)) }, true},
		{func() { good(t, a.persist(scsi.ActionPersistReserve, reserve.WriteExclusive, 1, 0, 0)) }, true},
		{func() { good(t, a.persist(scsi.ActionPersistRegister, 0, 1, 1, 0)) }, true},
		{func() { good(t, a.persist(scsi.ActionPersistRelease, reserve.WriteExclusive, 1, 0, 0)) }, false},
		{func() { list := modeList(control(0x04, 0, 0)); a.ok(plainLUN, modeSelect(list), list) }, false},
		{func() { a.Manage(scsi.LogicalUnitResetFunction, scsi.MakeLUN(plainLUN), 0) }, false},
	} {
		before, _ := v.Saves()
		c.do()
		if n, durable := v.Saves(); n != before+1 || durable != c.durable {
			t.Errorf("change %d: %d saves, durable %v, want one, %v", i, n-before, durable, c.durable)
		}
	}
	before, _ := v.Saves()
	a.next(plainLUN)
	good(t, a.persist(scsi.ActionPersistReserve, reserve.WriteExclusive, 1, 0, 0))
	good(t, a.persist(scsi.ActionPersistReserve, reserve.WriteExclusive, 1, 0, 0)) // changes nothing
	if n, _ := v.Saves(); n != before+1 {
		t.Errorf("%d saves for one change", n-before)
	}
	if kept, err := v.Attribute("scsi-reservations"); kept != nil || err != nil {
		t.Errorf("there is an attribute: %q, %v", kept, err)
	}
}

// TestBecomesKept: a volume that kept its reservations as an attribute brings
// them along, once.
func TestBecomesKept(t *testing.T) {
	v := newKept()
	plain := lun.NewServer()
	if err := plain.AddVolume(v.RAM); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, srv: plain, plain: v.RAM, other: luntest.NewRAM("other", 0x22, volumeSize)}
	r.view(mappings(r)[:1]...)
	a := r.login(hostA, 1)
	a.next(plainLUN)
	good(t, a.persist(scsi.ActionPersistRegister, 0, 0, 7, aptpl))
	plain.Close()

	a = keptRig(t, v).open(hostA)
	if got := hexKeys(a); !strings.HasSuffix(got, "0000000000000007") {
		t.Errorf("keys %s", got)
	}
	if _, durable := v.Saves(); !durable {
		t.Error("what was kept durably is not")
	}
	if kept, _ := v.Attribute("scsi-reservations"); kept != nil {
		t.Error("the attribute is still there")
	}
}

// TestForeignState: the state of another volume, which had the place before, is
// not this one's; one that cannot be read keeps the volume from being served.
func TestForeignState(t *testing.T) {
	v := newKept()
	a := keptRig(t, v).open(hostA)
	good(t, a.persist(scsi.ActionPersistRegister, 0, 0, 7, 0))
	other := luntest.NewKept("new", 0x12, volumeSize)
	if err := other.SaveState(v.State(), false); err != nil {
		t.Fatal(err)
	}
	srv := lun.NewServer()
	if err := srv.AddVolume(other); err != nil {
		t.Fatal(err)
	}
	if got := srv.Units()[0].Reservations.Registrations; len(got) > 0 {
		t.Errorf("registrations of another volume: %v", got)
	}
	for damage, kind := range map[int]fault.Kind{0: fault.Invalid, 32: fault.Corrupt} {
		b := v.State()
		b[damage] = 0x77
		broken := newKept()
		if err := broken.SaveState(b, false); err != nil {
			t.Fatal(err)
		}
		if err := lun.NewServer().AddVolume(broken); !fault.Is(err, kind) {
			t.Errorf("byte %d damaged: %v", damage, err)
		}
	}
}

// TestFailedSave: what cannot be saved is not done, and its error is told.
func TestFailedSave(t *testing.T) {
	v := newKept()
	r := keptRig(t, v)
	a, b := r.open(hostA), r.open(hostB)
	good(t, a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0))
	list := modeList(control(0x04, 0, 0))
	a.ok(plainLUN, modeSelect(list), list)
	b.next(plainLUN)
	state := v.State()
	v.Fail = func(op string, _, _ int64) error {
		if op == "save" {
			return fault.New(fault.Fenced, "the epoch is over")
		}
		return nil
	}
	const transition = "2h/04h/0ah"
	if got := verdict(b.persist(scsi.ActionPersistRegister, 0, 0, 2, 0)); got != transition {
		t.Errorf("REGISTER: %s", got)
	}
	if got := verdict(a.persist(scsi.ActionPersistReserve, reserve.ExclusiveAccess, 1, 0, 0)); got != transition {
		t.Errorf("RESERVE: %s", got)
	}
	wce := append([]byte{0x08, 0x12, 0x04}, make([]byte, 17)...)
	list = modeList(wce, control(0x04, 0x08, 0))
	a.want(plainLUN, modeSelect(list), list, transition)
	if v.WriteCache() {
		t.Error("a MODE SELECT that failed has switched the write cache on")
	}
	a.next(plainLUN) // the cache was on and off again
	b.next(plainLUN)
	for _, f := range []scsi.Function{scsi.LogicalUnitResetFunction, scsi.TargetWarmReset} {
		if got := a.Manage(f, scsi.MakeLUN(plainLUN), 0); got != scsi.FunctionRejected {
			t.Errorf("a reset that cannot be saved: %d", got)
		}
		a.next(plainLUN)
		b.next(plainLUN)
	}
	if err := r.srv.ClearReservations(v.ID()); !fault.Is(err, fault.Fenced) {
		t.Errorf("ClearReservations: %v", err)
	}
	v.Fail = nil
	b.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
	if got := hexKeys(b); got != "00000001"+"00000008"+"0000000000000001" {
		t.Errorf("keys after all that: %s", got)
	}
	if task := a.do(plainLUN, transfer(scsi.OpRead10, volumeBlocks, 1), nil); task.Sense[0] != 0x72 {
		t.Error("the reset that failed changed D_SENSE")
	}
	if !bytes.Equal(v.State(), state) {
		t.Error("the saved state has changed")
	}
}

// TestSaveComesFirst: while a save waits for another node there is no answer
// and no effect, and reads and writes go on.
func TestSaveComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newKept()
		r := keptRig(t, v)
		a, b := r.open(hostA), r.open(hostB)
		good(t, a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0))
		saving := make(chan struct{})
		v.Gate = func(op string, _, _ int64) {
			if op == "save" {
				<-saving
			}
		}
		answer := make(chan string, 1)
		go func() {
			answer <- verdict(a.persist(scsi.ActionPersistReserve, reserve.ExclusiveAccess, 1, 0, 0))
		}()
		synctest.Wait()
		b.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1)) // it does not hold yet
		b.ok(plainLUN, transfer(scsi.OpRead10, 0, 1), nil)
		hexKeys(b)
		r.login(hostB, 2).next(plainLUN)
		select {
		case got := <-answer:
			t.Errorf("RESERVE was answered before it was saved: %s", got)
		default:
		}
		close(saving)
		if got := <-answer; got != "good" {
			t.Error(got)
		}
		b.want(plainLUN, transfer(scsi.OpRead10, 0, 1), nil, "conflict")
	})
}

// TestSavesInTurn: saves of one unit are never under way at once, and the last
// one has all of them.
func TestSavesInTurn(t *testing.T) {
	v := newKept()
	r := keptRig(t, v)
	var inSave atomic.Int32
	v.Gate = func(op string, _, _ int64) {
		if op == "save" && inSave.Add(1) != 1 {
			t.Error("two saves at once")
		}
		time.Sleep(time.Millisecond)
		inSave.Add(-1)
	}
	const hosts = 8
	var all sync.WaitGroup
	for i := range hosts {
		h := r.open(fmt.Sprintf("iqn.2026-11.io.example:h%d", i))
		all.Go(func() {
			for n := range uint64(8) {
				if got := verdict(h.persist(scsi.ActionPersistRegister, 0, n, n+1, 0)); got != "good" {
					t.Error(got)
				}
			}
		})
	}
	all.Wait()
	again := lun.NewServer()
	if err := again.AddVolume(v); err != nil {
		t.Fatal(err)
	}
	if got := again.Units()[0].Reservations; len(got.Registrations) != hosts || got.Generation != 8*hosts {
		t.Errorf("%d registrations, generation %d", len(got.Registrations), got.Generation)
	}
}

// TestLostGroup: a volume whose group is lost fails everything as fenced, which
// is a state that initiators wait out; its unit goes at once, whatever is under
// way.
func TestLostGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newKept()
		r := keptRig(t, v)
		a := r.open(hostA)
		lost := make(chan struct{})
		v.Gate = func(string, int64, int64) { <-lost }
		v.Fail = func(string, int64, int64) error { return fault.New(fault.Fenced, "the epoch is over") }
		v.Cold.Store(true)
		ends := make(chan string, 8)
		extents := unmapList(scsi.Extent{LBA: 0, Blocks: 8})
		commands := [][2][]byte{
			{transfer(scsi.OpRead10, 0, 1), nil},
			{transfer(scsi.OpWrite10, 0, 1), pattern(1, 1)},
			{unmapCDB(extents), extents},
			{transfer(scsi.OpSynchronizeCache10, 0, 0), nil},
			{cdb(scsi.OpCompareAndWrite, 13, uint8(1)), pattern(0, 2)},
			{persistCDB(scsi.ActionPersistRegister, 0), persistList(0, 1, 0)},
		}
		for _, c := range commands {
			task := a.begin(plainLUN, c[0], c[1])
			go func() {
				a.Execute(task)
				ends <- fmt.Sprintf("%02xh %s", task.CDB[0], verdict(task))
			}()
		}
		synctest.Wait()
		removed := make(chan error, 1)
		go func() { removed <- r.srv.RemoveVolume(v.ID()) }()
		synctest.Wait()
		if err := r.srv.AddVolume(v); !fault.Is(err, fault.Busy) {
			t.Errorf("adding a volume whose unit is being removed: %v", err)
		}
		close(lost)
		if err := <-removed; err != nil {
			t.Error(err)
		}
		for range commands {
			// Nobody hears these; what there is must not be an error of the medium
			// or of the request all the same.
			if got := <-ends; !strings.HasSuffix(got, "2h/04h/0ah") && !strings.HasSuffix(got, "status 40h, sense ") {
				t.Error(got)
			}
		}
	})
}

// TestFencedSense: what an initiator is told by a unit whose volume this node
// may not act for: a transition between access states.
func TestFencedSense(t *testing.T) {
	r := newRig(t)
	a := r.open(hostA)
	r.plain.Fail = func(string, int64, int64) error { return fault.New(fault.Fenced, "the epoch is over") }
	r.plain.Cold.Store(true)
	for _, c := range [][2][]byte{
		{transfer(scsi.OpRead10, 0, 1), nil},
		{transfer(scsi.OpRead10, 0, 1024), nil},
		{transfer(scsi.OpVerify10, 0, 1), nil},
		{transfer(scsi.OpWrite10, 0, 1), pattern(1, 1)},
		{transfer(scsi.OpWriteVerify10, 0, 1), pattern(1, 1)},
		{transfer(scsi.OpWriteSame16, 0, 8), pattern(1, 1)},
		{transfer(scsi.OpOrWrite16, 0, 1), pattern(1, 1)},
		{cdb(scsi.OpCompareAndWrite, 13, uint8(1)), pattern(0, 2)},
		{unmapCDB(unmapList(scsi.Extent{LBA: 0, Blocks: 8})), unmapList(scsi.Extent{LBA: 0, Blocks: 8})},
		{transfer(scsi.OpSynchronizeCache10, 0, 0), nil},
		{cdb(scsi.OpServiceActionIn16, 1, uint8(scsi.ActionGetLBAStatus), 10, uint32(24)), nil},
		{cdb(scsi.OpStartStopUnit), nil},
		{persistCDB(scsi.ActionPersistRegister, 0), persistList(0, 1, aptpl)},
	} {
		a.want(plainLUN, c[0], c[1], "2h/04h/0ah")
	}
	c, out := a.copyOf(1, []int{plainLUN, otherLUN}, segment{0, 1, 8, 0, 0})
	if got := verdict(a.do(plainLUN, c, out)); got == "good" || strings.HasPrefix(got, "3h") || strings.HasPrefix(got, "5h") {
		t.Errorf("EXTENDED COPY: %s", got)
	}
}

// TestRegistrationsBound: as many registrations as there may be, each by
// another port and target with the longest names, fit into what a StateKeeper
// takes, and come back; one more is refused.
func TestRegistrationsBound(t *testing.T) {
	const targets = 256
	v := newKept()
	srv := lun.NewServer()
	if err := srv.AddVolume(v); err != nil {
		t.Fatal(err)
	}
	long := func(prefix string, i, n int) string {
		s := fmt.Sprintf("iqn.2026-11.io.example:%s%04d.", prefix, i)
		return s + strings.Repeat("x", n-len(s))
	}
	for i := range targets {
		if err := srv.SetView(long("t", i, 223), map[string][]lun.Mapping{lun.Any: {{LUN: plainLUN, Volume: v.ID()}}}); err != nil {
			t.Fatal(err)
		}
	}
	register := func(i int) string {
		h := &host{t: t}
		initiator := long("i", i, 238)
		n := scsi.Nexus{InitiatorName: initiator, InitiatorPort: initiator + ",i,0x000000000001", TargetName: long("t", i%targets, 223), TargetPort: 1}
		var err error
		if h.Port, err = srv.OpenPort(n, h); err != nil {
			t.Fatal(err)
		}
		h.next(plainLUN)
		return verdict(h.persist(scsi.ActionPersistRegister, 0, 0, uint64(i+1), 0))
	}
	for i := range reserve.RegistrationsMax {
		if got := register(i); got != "good" {
			t.Fatalf("registration %d: %s", i, got)
		}
		if got := len(v.State()); got > lun.StateMax {
			t.Fatalf("%d registrations take %d bytes", i+1, got)
		}
	}
	if got := register(reserve.RegistrationsMax); got != "5h/55h/04h" {
		t.Errorf("one more registration: %s", got)
	}
	t.Logf("%d bytes of %d", len(v.State()), lun.StateMax)
	again := lun.NewServer()
	if err := again.AddVolume(v); err != nil {
		t.Fatal(err)
	}
	if got := len(again.Units()[0].Reservations.Registrations); got != reserve.RegistrationsMax {
		t.Errorf("%d registrations came back", got)
	}
}
