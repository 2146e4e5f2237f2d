package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"steadfast/fault"
)

// guestFiles are what an image gets that no package has.
//
//go:embed guest
var guestFiles embed.FS

// bootModules are the kernel's modules that a machine needs before it has its disk, and
// those that nothing would load otherwise; what they depend on comes with them. One that
// is missing is built into the kernel.
var bootModules = []string{
	"virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "virtio_input", "evdev", "crc32c_generic", "ext4",
}

// diskModules are the folders, below the modules' "kernel", whose modules are put on the
// disk. The rest drives hardware that no machine has.
var diskModules = []string{
	"arch", "block", "crypto", "fs", "lib", "net", "virt", "drivers/block", "drivers/char/hw_random", "drivers/crypto/virtio",
	"drivers/dax", "drivers/input/evdev", "drivers/input/misc/uinput", "drivers/md", "drivers/net/bonding", "drivers/net/dummy",
	"drivers/net/ifb", "drivers/net/ipvlan", "drivers/net/macsec", "drivers/net/macvlan", "drivers/net/macvtap", "drivers/net/net_failover",
	"drivers/net/netconsole", "drivers/net/ppp", "drivers/net/tap", "drivers/net/team", "drivers/net/tun", "drivers/net/veth",
	"drivers/net/virtio_net", "drivers/net/vrf", "drivers/net/vsockmon", "drivers/net/vxlan", "drivers/net/wireguard", "drivers/nvdimm",
	"drivers/scsi/device_handler", "drivers/scsi/iscsi", "drivers/scsi/libiscsi", "drivers/scsi/raid_class", "drivers/scsi/scsi_", "drivers/scsi/sd_mod",
	"drivers/scsi/sg", "drivers/scsi/sr_mod", "drivers/scsi/virtio_scsi", "drivers/target", "drivers/vdpa", "drivers/vhost", "drivers/virtio",
	"drivers/watchdog/softdog",
}

// kernel is a kernel's package, unpacked.
type kernel struct {
	version string
	image   string            // path of the Image
	modules string            // folder usr/lib/modules/VERSION
	byName  map[string]string // paths of modules, by name
}

// unpackKernel unpacks a kernel's package into a folder that is not there yet.
func unpackKernel(ctx context.Context, d deb, dir string) (*kernel, error) {
	if _, err := (command{name: "dpkg-deb", args: []string{"--extract", d.path, dir}}).run(ctx); err != nil {
		return nil, err
	}
	m := kernelName.FindStringSubmatch(d.Name)
	if m == nil {
		return nil, fault.New(fault.Invalid, "%s is no kernel's package", d.Name)
	}
	k := &kernel{version: m[1], byName: map[string]string{}}
	k.modules = filepath.Join(dir, "usr/lib/modules", k.version)
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinu*-"+k.version))
	if err != nil || len(images) != 1 {
		return nil, fault.New(fault.Corrupt, "%s holds %d kernels; one was expected", d.Name, len(images))
	}
	k.image = images[0]
	err = filepath.WalkDir(k.modules, func(p string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(p), ".ko.xz"); ok {
			k.byName[strings.ReplaceAll(name, "-", "_")] = p
		}
		return err
	})
	return k, err
}

// module is one of the kernel's, as insmod takes it.
type module struct {
	name string
	data []byte
}

// load returns modules by name with what they depend on, each after what it needs.
func (k *kernel) load(ctx context.Context, names []string) ([]module, error) {
	var all []module
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		file, ok := k.byName[name]
		if seen[name] || !ok {
			return nil
		}
		seen[name] = true
		data, err := command{name: "xz", args: []string{"--decompress", "--stdout", file}}.run(ctx)
		if err != nil {
			return err
		}
		needs, err := moduleNeeds(data)
		if err != nil {
			return fault.Wrap(fault.Corrupt, err, "module "+name)
		}
		for _, n := range needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		all = append(all, module{name, data})
		return nil
	}
	for _, n := range names {
		if err := visit(n); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// moduleNeeds reads what a module depends on from its section .modinfo: strings "depends=a,b".
func moduleNeeds(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fault.New(fault.Corrupt, "no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for item := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(item, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}

// onDisk tells whether a module, by its path below the modules' folder, is put on the disk.
func onDisk(rel string) bool {
	rel, ok := strings.CutPrefix(filepath.ToSlash(rel), "kernel/")
	return ok && slices.ContainsFunc(diskModules, func(d string) bool {
		if strings.HasSuffix(d, "_") {
			return strings.HasPrefix(rel, d)
		}
		return strings.HasPrefix(rel, d+"/") || strings.HasPrefix(rel, d+".")
	})
}

// install puts modules and their index into the tree.
func (k *kernel) install(ctx context.Context, t *tree, when time.Time) error {
	base := "usr/lib/modules/" + k.version
	err := filepath.WalkDir(k.modules, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(k.modules, p)
		if err != nil {
			return err
		}
		if strings.HasSuffix(rel, ".ko.xz") && !onDisk(rel) {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return t.put(path.Join(base, filepath.ToSlash(rel)), string(b), 0o644, when)
	})
	if err != nil {
		return err
	}
	_, err = command{name: "depmod", args: []string{"-b", t.dir, k.version}}.run(ctx)
	return err
}

// makeInitrd writes the initial RAM disk: busybox, the modules and the script that finds the
// disk, and runs the second stage when it is told to.
func makeInitrd(file string, busybox []byte, modules []module) error {
	init, err := guestFiles.ReadFile("guest/init")
	if err != nil {
		return err
	}
	var raw bytes.Buffer
	c := cpio{w: &raw}
	for _, d := range []string{"bin", "dev", "modules", "proc", "root", "sys"} {
		c.add(d, 0o040755, nil)
	}
	c.add("bin/busybox", 0o100755, busybox)
	// The kernel gives the first process a console only if this is there.
	c.device("dev/console", 0o020600, 5, 1)
	c.add("init", 0o100755, init)
	var order strings.Builder
	for i, m := range modules {
		name := fmt.Sprintf("modules/%02d-%s.ko", i, m.name)
		c.add(name, 0o100644, m.data)
		order.WriteString("/" + name + "\n")
	}
	c.add("modules/order", 0o100644, []byte(order.String()))
	c.end()
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(raw.Bytes()); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return os.WriteFile(file, packed.Bytes(), 0o644)
}

// cpio writes an archive of the "newc" kind, which the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst). Its writer never fails.
type cpio struct {
	w     *bytes.Buffer
	inode uint32
}

func (c *cpio) add(name string, mode uint32, data []byte) { c.entry(name, mode, data, 0, 0) }

func (c *cpio) device(name string, mode, major, minor uint32) { c.entry(name, mode, nil, major, minor) }

func (c *cpio) entry(name string, mode uint32, data []byte, major, minor uint32) {
	c.inode++
	links := 1
	if mode&0o170000 == 0o040000 {
		links = 2
	}
	// Magic; inode, mode, uid, gid, links, mtime, size, device, device of a device, length of
	// the name with its end, checksum (none).
	fmt.Fprintf(c.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", c.inode, mode, 0, 0, links, 0,
		len(data), 0, 0, major, minor, len(name)+1, 0)
	c.w.WriteString(name + "\x00")
	c.pad()
	c.w.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.w.Len()%4 != 0 {
		c.w.WriteByte(0)
	}
}

func (c *cpio) end() {
	c.inode = 0
	c.entry("TRAILER!!!", 0, nil, 0, 0)
}

// readDebFile returns one file of a package.
func readDebFile(ctx context.Context, file, name string) ([]byte, error) {
	out, err := command{name: "dpkg-deb", args: []string{"--fsys-tarfile", file}}.run(ctx)
	if err != nil {
		return nil, err
	}
	return tarFile(bytes.NewReader(out), name)
}
