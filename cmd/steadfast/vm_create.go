package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/compute/image"
	"steadfast/fault"
	"steadfast/node/size"
)

// undoPatience bounds how long is tried to delete a machine that was made for nothing.
const undoPatience = 30 * time.Second

// rootDisk is the disk that an image's is.
const rootDisk = "root"

// vmDisk is a --disk: NAME=SIZE, NAME=FILE or NAME=SIZE,FILE.
type vmDisk struct {
	name  string
	bytes int64  // 0: the file's
	file  string // empty: there is none
	raw   bool   // the file is, whatever it begins with
}

// parseVMDisk reads a --disk. What can be read as a size is one: a file of such a name is
// written ./8G.
func parseVMDisk(text string) (d vmDisk, err error) {
	name, rest, ok := strings.Cut(text, "=")
	if !ok || name == "" || rest == "" {
		return d, fault.New(fault.Invalid, "--disk %q: it is NAME=SIZE, NAME=FILE or NAME=SIZE,FILE", text)
	}
	d.name = name
	first, file, both := strings.Cut(rest, ",")
	if d.bytes, err = size.Parse(first); err == nil {
		if d.file = file; both && file == "" || d.bytes <= 0 {
			return d, fault.New(fault.Invalid, "--disk %q: it is NAME=SIZE, NAME=FILE or NAME=SIZE,FILE", text)
		}
		return d, nil
	}
	d.bytes, d.file = 0, rest
	if !exists(rest) {
		return d, fault.New(fault.NotFound, "--disk %q: %q is neither a size, as 8G is, nor a file", text, rest)
	}
	return d, nil
}

// upload returns what is to be written on the disk, and gives it its size.
func (d *vmDisk) upload() (list []upload, err error) {
	if d.file == "" {
		return nil, nil
	}
	f, err := openDisk(d.file, d.raw)
	if err != nil {
		return nil, err
	}
	bytes := (f.Bytes + sectorLen - 1) / sectorLen * sectorLen
	if err := f.Close(); err != nil {
		return nil, err
	}
	if d.bytes == 0 {
		d.bytes = bytes
	}
	if d.bytes < bytes {
		return nil, fault.New(fault.Invalid, "the disk %q of %s is too small for %s, a disk of %s; give it that size at least, or none", d.name, size.Format(d.bytes), d.file, size.Format(bytes))
	}
	return []upload{{part: "disk/" + d.name, file: d.file, disk: true, raw: d.raw, bytes: bytes}}, nil
}

// parseVMNet reads a --net: NETWORK[,mac=MAC].
func parseVMNet(text string) (*steadfastv1.MachineNet, error) {
	words := strings.Split(text, ",")
	n := &steadfastv1.MachineNet{Network: words[0]}
	for _, w := range words[1:] {
		mac, ok := strings.CutPrefix(w, "mac=")
		if !ok {
			return nil, fault.New(fault.Invalid, "--net %q: %q is not known; it is NETWORK[,mac=MAC]", text, w)
		}
		n.Mac = mac
	}
	return n, nil
}

// vmFlags say what a machine is made of.
type vmFlags struct {
	req                    steadfastv1.CreateMachineRequest
	image, store           string
	kernel, initrd, append string
	disks, nets            []string
	memory                 sizeFlag
	start, wait            bool
	patience               time.Duration
}

func (a *app) vmCreate() *cobra.Command {
	f := &vmFlags{memory: 512 << 20}
	c := &cobra.Command{
		Use: "create VM", Short: "Make a virtual machine", Args: exactly(1),
		Long: `Make a virtual machine: volumes in a datastore, what it boots from, and what is on its
disks. Its processor is RV64GC.

--image takes an image of "steadfast image" that is on this host: its kernel, initial RAM disk and
command line, and its disk as the disk "root". --disk root=8G makes that larger; the images that
"steadfast image build" makes grow their file system when they boot. A disk's FILE is raw or
qcow2. What a machine is made of is copied to the storage; nothing here is needed later.

A network is one that the hosts' configuration names ([[network]]).`,
		Example: `  steadfast vm create db1 --image debian --disk root=8G --net lan --start
  steadfast vm create app1 --cluster prod --datastore ds1 --memory 1G --kernel Image --append "console=ttyS0 root=/dev/vda" --disk root=app.qcow2
  steadfast vm create db2 --image debian --disk data=20G --policy leave --host h1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.req.Name = args[0]
			return interruptible(cmd.Context(), func(ctx context.Context) error { return a.createVM(ctx, f) })
		},
	}
	placeFlags(a, c, f)
	c.Flags().Var(&f.memory, "memory", "the machine's memory")
	c.Flags().StringVar(&f.image, "image", "", "the image to boot (see \"steadfast image\")")
	c.Flags().StringVar(&f.store, "store", "", "folder of images (default as for \"steadfast image\")")
	c.Flags().StringVar(&f.kernel, "kernel", "", "file of the kernel to boot (a riscv64 Image)")
	c.Flags().StringVar(&f.initrd, "initrd", "", "file of its initial RAM disk")
	c.Flags().StringVar(&f.append, "append", "", "the kernel's command line (default: the image's, or console=ttyS0)")
	c.Flags().StringArrayVar(&f.disks, "disk", nil, "a disk: NAME=SIZE, NAME=FILE or NAME=SIZE,FILE; may be repeated")
	c.Flags().StringArrayVar(&f.nets, "net", nil, "a network card, NETWORK[,mac=MAC]; may be repeated")
	c.Flags().StringVar(&f.req.Policy, "policy", "restart", "what becomes of it when its host is lost: restart or leave")
	a.complete(c, "image", a.imageNames)
	a.complete(c, "policy", policies)
	return c
}

func policies(context.Context) []string { return []string{"restart", "leave"} }

// placeFlags adds the flags of where a new machine is.
func placeFlags(a *app, c *cobra.Command, f *vmFlags) {
	c.Flags().StringVar(&f.req.Cluster, "cluster", "", "the cluster of hosts that runs it (default: the only one)")
	c.Flags().StringVar(&f.req.Datastore, "datastore", "", "the datastore of its volumes (default: the only one)")
	c.Flags().StringVar(&f.req.PreferredHost, "host", "", "the host that it is placed on if that can be (default: any)")
	c.Flags().BoolVar(&f.start, "start", false, "start it, too")
	waitFlags(c, &f.wait, &f.patience, "runs on a host (with --start)")
	a.complete(c, "cluster", a.hostClusterNames)
	a.complete(c, "datastore", a.datastoreNames)
	a.complete(c, "host", a.hostNames)
}

// createVM makes a machine as the flags say.
func (a *app) createVM(ctx context.Context, f *vmFlags) error {
	f.req.Memory, f.req.CommandLine = uint64(f.memory), f.append
	var disks []vmDisk
	for _, text := range f.disks {
		d, err := parseVMDisk(text)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(disks, func(o vmDisk) bool { return o.name == d.name }) {
			return fault.New(fault.Invalid, "--disk %q: the disk %q is named twice; give each a name of its own", text, d.name)
		}
		disks = append(disks, d)
	}
	if f.image != "" {
		var err error
		if disks, err = a.ofImage(f, disks); err != nil {
			return err
		}
	}
	if f.req.CommandLine == "" {
		f.req.CommandLine = "console=ttyS0"
	}
	for _, text := range f.nets {
		n, err := parseVMNet(text)
		if err != nil {
			return err
		}
		f.req.Nets = append(f.req.Nets, n)
	}
	if f.start && f.kernel == "" {
		return fault.New(fault.Invalid, "--start, and nothing to boot: say --image, or --kernel")
	}
	list, err := bootUploads(f)
	if err != nil {
		return err
	}
	for i := range disks {
		more, err := disks[i].upload()
		if err != nil {
			return err
		}
		list = append(list, more...)
		f.req.Disks = append(f.req.Disks, &steadfastv1.MachineDisk{Name: disks[i].name, Bytes: disks[i].bytes})
	}
	return a.makeVM(ctx, f, list, "created")
}

// ofImage takes kernel, initial RAM disk, command line and root disk of an image; a root disk
// that the flags have gives its size.
func (a *app) ofImage(f *vmFlags, disks []vmDisk) ([]vmDisk, error) {
	if f.kernel != "" || f.initrd != "" {
		return nil, fault.New(fault.Invalid, "give either --image, or --kernel and --initrd")
	}
	dir, err := a.imageStore(f.store)
	if err != nil {
		return nil, err
	}
	s := image.Store{Dir: dir}
	m, err := s.Get(f.image)
	if err != nil {
		return nil, err
	}
	if dir, err = s.Path(f.image); err != nil {
		return nil, err
	}
	if f.kernel = filepath.Join(dir, "kernel"); !exists(f.kernel) {
		return nil, fault.New(fault.Invalid, "the image %q is a disk only; give a kernel to boot it with: --kernel FILE --disk root=%s", f.image, filepath.Join(dir, m.Disk))
	}
	if initrd := filepath.Join(dir, "initrd"); exists(initrd) {
		f.initrd = initrd
	}
	if f.req.CommandLine == "" {
		f.req.CommandLine = m.Cmdline
	}
	root := vmDisk{name: rootDisk, file: filepath.Join(dir, m.Disk), raw: true}
	if k := slices.IndexFunc(disks, func(d vmDisk) bool { return d.name == rootDisk }); k >= 0 {
		if disks[k].file != "" {
			return nil, fault.New(fault.Invalid, "the image has the disk %q; say its size only: --disk root=8G", rootDisk)
		}
		root.bytes = disks[k].bytes
		disks = slices.Delete(disks, k, k+1)
	}
	// It is the guest's first: the command line names it so.
	return append([]vmDisk{root}, disks...), nil
}

// bootUploads returns what the machine boots from.
func bootUploads(f *vmFlags) (list []upload, err error) {
	for _, b := range []struct {
		part, file string
		room       *int64
	}{{"kernel", f.kernel, &f.req.KernelBytes}, {"initrd", f.initrd, &f.req.InitrdBytes}} {
		if b.file == "" {
			continue
		}
		u, err := uploadFile(b.part, b.file)
		if err != nil {
			return nil, err
		}
		*b.room = u.bytes
		list = append(list, u)
	}
	return list, nil
}

// makeVM makes a machine, writes what is to be in its volumes, and starts it if it is to run.
// One that was not made to its end is deleted again.
func (a *app) makeVM(ctx context.Context, f *vmFlags, list []upload, word string) error {
	name := f.req.Name
	r, err := a.vms().CreateMachine(ctx, &f.req)
	if err != nil {
		return err
	}
	if err := a.writeVM(ctx, name, list); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
		defer cancel()
		if _, gone := a.vms().DeleteMachine(undo, &steadfastv1.DeleteMachineRequest{Name: name}); gone != nil {
			return errors.Join(err, fault.Wrap(fault.KindOf(gone), gone, "the machine could not be deleted again; do so: \"steadfast vm delete "+name+"\""))
		}
		if ctx.Err() != nil {
			return fault.Wrap(fault.Canceled, context.Cause(ctx), "the machine was not made")
		}
		return err
	}
	if f.start {
		if a.output != "json" {
			a.say("%s machine %q in datastore %q\n", word, name, r.Machine.Datastore)
		}
		return a.startVM(ctx, name, f.wait, f.patience)
	}
	if f.kernel == "" {
		return a.did(r.Machine, "%s machine %q in datastore %q; it has nothing to boot yet: \"steadfast vm set %s --kernel FILE\"", word, name, r.Machine.Datastore, name)
	}
	return a.did(r.Machine, "%s machine %q in datastore %q; start it: \"steadfast vm start %s\"", word, name, r.Machine.Datastore, name)
}

// newFolder makes a folder that must not be there yet.
func newFolder(dir string) (string, error) {
	all, err := absolute(dir)
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(all[0], 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return "", fault.New(fault.Exists, "%s is there already; name another folder", all[0])
		}
		return "", fault.Wrap(fault.Denied, err, "a folder for the machine")
	}
	return all[0], nil
}
