package lun_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"steadfast/fault"
	"steadfast/san/lun"
	"steadfast/san/lun/luntest"
	"steadfast/san/lun/reserve"
	"steadfast/scsi"
)

// A resource group's ports as tests have them: an alias, and a portal of each
// of two nodes, this one's and another one's.
const aliasPort, ownPort, farPort = 101, 1, 2

// groupPorts are the port groups of a multipath group's unit.
func groupPorts(own, far scsi.AccessState) []scsi.PortGroup {
	return []scsi.PortGroup{
		{ID: aliasPort, Ports: []uint16{aliasPort}},
		{ID: ownPort, State: own, Ports: []uint16{ownPort}},
		{ID: farPort, State: far, Ports: []uint16{farPort}},
	}
}

// portGroups returns what REPORT TARGET PORT GROUPS and VPD page 83h tell a
// nexus, in hex: the list, and the number of its own group.
func (h *host) portGroups(n int) (list, own string) {
	h.t.Helper()
	list = hex.EncodeToString(h.ok(n, cdb(scsi.OpMaintenanceIn, 1, uint8(scsi.ActionReportTargetPortGroups), 6, uint32(256)), nil)[4:])
	page := h.vpd(n, scsi.VPDIdentification)
	at := bytes.Index(page, []byte{0x51, 0x95, 0, 4}) // binary, of a port, a port group
	if at < 0 {
		h.t.Fatal("page 83h names no port group")
	}
	return list, hex.EncodeToString(page[at+6 : at+8])
}

// TestUnitPorts: two units have different port groups; each tells its own, is
// seen through its own, and hears of its own. SPC-4, 5.15.2 and 6.37.
func TestUnitPorts(t *testing.T) {
	r := newRig(t)
	r.srv.SetPortGroups([]scsi.PortGroup{{ID: 7, Ports: []uint16{ownPort}}})
	r.srv.SetUnitPorts(r.plain.ID(), groupPorts(scsi.ActiveOptimized, scsi.Standby))
	alias, own := r.login(hostA, aliasPort), r.open(hostB)
	alias.next(plainLUN)
	alias.next(otherLUN) // it has the server's groups, and any port is good for it
	const both = "008f0065" + "00020001" + "00000065" + "008f0001" + "00020001" + "00000001" + "028f0002" + "00020001" + "00000002"
	for h, id := range map[*host]string{alias: "0065", own: "0001"} {
		if list, mine := h.portGroups(plainLUN); list != both || mine != id {
			t.Errorf("port groups %s, own %s, want %s, %s", list, mine, both, id)
		}
	}
	if list, mine := own.portGroups(otherLUN); list != "008f0007"+"00020001"+"00000001" || mine != "0007" {
		t.Errorf("the other unit's: %s, own %s", list, mine)
	}

	// The other node becomes the owner.
	for _, c := range []struct {
		own, far scsi.AccessState
		answer   string
	}{{scsi.Transitioning, scsi.Transitioning, "2h/04h/0ah"}, {scsi.Standby, scsi.ActiveOptimized, "2h/04h/0bh"}, {scsi.ActiveOptimized, scsi.Standby, "good"}} {
		r.srv.SetUnitPorts(r.plain.ID(), groupPorts(c.own, c.far))
		for _, h := range []*host{alias, own} {
			h.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/2ah/06h")
			h.want(otherLUN, cdb(scsi.OpTestUnitReady), nil, "good")
		}
		own.want(plainLUN, transfer(scsi.OpRead10, 0, 1), nil, c.answer)
		alias.ok(plainLUN, transfer(scsi.OpRead10, 0, 1), nil)
		r.srv.SetUnitPorts(r.plain.ID(), groupPorts(c.own, c.far)) // the same again
		alias.ok(plainLUN, cdb(scsi.OpTestUnitReady), nil)
	}
}

// TestUnitPortsSeen: a nexus sees a unit through its ports only, whenever they
// are said, and until they are taken back.
func TestUnitPortsSeen(t *testing.T) {
	r := newRig(t)
	own, alias := r.open(hostA), r.login(hostB, aliasPort)
	alias.next(plainLUN)
	alias.next(otherLUN)
	r.srv.SetUnitPorts(r.plain.ID(), []scsi.PortGroup{{ID: aliasPort, Ports: []uint16{aliasPort}}})
	own.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "5h/25h/00h")
	own.want(otherLUN, cdb(scsi.OpTestUnitReady), nil, "6h/3fh/0eh")
	alias.ok(plainLUN, cdb(scsi.OpTestUnitReady), nil)
	r.srv.SetUnitPorts(r.plain.ID(), nil)
	own.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/29h/00h")

	// Before the volume is a unit, and no longer than it is.
	third := luntest.NewRAM("third", 0x33, volumeSize)
	r.view(append(mappings(r), lun.Mapping{LUN: 5, Volume: third.ID()})...)
	r.srv.SetUnitPorts(third.ID(), []scsi.PortGroup{{ID: aliasPort, Ports: []uint16{aliasPort}, State: scsi.Standby}})
	for _, seen := range []string{"5h/25h/00h", "6h/29h/00h"} {
		if err := r.srv.AddVolume(third); err != nil {
			t.Fatal(err)
		}
		own.want(5, cdb(scsi.OpTestUnitReady), nil, seen)
		if err := r.srv.RemoveVolume(third.ID()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUnitPortsWait: a task that came through a port that is taken away has
// landed before SetUnitPorts returns; a change of states waits for none.
func TestUnitPortsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, d, victim, _ := ghostRig(t)
		d.close()
		task := victim.begin(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
		go victim.Execute(task)
		synctest.Wait()
		r.srv.SetUnitPorts(r.plain.ID(), groupPorts(scsi.Standby, scsi.ActiveOptimized))
		done := make(chan struct{})
		go func() {
			r.srv.SetUnitPorts(r.plain.ID(), groupPorts(scsi.Standby, scsi.ActiveOptimized)[:1])
			close(done)
		}()
		synctest.Wait()
		select {
		case <-done:
			t.Error("it returned while a write is in the device")
		default:
		}
		d.open()
		<-done
	})
}

// TestUnitPortsRegister: ALL_TG_PT means the unit's own ports, those of the
// other node too; what is registered there counts there. SPC-4, 5.13.7.
func TestUnitPortsRegister(t *testing.T) {
	v := newKept()
	r := keptRig(t, v)
	r.srv.SetUnitPorts(v.ID(), groupPorts(scsi.ActiveOptimized, scsi.Standby))
	h := r.login(hostA, aliasPort)
	h.next(plainLUN)
	good(t, h.persist(scsi.ActionPersistRegister, 0, 0, 1, 0x04))
	good(t, h.persist(scsi.ActionPersistReserve, reserve.WriteExclusiveRegistrantsOnly, 1, 0, 0))
	if got := len(r.srv.Units()[1].Reservations.Registrations); got != 3 {
		t.Fatalf("%d registrations, want one for each port", got)
	}
	peer := keptRig(t, v)
	peer.srv.SetUnitPorts(v.ID(), groupPorts(scsi.Standby, scsi.ActiveOptimized))
	for _, port := range []uint16{aliasPort, farPort} {
		h := peer.login(hostA, port)
		h.next(plainLUN)
		h.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
	}
	stranger := peer.login(hostB, aliasPort)
	stranger.next(plainLUN)
	stranger.want(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1), "conflict")
}

// standbyOf returns what another node has of a volume.
func standbyOf(v *luntest.Kept) *lun.Standby {
	return lun.NewStandby(lun.Metadata{ID: v.ID(), Name: v.Name(), Size: v.Size()}, func() ([]byte, error) { return v.State(), nil })
}

// TestStandby: a unit that another node serves says who it is and how large,
// whom it is reserved for and where it is served, and nothing else.
// SPC-4, 5.15.2.4.4.
func TestStandby(t *testing.T) {
	v := newKept()
	owner := keptRig(t, v)
	a := owner.open(hostA)
	good(t, a.persist(scsi.ActionPersistRegister, 0, 0, 1, 0))
	list := modeList(control(0, 0, 0x40))
	a.ok(plainLUN, modeSelect(list), list)

	r := &rig{t: t, srv: lun.NewServer(), plain: v.RAM, other: luntest.NewRAM("other", 0x22, volumeSize)}
	s := standbyOf(v)
	r.srv.SetUnitPorts(v.ID(), groupPorts(scsi.Standby, scsi.ActiveOptimized))
	if err := r.srv.AddVolume(s); err != nil {
		t.Fatal(err)
	}
	r.view(mappings(r)[:1]...)
	b := r.login(hostB, ownPort)
	for _, want := range []string{"6h/29h/07h", "2h/04h/0bh"} {
		if got := b.next(plainLUN); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	modeSense := cdb(scsi.OpModeSense6, 1, uint8(0x08), 2, uint8(0x0a), 4, uint8(255))
	for name, c := range map[string][]byte{
		"INQUIRY":           cdb(scsi.OpInquiry, 3, uint16(96)),
		"serial number":     cdb(scsi.OpInquiry, 1, uint8(1), 2, uint8(scsi.VPDSerial), 3, uint16(255)),
		"READ CAPACITY(10)": cdb(scsi.OpReadCapacity10),
		"READ CAPACITY(16)": cdb(scsi.OpServiceActionIn16, 1, uint8(scsi.ActionReadCapacity16), 10, uint32(32)),
		"READ KEYS":         cdb(scsi.OpPersistentIn, 7, uint16(256)),
		"READ FULL STATUS":  cdb(scsi.OpPersistentIn, 1, uint8(scsi.ActionPersistReadFull), 7, uint16(256)),
		"MODE SENSE":        modeSense,
		"opcodes":           cdb(scsi.OpMaintenanceIn, 1, uint8(scsi.ActionReportOpcodes), 6, uint32(8192)),
	} {
		if here, there := b.ok(plainLUN, c, nil), a.ok(plainLUN, c, nil); !bytes.Equal(here, there) {
			t.Errorf("%s: % x here, % x where it is served", name, here, there)
		}
	}
	refused := func() {
		t.Helper()
		list := modeList(control(0x04, 0, 0x40))
		for _, c := range [][2][]byte{
			{transfer(scsi.OpRead10, 0, 1), nil},
			{transfer(scsi.OpWrite10, 0, 1), pattern(1, 1)},
			{cdb(scsi.OpCompareAndWrite, 13, uint8(1)), pattern(0, 2)},
			{transfer(scsi.OpSynchronizeCache10, 0, 0), nil},
			{persistCDB(scsi.ActionPersistRegister, 0), persistList(0, 2, 0)},
			{modeSelect(list), list},
			{cdb(scsi.OpReserve6), nil},
			{cdb(scsi.OpTestUnitReady), nil},
		} {
			b.want(plainLUN, c[0], c[1], "2h/04h/0bh")
		}
	}
	refused()
	if got := b.Manage(scsi.LogicalUnitResetFunction, scsi.MakeLUN(plainLUN), 0); got != scsi.FunctionComplete {
		t.Errorf("LOGICAL UNIT RESET: %d", got)
	}
	b.next(plainLUN)
	// Also when its ports are said to be active: there is nothing here to serve.
	r.srv.SetUnitPorts(v.ID(), groupPorts(scsi.ActiveOptimized, scsi.Standby))
	b.next(plainLUN)
	refused()

	s.Update(lun.Metadata{Name: "plain", Size: volumeSize + 1<<20})
	b.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/2ah/09h")
	if got := hexOf(b.ok(plainLUN, cdb(scsi.OpReadCapacity10), nil)); got != "000027ff"+"00000200" {
		t.Errorf("capacity %s", got)
	}
	s.Update(lun.Metadata{Name: "plain", Size: volumeSize + 1<<20, ReadOnly: true})
	b.want(plainLUN, cdb(scsi.OpTestUnitReady), nil, "6h/2ah/01h")
	if err := r.srv.ClearReservations(v.ID()); !fault.Is(err, fault.Fenced) {
		t.Errorf("ClearReservations: %v", err)
	}
}

// TestStandbyUnknown: what a standby unit cannot read it does not make up.
func TestStandbyUnknown(t *testing.T) {
	for name, c := range map[string]struct {
		load func() ([]byte, error)
		ends string
	}{
		"no state to read": {nil, "2h/04h/0bh"},
		"unreadable":       {func() ([]byte, error) { return nil, fault.New(fault.Fenced, "") }, "2h/04h/0ah"},
		"none yet":         {func() ([]byte, error) { return nil, nil }, "good"},
	} {
		r := newRig(t)
		if err := r.srv.RemoveVolume(r.plain.ID()); err != nil {
			t.Fatal(err)
		}
		if err := r.srv.AddVolume(lun.NewStandby(lun.Metadata{ID: r.plain.ID(), Size: volumeSize}, c.load)); err != nil {
			t.Fatal(name, err)
		}
		h := r.login(hostA, 1)
		h.next(plainLUN)
		h.want(plainLUN, cdb(scsi.OpPersistentIn, 7, uint16(256)), nil, c.ends)
	}
}

// TestReplaceVolume moves a unit to another node and back, under initiators
// that stay logged in at both: they find it served where it is, with what was
// reserved, and hear of it.
func TestReplaceVolume(t *testing.T) {
	v := newKept()
	one := keptRig(t, v)
	one.srv.SetUnitPorts(v.ID(), groupPorts(scsi.ActiveOptimized, scsi.Standby))
	two := &rig{t: t, srv: lun.NewServer(), plain: v.RAM, other: luntest.NewRAM("other", 0x22, volumeSize)}
	two.srv.SetUnitPorts(v.ID(), groupPorts(scsi.ActiveOptimized, scsi.Standby))
	if err := two.srv.AddVolume(standbyOf(v)); err != nil {
		t.Fatal(err)
	}
	two.view(mappings(two)[:1]...)
	here, far, stranger := one.open(hostA), two.login(hostA, farPort), two.login(hostB, farPort)
	far.next(plainLUN)
	stranger.next(plainLUN)
	good(t, here.persist(scsi.ActionPersistRegister, 0, 0, 1, 0x04))
	good(t, here.persist(scsi.ActionPersistReserve, reserve.WriteExclusive, 1, 0, 0))
	good(t, here.persist(scsi.ActionPersistRelease, reserve.WriteExclusive, 1, 0, 0))
	good(t, here.persist(scsi.ActionPersistReserve, reserve.WriteExclusiveRegistrantsOnly, 1, 0, 0))

	serve := func(r *rig, states []scsi.PortGroup) {
		t.Helper()
		if err := r.srv.ReplaceVolume(v); err != nil {
			t.Fatal(err)
		}
		r.srv.SetUnitPorts(v.ID(), states)
	}
	leave := func(r *rig, states []scsi.PortGroup) {
		t.Helper()
		r.srv.SetUnitPorts(v.ID(), states)
		if err := r.srv.ReplaceVolume(standbyOf(v)); err != nil {
			t.Fatal(err)
		}
	}
	told := func(h *host, want ...string) {
		t.Helper()
		for _, w := range want {
			if got := h.next(plainLUN); got != w {
				t.Errorf("%s, want %s", got, w)
			}
		}
	}
	leave(one, groupPorts(scsi.Standby, scsi.ActiveOptimized))
	serve(two, groupPorts(scsi.Standby, scsi.ActiveOptimized))
	told(here, "6h/29h/07h", "6h/2ah/06h", "2h/04h/0bh")
	told(far, "6h/29h/07h", "6h/2ah/06h", "good")
	told(stranger, "6h/29h/07h", "6h/2ah/06h", "good")
	far.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
	stranger.want(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1), "conflict")
	good(t, far.persist(scsi.ActionPersistRegister, 0, 1, 9, 0)) // all ports of it, as it was made
	good(t, far.persist(scsi.ActionPersistClear, 0, 9, 0, 0))
	far.ok(plainLUN, cdb(scsi.OpReserve6), nil)

	leave(two, groupPorts(scsi.ActiveOptimized, scsi.Standby))
	serve(one, groupPorts(scsi.ActiveOptimized, scsi.Standby))
	told(here, "6h/29h/07h", "6h/2ah/06h", "6h/2ah/03h", "good")
	here.ok(plainLUN, transfer(scsi.OpWrite10, 0, 1), pattern(1, 1))
	here.ok(plainLUN, cdb(scsi.OpReserve6), nil) // that of the other node is gone

	if err := one.srv.ReplaceVolume(luntest.NewRAM("none", 0x99, volumeSize)); !fault.Is(err, fault.NotFound) {
		t.Errorf("a volume that is no unit: %v", err)
	}
	v.Fail = func(string, int64, int64) error { return fault.New(fault.Corrupt, "unreadable") }
	if err := two.srv.ReplaceVolume(v); !fault.Is(err, fault.Corrupt) {
		t.Errorf("a state that cannot be read: %v", err)
	}
	v.Fail = nil
	told(far, "6h/29h/07h", "6h/2ah/06h", "2h/04h/0bh")
}

// TestReplaceUnderLoad replaces the volume to and fro while commands of every
// kind run: each has one of the answers that one of the two gives.
func TestReplaceUnderLoad(t *testing.T) {
	v := newKept()
	r := keptRig(t, v)
	var load sync.WaitGroup
	stop := make(chan struct{})
	for i := range 4 {
		h := r.open(fmt.Sprintf("iqn.2026-11.io.example:h%d", i))
		load.Go(func() {
			for n := uint64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				for _, c := range [][2][]byte{
					{transfer(scsi.OpWrite10, uint64(i), 1), pattern(1, 1)},
					{transfer(scsi.OpRead10, uint64(i), 1), nil},
					{persistCDB(scsi.ActionPersistRegisterAny, 0), persistList(0, n+1, 0)},
					{cdb(scsi.OpPersistentIn, 7, uint16(256)), nil},
					{cdb(scsi.OpModeSense6, 2, uint8(0x3f), 4, uint8(255)), nil},
				} {
					task := h.do(plainLUN, c[0], c[1])
					if task.Release != nil {
						task.Release()
					}
					switch got := verdict(task); got {
					case "good", "6h/29h/07h", "2h/04h/0ah", "2h/04h/0bh":
					default:
						t.Errorf("% x: %s", c[0], got)
					}
				}
			}
		})
	}
	for i := range 60 {
		var next lun.Volume = v
		if i%2 == 0 {
			next = standbyOf(v)
		}
		if err := r.srv.ReplaceVolume(next); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	load.Wait()
	if err := r.srv.RemoveVolume(v.ID()); err != nil {
		t.Error(err)
	}
}
