package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
)

// vmChange are the flags of "vm set".
type vmChange struct {
	memory                        sizeFlag
	append, policy, host, cluster string
	kernel, initrd                string
	disks, nets                   []string
	removeDisks, removeNets       []string
	yes                           bool
}

func (a *app) vmSet() *cobra.Command {
	f := &vmChange{}
	c := &cobra.Command{
		Use: "set VM", Short: "Change a virtual machine", Args: exactly(1),
		Long: `Change what a virtual machine is made of. What is not given stays. While it runs only its
policy, its preferred host and the size of disks can be changed, and its guest sees the new
size when it is started again.

--disk of a disk that is there makes it larger; of another name it adds one, as in "vm
create". Taking a disk out deletes its volume.`,
		Example: `  steadfast vm set db1 --memory 2G --host h2
  steadfast vm set db1 --disk root=16G --disk data=100G
  steadfast vm set db1 --kernel Image --initrd initrd.gz
  steadfast vm set db1 --remove-disk data --yes`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return interruptible(cmd.Context(), func(ctx context.Context) error { return a.changeVM(ctx, cmd, args[0], f) })
		},
	}
	c.Flags().Var(&f.memory, "memory", "the machine's memory")
	c.Flags().StringVar(&f.append, "append", "", "the kernel's command line")
	c.Flags().StringVar(&f.policy, "policy", "", "what becomes of it when its host is lost: restart or leave")
	c.Flags().StringVar(&f.host, "host", "", "the host that it is placed on if that can be; empty: any")
	c.Flags().StringVar(&f.cluster, "cluster", "", "the cluster of hosts that runs it")
	c.Flags().StringVar(&f.kernel, "kernel", "", "file of the kernel to boot")
	c.Flags().StringVar(&f.initrd, "initrd", "", "file of its initial RAM disk; empty: none")
	c.Flags().StringArrayVar(&f.disks, "disk", nil, "a disk to make larger, NAME=SIZE, or to add: NAME=SIZE, NAME=FILE or NAME=SIZE,FILE; may be repeated")
	c.Flags().StringArrayVar(&f.removeDisks, "remove-disk", nil, "a disk to take out, with what is on it; may be repeated")
	c.Flags().StringArrayVar(&f.nets, "net", nil, "a network card to add, NETWORK[,mac=MAC]; may be repeated")
	c.Flags().StringArrayVar(&f.removeNets, "remove-net", nil, "the MAC of a network card to take out; may be repeated")
	c.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	a.complete(c, "", a.vmNames)
	a.complete(c, "policy", policies)
	a.complete(c, "host", a.hostNames)
	a.complete(c, "cluster", a.hostClusterNames)
	return c
}

func (a *app) changeVM(ctx context.Context, cmd *cobra.Command, name string, f *vmChange) error {
	m, err := a.getVM(ctx, name)
	if err != nil {
		return err
	}
	req, list, err := f.request(cmd, m)
	if err != nil {
		return err
	}
	if len(req.RemoveDisks) > 0 {
		if err := a.confirm(f.yes, "Delete all that is on the disks %v of machine %q?", req.RemoveDisks, name); err != nil {
			return err
		}
	}
	if len(list) > 0 && m.Desired == "running" {
		return fault.New(fault.Busy, "the machine %q runs, and what is in its volumes is its own; stop it first: \"steadfast vm stop %s --wait\"", name, name)
	}
	bare := &steadfastv1.SetMachineRequest{Name: name}
	if req.String() != bare.String() || len(list) == 0 {
		r, err := a.vms().SetMachine(ctx, req)
		if err != nil {
			return err
		}
		m = r.Machine
		if r.HomeBehind != "" && len(list) == 0 {
			a.remark("the volume %s says so when the machine is started next; until then \"steadfast vm register\" would find it as it was: %s", m.Home, r.HomeBehind)
		}
	}
	if err := a.writeVM(ctx, name, list); err != nil {
		return err
	}
	return a.did(m, "changed machine %q", name)
}

// request makes of the flags what is asked for: a change, and what is to be written then.
func (f *vmChange) request(cmd *cobra.Command, m *steadfastv1.Machine) (req *steadfastv1.SetMachineRequest, list []upload, err error) {
	req = &steadfastv1.SetMachineRequest{Name: m.Name, RemoveDisks: f.removeDisks, RemoveNets: f.removeNets}
	given := cmd.Flags().Changed
	if given("memory") {
		bytes := uint64(f.memory)
		req.Memory = &bytes
	}
	for _, t := range []struct {
		flag string
		from *string
		to   **string
	}{{"append", &f.append, &req.CommandLine}, {"policy", &f.policy, &req.Policy}, {"host", &f.host, &req.PreferredHost}, {"cluster", &f.cluster, &req.Cluster}} {
		if given(t.flag) {
			*t.to = t.from
		}
	}
	for _, text := range f.disks {
		d, err := parseVMDisk(text)
		if err != nil {
			return nil, nil, err
		}
		there := slices.ContainsFunc(m.Disks, func(o *steadfastv1.MachineDisk) bool { return o.Name == d.name })
		if there && d.file != "" {
			return nil, nil, fault.New(fault.Invalid, "--disk %q: the disk %q is there already; take it out first, with what is on it: --remove-disk %s", text, d.name, d.name)
		}
		more, err := d.upload()
		if err != nil {
			return nil, nil, err
		}
		list = append(list, more...)
		to := &req.AddDisks
		if there {
			to = &req.GrowDisks
		}
		*to = append(*to, &steadfastv1.MachineDisk{Name: d.name, Bytes: d.bytes})
	}
	for _, text := range f.nets {
		n, err := parseVMNet(text)
		if err != nil {
			return nil, nil, err
		}
		req.AddNets = append(req.AddNets, n)
	}
	if f.kernel != "" {
		u, err := uploadFile("kernel", f.kernel)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, u)
	} else if given("kernel") {
		return nil, nil, fault.New(fault.Invalid, "--kernel: a machine has one; name its file")
	}
	if given("initrd") {
		u, err := uploadFile("initrd", f.initrd)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, u)
	}
	return req, list, nil
}
