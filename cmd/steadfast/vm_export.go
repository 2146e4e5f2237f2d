package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/fault"
	"steadfast/node/size"
)

// exported is an exported machine's machine.json. docs/OPERATING.md tells of it.
type exported struct {
	Version     int            `json:"version"`
	Name        string         `json:"name"`
	Memory      uint64         `json:"memory"` // bytes
	CommandLine string         `json:"command_line"`
	Policy      string         `json:"policy"`
	Kernel      *exportedFile  `json:"kernel,omitempty"`
	Initrd      *exportedFile  `json:"initrd,omitempty"`
	Disks       []exportedDisk `json:"disks"`
	Nets        []exportedNet  `json:"nets"`
}

// exportedFile is something to boot from: File beside machine.json, once called Name.
type exportedFile struct {
	File string `json:"file"`
	Name string `json:"name"`
}

// exportedDisk is a raw disk beside machine.json.
type exportedDisk struct {
	Name  string `json:"name"`
	File  string `json:"file"`
	Bytes int64  `json:"bytes"`
}

type exportedNet struct {
	MAC     string `json:"mac"`
	Network string `json:"network"`
}

// Of exported machines.
const (
	exportVersion = 1
	exportFile    = "machine.json"
)

func (a *app) vmExport() *cobra.Command {
	var to string
	c := &cobra.Command{
		Use: "export VM --to DIR", Short: "Copy a virtual machine that has stopped to a folder here", Args: exactly(1),
		Long: `Copy a virtual machine that has stopped to a new folder on this host: machine.json says
what it is made of, beside it are kernel, initial RAM disk, and its disks as raw files with
holes where zeros are. "steadfast vm import" makes a machine of it, here or elsewhere.`,
		Example: "  steadfast vm export db1 --to ./db1",
		RunE: func(cmd *cobra.Command, args []string) error {
			if to == "" {
				return fault.New(fault.Invalid, "say where to: --to DIR")
			}
			return interruptible(cmd.Context(), func(ctx context.Context) error { return a.exportVM(ctx, args[0], to) })
		},
	}
	c.Flags().StringVar(&to, "to", "", "the folder, which must not be there yet")
	a.complete(c, "", a.vmNames)
	return c
}

func (a *app) exportVM(ctx context.Context, name, to string) (err error) {
	m, err := a.getVM(ctx, name)
	if err != nil {
		return err
	}
	dir, err := newFolder(to)
	if err != nil {
		return err
	}
	show := a.transferred(ctx, "reading")
	total, before := int64(0), int64(0)
	defer func() {
		if err != nil {
			show(total, total, true)
			err = errors.Join(err, os.RemoveAll(dir)) // it is no machine
		}
	}()
	e := exported{Version: exportVersion, Name: m.Name, Memory: m.Memory, CommandLine: m.CommandLine, Policy: m.Policy, Disks: []exportedDisk{}, Nets: []exportedNet{}}
	for _, n := range m.Nets {
		e.Nets = append(e.Nets, exportedNet{n.Mac, n.Network})
	}
	for _, d := range m.Disks {
		total += d.Bytes
	}
	for _, part := range []string{"kernel", "initrd"} {
		file, _, err := a.readVM(ctx, name, part, filepath.Join(dir, part), func(int64) {})
		switch {
		case fault.Is(err, fault.NotFound):
			continue // it has none
		case err != nil:
			return err
		case part == "kernel":
			e.Kernel = &exportedFile{part, file}
		default:
			e.Initrd = &exportedFile{part, file}
		}
	}
	for _, d := range m.Disks {
		file := "disk-" + d.Name + ".raw"
		_, bytes, err := a.readVM(ctx, name, "disk/"+d.Name, filepath.Join(dir, file), func(at int64) { show(before+at, total, false) })
		if err != nil {
			return err
		}
		before += d.Bytes
		e.Disks = append(e.Disks, exportedDisk{d.Name, file, bytes})
	}
	show(total, total, true)
	// Each part was whole when it was read; so that they are of one moment, it has not run since.
	now, err := a.getVM(ctx, name)
	if err != nil {
		return err
	}
	if now.Id != m.Id || now.Generation != m.Generation {
		return fault.New(fault.Busy, "the machine %q was started while it was read: what came is of several moments; export it again when it has stopped: \"steadfast vm stop %s --wait\"", name, name)
	}
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	// The last: a folder without it is no machine.
	if err := os.WriteFile(filepath.Join(dir, exportFile), append(b, '\n'), 0o600); err != nil {
		return fault.Wrap(fault.Full, err, "what the machine is made of")
	}
	return a.did(m, "exported machine %q to %s: %d disks of %s", name, dir, len(e.Disks), size.Format(total))
}

func (a *app) vmImport() *cobra.Command {
	var from string
	var fresh bool
	f := &vmFlags{}
	c := &cobra.Command{
		Use: "import VM --from DIR", Short: "Make a virtual machine of a folder that one was exported to", Args: exactly(1),
		Long: `Make a virtual machine of a folder that "steadfast vm export" has written, under any
name. Its network cards keep their addresses, which no other machine may have;
--new-macs gives it others.`,
		Example: `  steadfast vm import db1 --from ./db1
  steadfast vm import db2 --from ./db1 --new-macs --datastore ds2 --start`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.req.Name = args[0]
			if from == "" {
				return fault.New(fault.Invalid, "say where from: --from DIR")
			}
			return interruptible(cmd.Context(), func(ctx context.Context) error { return a.importVM(ctx, f, from, fresh) })
		},
	}
	c.Flags().StringVar(&from, "from", "", "the folder")
	c.Flags().BoolVar(&fresh, "new-macs", false, "give its network cards other addresses")
	placeFlags(a, c, f)
	return c
}

func (a *app) importVM(ctx context.Context, f *vmFlags, from string, fresh bool) error {
	b, err := os.ReadFile(filepath.Join(from, exportFile))
	if err != nil {
		return fault.Wrap(fault.NotFound, err, "there is no exported machine, as \"steadfast vm export\" writes one")
	}
	var e exported
	if err := json.Unmarshal(b, &e); err != nil || e.Version < 1 {
		return errors.Join(fault.New(fault.Invalid, "%s is of no exported machine; name a folder that \"steadfast vm export\" has written", filepath.Join(from, exportFile)), err)
	}
	if e.Version > exportVersion {
		return fault.New(fault.Stale, "%s is of version %d, and this program knows %d; upgrade it", filepath.Join(from, exportFile), e.Version, exportVersion)
	}
	f.req.Memory, f.req.CommandLine, f.req.Policy = e.Memory, e.CommandLine, e.Policy
	for _, n := range e.Nets {
		if fresh {
			n.MAC = ""
		}
		f.req.Nets = append(f.req.Nets, &steadfastv1.MachineNet{Mac: n.MAC, Network: n.Network})
	}
	// Files are beside machine.json, whatever it says.
	beside := func(name string) string { return filepath.Join(from, filepath.Base(name)) }
	if e.Kernel != nil {
		f.kernel = beside(e.Kernel.File)
	}
	if e.Initrd != nil {
		f.initrd = beside(e.Initrd.File)
	}
	if f.start && f.kernel == "" {
		return fault.New(fault.Invalid, "--start, and the machine has nothing to boot; bring it afterwards: \"steadfast vm set %s --kernel FILE\"", f.req.Name)
	}
	list, err := bootUploads(f)
	if err != nil {
		return err
	}
	for _, d := range e.Disks {
		disk := vmDisk{name: d.Name, bytes: d.Bytes, file: beside(d.File), raw: true}
		more, err := disk.upload()
		if err != nil {
			return err
		}
		list = append(list, more...)
		f.req.Disks = append(f.req.Disks, &steadfastv1.MachineDisk{Name: disk.name, Bytes: disk.bytes})
	}
	return a.makeVM(ctx, f, list, "imported")
}
