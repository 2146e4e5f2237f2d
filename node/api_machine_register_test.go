package node

import (
	"strings"
	"testing"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/block"
	"steadfast/cluster/inventory"
	"steadfast/compute/host"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/node/apierror"
)

// overwriteLock has a home volume's lock block be zeros, as a stranger who has the right to write.
func overwriteLock(t *testing.T, n *Node, volume string) {
	t.Helper()
	v, err := openAs(t, n, volume, 0x51)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	key, err := vmlock.Key(vmlock.Owner{Host: 7, Boot: 1}, 9, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Register(within(t), key); err != nil {
		t.Fatal(err)
	}
	r, err := v.ReadReservation(within(t))
	if err == nil && r.Key != 0 {
		err = v.PreemptAbort(within(t), vmlock.ReservationType, r.Key)
	}
	if err == nil {
		err = v.WriteAt(make([]byte, block.SectorSize), 0, block.FUA)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestDamagedLockRegistered: a change of a machine is in its home volume at once, unless that
// cannot be, which is told and holds nothing up. One whose lock block is damaged is registered
// when a person has said what is given up by that, and not else; it can be used as any other then.
func TestDamagedLockRegistered(t *testing.T) {
	a, b := machineStore(t, accessAlias)
	onA, onB := machinesOf(a), machinesOf(b)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(apierror.FromConnect(err))
		}
	}
	_, err := onA.CreateMachine(within(t), &steadfastv1.CreateMachineRequest{
		Name: "db1", Memory: 128 << 20, Disks: []*steadfastv1.MachineDisk{{Name: "root", Bytes: 8 << 20}},
	})
	must(err)
	must(write(t, onA, &steadfastv1.WriteMachineRequest{Part: "kernel", FileName: "k", FileBytes: 4}, &steadfastv1.WriteMachineRequest{Part: "kernel", Data: []byte("kern")}))
	at := host.At{Group: "g", Volume: "db1.home"}
	memory := func(bytes uint64) *steadfastv1.SetMachineResponse {
		t.Helper()
		level(t, a, b)
		r, err := onB.SetMachine(within(t), &steadfastv1.SetMachineRequest{Name: "db1", Memory: &bytes})
		must(err)
		return r
	}
	home := func() vmhome.Definition {
		t.Helper()
		f, err := readHome(within(t), a.cluster, at)
		must(err)
		return f.definition
	}
	if r := memory(256 << 20); r.HomeBehind != "" {
		t.Errorf("the home is behind: %s", r.HomeBehind)
	}
	_, m, err := b.findMachine("db1")
	must(err)
	if d := home(); d.Memory != 256<<20 || d.Kernel == nil || d.Kernel.Bytes != 4 || m.Memory != d.Memory {
		t.Errorf("the home says %+v, and the inventory %+v", d, m)
	}
	floor := m.Floor
	preferred := ""
	_, err = onB.SetMachine(within(t), &steadfastv1.SetMachineRequest{Name: "db1", PreferredHost: &preferred})
	must(err)
	v, m, err := b.findMachine("db1")
	if err != nil || m.Floor != floor {
		t.Fatalf("what no home says was written there: %+v, %v", m, err)
	}
	must(v.Check())

	overwriteLock(t, a, "db1.home")
	if r := memory(192 << 20); !strings.Contains(r.HomeBehind, "lock block") || r.Machine.Memory != 192<<20 {
		t.Errorf("with a lock that cannot be taken: %v", r)
	}
	if d := home(); d.Memory != 256<<20 {
		t.Errorf("the home says %+v", d)
	}
	_, err = onA.DeleteMachine(within(t), &steadfastv1.DeleteMachineRequest{Name: "db1", KeepVolumes: true})
	must(err)
	level(t, a, b)
	homes, err := onB.ListHomes(within(t), &steadfastv1.ListHomesRequest{})
	must(err)
	if len(homes.Homes) != 1 || homes.Homes[0].Machine != "db1" || !strings.Contains(homes.Homes[0].Problem, `"steadfast vm register db1.home"`) {
		t.Errorf("homes are %v", homes.Homes)
	}
	for _, said := range []string{"", "yes", "no-host-runs-db2"} {
		_, err = onA.RegisterMachine(within(t), &steadfastv1.RegisterMachineRequest{Home: "db1.home", ResetLock: said})
		if err = apierror.FromConnect(err); !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), "--reset-lock no-host-runs-db1") {
			t.Errorf("registering it with %q: %v", said, err)
		}
	}
	if _, _, err := a.findMachine("db1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("it is there: %v", err)
	}
	_, err = onA.RegisterMachine(within(t), &steadfastv1.RegisterMachineRequest{Home: "db1.home", ResetLock: "no-host-runs-db1"})
	must(err)
	f, err := readHome(within(t), a.cluster, at)
	must(err)
	if v, m, err = a.findMachine("db1"); err != nil || f.damage != nil || m.Floor != f.lock.Generation || m.Floor <= floor || m.Floor <= 9 || f.lock.Held {
		t.Errorf("registered it is %+v, %v, and its lock %+v", m, err, f.lock)
	}
	must(v.Check())
	if n := a.events.count("machine-lock-reset", ""); n != 1 {
		t.Errorf("%d events tell of it", n)
	}
	// Its lock can be taken, over what was registered there.
	if r := memory(320 << 20); r.HomeBehind != "" || home().Memory != 320<<20 {
		t.Errorf("the home is behind: %s", r.HomeBehind)
	}
	_, err = onA.StartMachine(within(t), &steadfastv1.StartMachineRequest{Name: "db1"})
	must(err)
	r, err := onA.StopMachine(within(t), &steadfastv1.StopMachineRequest{Name: "db1", Force: true})
	must(err)
	if _, m, err = a.findMachine("db1"); err != nil || r.Machine.State != "stopped" || m.Desired != inventory.Stopped {
		t.Errorf("one that no host has and is to be off is %v, %+v, %v", r.Machine, m, err)
	}
}
