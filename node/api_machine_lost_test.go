package node

import (
	"errors"
	"testing"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/block"
	"steadfast/cluster/inventory"
	"steadfast/cluster/quorum"
	"steadfast/compute/host"
	"steadfast/compute/vmhome"
	"steadfast/compute/vmlock"
	"steadfast/fault"
	"steadfast/node/apierror"
)

// TestReadShutsOut: before a machine is read that has ended with its host, that host is shut out:
// it may live, cut off from the nodes, and run the machine still.
func TestReadShutsOut(t *testing.T) {
	w := newAccessWorld(t)
	id := vmlock.ID{}
	for i := range id {
		id[i] = 1
	}
	home, err := openAs(t, w.b, "m.home", 0x70)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(vmhome.Format(home, id, 0), home.Close()); err != nil {
		t.Fatal(err)
	}
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.SetHA("k", false) })
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.AddHost("cut", "k", inventory.Links{}) })
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) {
		_, edits, err := v.HostUp(inventory.HostLife{Host: "cut", ID: "1.1", Memory: 1 << 30}, 1)
		return edits, err
	})
	w.amend(t, func(v *inventory.View) ([]quorum.Edit, error) { return v.Start("m") })
	var p inventory.Placement
	eventually(t, "it was placed, and ended with its host", func() bool {
		v, err := w.a.site()
		if err != nil || v.Placements["m"] == nil {
			return false
		}
		p = *v.Placements["m"]
		return p.Ended == inventory.EndedHostLost
	})
	v, err := w.a.site()
	if err != nil {
		t.Fatal(err)
	}
	o := host.EditOptions{ID: id.String(), Owner: vmlock.Owner{Host: v.Hosts["cut"].Number, Boot: p.Boot}, Generation: p.Generation}
	for i, name := range []string{"m.home", "m.root"} {
		d, err := openAs(t, w.b, name, 0x10+byte(i))
		if err != nil {
			t.Fatal(err)
		}
		o.Volumes = append(o.Volumes, d)
	}
	sector := make([]byte, block.SectorSize)
	err = host.Edit(within(t), o, func(_ *vmhome.Home, disks []block.Device) error {
		if err := disks[0].WriteAt(sector, 0, 0); err != nil {
			t.Errorf("what the host writes while nobody knows better: %v", err)
		}
		for range 2 { // once is enough
			s, err := machinesOf(w.a).ReadMachine(within(t), &steadfastv1.ReadMachineRequest{Machine: "m", Part: partDisk + "root"})
			if err != nil {
				t.Fatal(err)
			}
			for s.Receive() {
			}
			if err := errors.Join(apierror.FromConnect(s.Err()), s.Close()); err != nil {
				t.Errorf("reading it: %v", err)
			}
		}
		return disks[0].WriteAt(sector, 0, 0)
	})
	if !fault.Is(err, fault.Fenced) {
		t.Errorf("the host that was lost wrote on: %v", err)
	}
	if v, err = w.a.site(); err != nil || v.Machines["m"].Floor != p.Generation+1 {
		t.Errorf("the floor is %d after generation %d, %v", v.Machines["m"].Floor, p.Generation, err)
	}
}
