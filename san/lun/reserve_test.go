package lun_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"steadfast/fault"
	"steadfast/san/lun"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// persist does a PERSISTENT RESERVE OUT. SPC-4, 6.16.
func (h *host) persist(action uint8, kind reserve.Type, key, actionKey uint64, flags byte) *scsi.Task {
	h.t.Helper()
	return h.do(plainLUN, persistCDB(action, kind), persistList(key, actionKey, flags))
}

func persistCDB(action uint8, kind reserve.Type) []byte {
	return cdb(scsi.OpPersistentOut, 1, action, 2, uint8(kind), 5, uint32(24))
}

func persistList(key, actionKey uint64, flags byte) []byte {
	list := make([]byte, 24)
	binary.BigEndian.PutUint64(list, key)
	binary.BigEndian.PutUint64(list[8:], actionKey)
	list[20] = flags
	return list
}

const aptpl = 0x01

// judged is a command that reservations judge.
type judged struct {
	name string
	cdb  []byte
	out  []byte
	// whether a stranger's is refused under write exclusive and exclusive
	// access types
	write, exclusive bool
}

// judgedCommands are commands of each class. SPC-4, table 68; SBC-3, table 13.
func judgedCommands() []judged {
	return []judged{
		{"TEST UNIT READY", cdb(scsi.OpTestUnitReady), nil, false, false},
		{"READ CAPACITY", cdb(scsi.OpReadCapacity10), nil, false, false},
		{"LOG SENSE", cdb(scsi.OpLogSense, 7, uint16(64)), nil, false, false},
		{"PERSISTENT RESERVE IN", cdb(scsi.OpPersistentIn, 7, uint16(64)), nil, false, false},
		{"READ(10)", transfer(scsi.OpRead10, 0, 1), nil, false, true},
		{"READ(16)", transfer(scsi.OpRead16, 0, 1), nil, false, true},
		{"VERIFY", transfer(scsi.OpVerify10, 0, 1), nil, false, true},
		{"MODE SENSE", cdb(scsi.OpModeSense6, 2, uint8(0x3f), 4, uint8(255)), nil, false, true},
		{"GET LBA STATUS", cdb(scsi.OpServiceActionIn16, 1, uint8(scsi.ActionGetLBAStatus), 10, uint32(24)), nil, false, true},
		{"WRITE(10)", transfer(scsi.OpWrite10, 0, 1), pattern(0, 1), true, true},
		{"UNMAP", unmapCDB(unmapList()), unmapList(), true, true},
		{"WRITE SAME", transfer(scsi.OpWriteSame10, 0, 1), pattern(0, 1), true, true},
		{"COMPARE AND WRITE", cdb(scsi.OpCompareAndWrite, 13, uint8(1)), pattern(0, 2), true, true},
		{"SYNCHRONIZE CACHE", transfer(scsi.OpSynchronizeCache10, 0, 0), nil, true, true},
		{"STOP", cdb(scsi.OpStartStopUnit), nil, true, true},
		{"MODE SELECT", modeSelect(nil), nil, true, true},
	}
}

// TestReservationAccess holds each type against each class of command, for the
// holder, another registrant and a stranger.
func TestReservationAccess(t *testing.T) {
	commands := judgedCommands()
	for _, c := range []struct {
		kind             reserve.Type
		registrants      bool // may do what the holder may
		write, exclusive bool
	}{
		{reserve.WriteExclusive, false, true, false},
		{reserve.ExclusiveAccess, false, true, true},
		{reserve.WriteExclusiveRegistrantsOnly, true, true, false},
		{reserve.ExclusiveAccessRegistrantsOnly, true, true, true},
		{reserve.WriteExclusiveAllRegistrants, true, true, false},
		{reserve.ExclusiveAccessAllRegistrants, true, true, true},
	} {
		t.Run(c.kind.String(), func(t *testing.T) {
			r := newRig(t)
			holder, registrant, stranger := r.open(hostA), r.open(hostB), r.open("iqn.2026-11.io.example:c")
			for i, h := range []*host{holder, registrant} {
				if got := verdict(h.persist(scsi.ActionPersistRegister, 0, 0, uint64(i+1), 0)); got != "good" {
					t.Fatal(got)
				}
			}
			if got := verdict(holder.persist(scsi.ActionPersistReserve, c.kind, 1, 0, 0)); got != "good" {
				t.Fatal(got)
			}
			for _, x := range commands {
				refused := "good"
				if x.write && c.write || x.exclusive && c.exclusive {
					refused = "conflict"
				}
				holder.ok(plainLUN, x.cdb, x.out)
				stranger.want(plainLUN, x.cdb, x.out, refused)
				if c.registrants {
					refused = "good"
				}
				registrant.want(plainLUN, x.cdb, x.out, refused)
			}
			if got := verdict(registrant.persist(scsi.ActionPersistReserve, c.kind, 2, 0, 0)); (got == "good") != c.kind.AllRegistrants() {
				t.Errorf("RESERVE of another registrant: %s", got)
			}
			if got := verdict(stranger.persist(scsi.ActionPersistClear, 0, 0, 0, 0)); got != "conflict" {
				t.Errorf("CLEAR of a stranger: %s", got)
			}
			if got := verdict(holder.persist(scsi.ActionPersistRelease, c.kind, 1, 0, 0)); got != "good" {
				t.Errorf("RELEASE: %s", got)
			}
			want := "good"
			if c.registrants {
				want = "6h/2ah/04h" // RESERVATIONS RELEASED
			}
			if got := registrant.next(plainLUN); got != want {
				t.Errorf("the registrant is told %s, want %s", got, want)
			}
			stranger.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(0, 1))
		})
	}
}

// TestPreempted: attentions of those who lose their registration, and of those
// whose reservation changes its type. SPC-4, 5.13.11.
func TestPreempted(t *testing.T) {
	r := newRig(t)
	a, b := r.open(hostA), r.open(hostB)
	a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0)
	b.persist(scsi.ActionPersistRegister, 0, 0, 2, 0)
	a.persist(scsi.ActionPersistReserve, reserve.WriteExclusive, 1, 0, 0)
	if got := verdict(b.persist(scsi.ActionPersistPreempt, reserve.ExclusiveAccess, 2, 1, 0)); got != "good" {
		t.Fatal(got)
	}
	a.want(plainLUN, transfer(scsi.OpRead10, 0, 1), nil, "6h/2ah/05h")
	a.want(plainLUN, transfer(scsi.OpRead10, 0, 1), nil, "conflict")
	if got := hexKeys(b); got != "0000000300000008"+"0000000000000002" {
		t.Errorf("keys %s", got)
	}
	a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0)
	if got := verdict(b.persist(scsi.ActionPersistClear, 0, 2, 0, 0)); got != "good" {
		t.Fatal(got)
	}
	a.want(plainLUN, transfer(scsi.OpRead10, 0, 1), nil, "6h/2ah/03h")
	a.ok(plainLUN, transfer(scsi.OpRead10, 0, 1), nil)
}

// hexKeys returns READ KEYS data.
func hexKeys(h *host) string {
	h.t.Helper()
	return hexOf(h.ok(plainLUN, cdb(scsi.OpPersistentIn, 7, uint16(256)), nil))
}

// TestPersistThroughPowerLoss: with APTPL, reservations are there before any
// command of a new device server, and without not at all. When they cannot be
// stored nothing changes; when they cannot be read the volume is not served.
func TestPersistThroughPowerLoss(t *testing.T) {
	r := newRig(t)
	a, b := r.open(hostA), r.open(hostB)
	a.persist(scsi.ActionPersistRegister, 0, 0, 1, aptpl)
	a.persist(scsi.ActionPersistReserve, reserve.ExclusiveAccess, 1, 0, 0)
	full := errors.New("the attribute cannot be stored")
	r.plain.Fail = func(op string, _, _ int64) error {
		if op == "attribute" {
			return fault.Wrap(fault.Failed, full, "")
		}
		return nil
	}
	if got := verdict(b.persist(scsi.ActionPersistRegister, 0, 0, 2, aptpl)); got != "4h/44h/00h" {
		t.Errorf("a REGISTER that cannot be stored: %s", got)
	}
	r.plain.Fail = nil
	if got := hexKeys(b); got != "0000000100000008"+"0000000000000001" {
		t.Errorf("keys after it: %s", got)
	}
	restart := func() {
		t.Helper()
		r.srv.Close()
		r.srv = lun.NewServer()
		if err := r.srv.AddVolume(r.plain); err != nil {
			t.Fatal(err)
		}
		r.view(mappings(r)[:1]...)
		a, b = r.login(hostA, 1), r.login(hostB, 1)
		a.next(plainLUN)
		b.next(plainLUN)
	}
	restart()
	b.want(plainLUN, transfer(scsi.OpRead10, 0, 1), nil, "conflict")
	a.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
	if got := a.ok(plainLUN, cdb(scsi.OpPersistentIn, 1, uint8(scsi.ActionPersistCapabilities), 7, uint16(8)), nil); got[3]&1 == 0 {
		t.Error("PTPL_A is clear")
	}
	a.persist(scsi.ActionPersistRegister, 0, 1, 1, 0) // without APTPL from here on
	restart()
	b.ok(plainLUN, transfer(scsi.OpRead10, 0, 1), nil)

	if err := r.plain.SetAttribute("scsi-reservations", []byte("torn")); err != nil {
		t.Fatal(err)
	}
	if err := lun.NewServer().AddVolume(r.plain); !fault.Is(err, fault.Corrupt) {
		t.Errorf("a volume with unreadable reservations: %v", err)
	}
}

// TestMoveAndSpecified: REGISTER AND MOVE, SPEC_I_PT and READ FULL STATUS.
// SPC-4, 5.13.7, 5.13.8, 6.15.5.
func TestMoveAndSpecified(t *testing.T) {
	r := newRig(t)
	a, b := r.open(hostA), r.open(hostB)
	id := scsi.AppendTransportID(nil, hostB+",i,0x000000000001")
	list := append(persistList(0, 7, 0x08), 0, 0, 0, byte(len(id)))
	list = append(list, id...)
	a.ok(plainLUN, cdb(scsi.OpPersistentOut, 5, uint32(len(list))), list)
	if got := verdict(b.persist(scsi.ActionPersistReserve, reserve.WriteExclusive, 7, 0, 0)); got != "good" {
		t.Fatalf("the initiator port that was specified: %s", got)
	}
	move := persistList(7, 9, 0)
	binary.BigEndian.PutUint16(move[18:], 1)
	id = scsi.AppendTransportID(nil, hostA+",i,0x000000000001")
	binary.BigEndian.PutUint32(move[20:], uint32(len(id)))
	move = append(move, id...)
	away := bytes.Clone(move)
	binary.BigEndian.PutUint16(away[18:], 7) // a port that there is not
	b.want(plainLUN, cdb(scsi.OpPersistentOut, 1, uint8(scsi.ActionPersistRegisterMove), 5, uint32(len(move))), away, "5h/26h/00h")
	b.ok(plainLUN, cdb(scsi.OpPersistentOut, 1, uint8(scsi.ActionPersistRegisterMove), 5, uint32(len(move))), move)
	b.want(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1), "conflict")
	a.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
	full := a.ok(plainLUN, cdb(scsi.OpPersistentIn, 1, uint8(scsi.ActionPersistReadFull), 7, uint16(1024)), nil)
	for _, h := range []string{hostA, hostB} {
		if !bytes.Contains(full, []byte(h+",i,0x000000000001")) {
			t.Errorf("READ FULL STATUS does not name %s", h)
		}
	}
	if got := a.ok(plainLUN, cdb(scsi.OpPersistentIn, 1, uint8(scsi.ActionPersistReadReserved), 7, uint16(64)), nil); len(got) != 24 || got[15] != 9 || got[21] != 1 {
		t.Errorf("READ RESERVATION % x", got)
	}
}

// TestReservationRefusals: what PERSISTENT RESERVE OUT refuses, and how.
// SPC-4, 5.13, 6.16.
func TestReservationRefusals(t *testing.T) {
	r := newRig(t)
	a := r.open(hostA)
	a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0)
	a.persist(scsi.ActionPersistReserve, reserve.WriteExclusive, 1, 0, 0)
	scoped := persistCDB(scsi.ActionPersistReserve, reserve.WriteExclusive)
	scoped[2] |= 0x20
	for _, c := range []struct {
		name string
		cdb  []byte
		list []byte
		ends string
	}{
		{"wrong key", persistCDB(scsi.ActionPersistRelease, reserve.WriteExclusive), persistList(2, 0, 0), "conflict"},
		{"release of another type", persistCDB(scsi.ActionPersistRelease, reserve.ExclusiveAccess), persistList(1, 0, 0), "5h/26h/04h"},
		{"another type", persistCDB(scsi.ActionPersistReserve, reserve.ExclusiveAccess), persistList(1, 0, 0), "conflict"},
		{"unknown type", persistCDB(scsi.ActionPersistReserve, 2), persistList(1, 0, 0), "5h/24h/00h"},
		{"scope", scoped, persistList(1, 0, 0), "5h/24h/00h"},
		{"preempting nobody", persistCDB(scsi.ActionPersistPreempt, reserve.WriteExclusive), persistList(1, 9, 0), "conflict"},
		{"preempting key 0", persistCDB(scsi.ActionPersistPreempt, reserve.WriteExclusive), persistList(1, 0, 0), "5h/26h/00h"},
		{"short list", persistCDB(scsi.ActionPersistReserve, reserve.WriteExclusive), persistList(1, 0, 0)[:23], "5h/1ah/00h"},
		{"unknown action", persistCDB(0x1f, 0), persistList(1, 0, 0), "5h/24h/00h"},
	} {
		if got := verdict(a.do(plainLUN, c.cdb, c.list)); got != c.ends {
			t.Errorf("%s: %s, want %s", c.name, got, c.ends)
		}
	}
	// An initiator name without a port stands for the ports that are logged in.
	r.login(hostB, 1)
	named := func(name string) []byte {
		id := make([]byte, 4+(len(name)+4)&^3)
		id[0], id[3] = 0x05, byte(len(id)-4)
		copy(id[4:], name)
		list := append(persistList(0, 7, 0x08), 0, 0, 0, byte(len(id)))
		return append(list, id...)
	}
	c := r.open("iqn.2026-11.io.example:c")
	for name, ends := range map[string]string{"iqn.2026-11.io.example:nobody": "5h/26h/00h", hostB: "good"} {
		list := named(name)
		c.want(plainLUN, cdb(scsi.OpPersistentOut, 5, uint32(len(list))), list, ends)
	}
	if got := hexKeys(a); !strings.HasSuffix(got, "0000000000000007"+"0000000000000007") {
		t.Errorf("keys %s", got)
	}
}

// TestAllPorts: a registration with ALL_TG_PT counts on every target port.
// SPC-4, 5.13.7.
func TestAllPorts(t *testing.T) {
	r := newRig(t)
	r.srv.SetPortGroups([]scsi.PortGroup{{ID: 1, Ports: []uint16{1, 2}}})
	one, two := r.login(hostA, 1), r.login(hostA, 2)
	one.next(plainLUN)
	two.next(plainLUN)
	one.persist(scsi.ActionPersistRegister, 0, 0, 1, 0x04)
	one.persist(scsi.ActionPersistReserve, reserve.WriteExclusiveRegistrantsOnly, 1, 0, 0)
	two.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
}

// TestLegacyReservation: RESERVE(6), which ends with the nexus, by a reset and
// by RELEASE, and its neighbourhood with persistent ones. SPC-2, 5.5.1 and
// 7.21; SPC-4, 5.13.3.
func TestLegacyReservation(t *testing.T) {
	r := newRig(t)
	a, b := r.open(hostA), r.open(hostB)
	write := func(h *host) string {
		return verdict(h.do(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1)))
	}
	take := func() {
		t.Helper()
		a.ok(plainLUN, cdb(scsi.OpReserve6), nil)
		a.ok(plainLUN, cdb(scsi.OpReserve6), nil)
		b.want(plainLUN, cdb(scsi.OpReserve6), nil, "conflict")
		b.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "conflict")
		b.ok(plainLUN, cdb(scsi.OpInquiry, 3, uint16(96)), nil)
		b.ok(plainLUN, cdb(scsi.OpRelease6), nil) // not its own: nothing happens
		if write(a) != "good" || write(b) != "conflict" {
			t.Error("the reservation does not hold")
		}
		if got := verdict(a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0)); got != "conflict" {
			t.Errorf("PERSISTENT RESERVE OUT beside RESERVE(6): %s", got)
		}
	}
	take()
	a.ok(plainLUN, cdb(scsi.OpRelease6), nil)
	if write(b) != "good" {
		t.Error("RELEASE does not release")
	}
	take()
	b.Manage(scsi.LogicalUnitResetFunction, scsi.MakeLUN(plainLUN), 0)
	a.next(plainLUN)
	b.next(plainLUN)
	if write(b) != "good" {
		t.Error("a reset does not release")
	}
	take()
	a.Close()
	if write(b) != "good" {
		t.Error("the end of the nexus does not release")
	}
	b.persist(scsi.ActionPersistRegister, 0, 0, 2, 0)
	a = r.open(hostA)
	a.want(plainLUN, cdb(scsi.OpReserve6), nil, "conflict")
	b.ok(plainLUN, cdb(scsi.OpReserve6), nil)
	if write(a) != "good" {
		t.Error("RESERVE(6) of a registrant reserved something")
	}
}
