package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"steadfast/fault"
)

// ownFile is a file of guestFiles and its place in the guest.
type ownFile struct {
	from, to string
	mode     uint32
}

// ownFiles are put into images, by profile; "" is all.
var ownFiles = map[string][]ownFile{
	"": {
		{"fstab", "etc/fstab", 0o644},
		{"second-stage", "var/lib/steadfast/second-stage/run", 0o755},
	},
	"debian": {
		{"debian/eth0.network", "etc/systemd/network/20-eth0.network", 0o644},
		{"debian/ssh-keys.service", "etc/systemd/system/steadfast-ssh-keys.service", 0o644},
	},
	"minimal": {
		{"minimal/inittab", "etc/inittab", 0o644},
		{"minimal/start", "usr/lib/steadfast/start", 0o755},
		{"minimal/stop", "usr/lib/steadfast/stop", 0o755},
		{"minimal/udhcpc", "usr/lib/steadfast/udhcpc", 0o755},
		{"minimal/power-button", "etc/acpi/PWRF/00000080", 0o755},
	},
}

// ownLinks are symbolic links put into images, by profile: place and target.
var ownLinks = map[string][][2]string{
	"minimal": {
		{"usr/sbin/init", "../bin/busybox"},
		{"usr/sbin/poweroff", "../bin/busybox"},
		{"usr/sbin/reboot", "../bin/busybox"},
		{"usr/sbin/halt", "../bin/busybox"},
	},
}

// cmdline is the kernel's command line of built images.
const cmdline = "console=ttyS0 root=/dev/vda net.ifnames=0 quiet"

// secondStage is added to it for the second stage.
const secondStage = " steadfast.stage=second"

// builtMark is the file that the second stage leaves when all went well.
const builtMark = "/var/lib/steadfast/built"

// assembly is one build, in a folder of its own, up to the second stage.
type assembly struct {
	dir     string
	profile Profile
	size    int64
	key     string
	say     func(string, ...any)
}

// uuid is the filesystem's identifier, made of the key alone (RFC 9562, 5.8).
func (a *assembly) uuid() string {
	h := sha256.Sum256([]byte("filesystem " + a.key))
	h[6] = h[6]&0x0f | 0x80
	h[8] = h[8]&0x3f | 0x80
	x := hex.EncodeToString(h[:16])
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
}

// assemble makes kernel, initrd and disk of packages in a.dir, ready for the second stage.
func (a *assembly) assemble(ctx context.Context, arch *archive, packages []string) (*Manifest, error) {
	plan, kern, busybox, err := a.fetch(ctx, arch, packages)
	if err != nil {
		return nil, err
	}
	a.say("unpacking %d packages", len(plan))
	t, err := newTree(filepath.Join(a.dir, "tree"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.close() }()
	db, err := unpackDebs(ctx, t, plan)
	if err != nil {
		return nil, err
	}
	k, err := unpackKernel(ctx, kern, filepath.Join(a.dir, "kernel-package"))
	if err != nil {
		return nil, err
	}
	if a.profile.modules {
		if err := k.install(ctx, t, arch.date); err != nil {
			return nil, err
		}
	}
	if err := db.write(t, arch.date); err != nil {
		return nil, err
	}
	if err := a.ownFiles(t, arch, db); err != nil {
		return nil, err
	}
	a.say("making a filesystem of %d MiB", a.size>>20)
	if err := a.disk(ctx, t, arch.date); err != nil {
		return nil, err
	}
	if err := a.boot(ctx, k, busybox); err != nil {
		return nil, err
	}
	return &Manifest{
		Release: releaseName, Architecture: architecture, Profile: a.profile.Name, Builder: builderVersion, Key: a.key,
		ArchiveDate: arch.date.Format(time.RFC3339), KernelVersion: k.version, Cmdline: cmdline,
		Disk: rootFile, SizeBytes: a.size, Filesystem: "ext4", UUID: a.uuid(), Packages: db.packages,
	}, nil
}

// fetch chooses and downloads packages: those of the disk, the kernel's, and busybox's.
func (a *assembly) fetch(ctx context.Context, arch *archive, packages []string) (plan []deb, kern, busybox deb, err error) {
	if plan, err = arch.plan(ctx, append(append([]string{}, a.profile.packages...), packages...)); err != nil {
		return nil, deb{}, deb{}, err
	}
	if kern, err = arch.kernelPackage(ctx); err != nil {
		return nil, deb{}, deb{}, err
	}
	only, err := arch.plan(ctx, []string{"busybox-static"})
	if err != nil {
		return nil, deb{}, deb{}, err
	}
	for _, d := range only {
		if d.Name == "busybox-static" {
			busybox = d
		}
	}
	if busybox.path == "" {
		return nil, deb{}, deb{}, fault.New(fault.NotFound, "apt knows no busybox-static")
	}
	a.say("fetching %d packages and %s", len(plan), kern.Name)
	return plan, kern, busybox, arch.fetch(ctx, append([]deb{kern, busybox}, plan...))
}

// ownFiles adds what no package has.
func (a *assembly) ownFiles(t *tree, arch *archive, db *dpkgDB) error {
	for _, p := range []string{"", a.profile.Name} {
		for _, f := range ownFiles[p] {
			b, err := guestFiles.ReadFile("guest/" + f.from)
			if err != nil {
				return err
			}
			if err := t.put(f.to, string(b), f.mode, arch.date); err != nil {
				return err
			}
		}
		for _, l := range ownLinks[p] {
			if err := t.link(l[0], l[1], arch.date); err != nil {
				return err
			}
		}
	}
	const stage = "var/lib/steadfast/second-stage/"
	for name, content := range map[string]string{
		"etc/apt/sources.list.d/debian.sources": arch.guestSources(),
		"etc/hostname":                          "debian\n",
		"etc/hosts":                             hosts("debian"),
		stage + "architecture":                  architecture + "\n",
		stage + "preinst":                       lines(db.preinsts),
		stage + "units":                         lines(a.profile.units),
	} {
		if err := t.put(name, content, 0o644, arch.date); err != nil {
			return err
		}
	}
	return nil
}

// lines ends each of list with a line's end.
func lines(list []string) string {
	var b strings.Builder
	for _, l := range list {
		b.WriteString(l + "\n")
	}
	return b.String()
}

// hosts is the file /etc/hosts of a machine that is called name.
func hosts(name string) string {
	return fmt.Sprintf("127.0.0.1\tlocalhost\n127.0.1.1\t%s\n::1\tlocalhost ip6-localhost ip6-loopback\n", name)
}

// disk makes the filesystem of the tree.
func (a *assembly) disk(ctx context.Context, t *tree, when time.Time) error {
	script, err := t.settle(when)
	if err != nil {
		return err
	}
	file := filepath.Join(a.dir, rootFile)
	if err := makeExt4(ctx, file, a.size, a.uuid(), t.dir, when); err != nil {
		return fault.Wrap(fault.KindOf(err), err, "making the filesystem; is its size enough for the packages?")
	}
	if err := debugfsWrite(ctx, file, when, script...); err != nil {
		return err
	}
	return checkExt4(ctx, file, when)
}

// boot makes kernel and initrd.
func (a *assembly) boot(ctx context.Context, k *kernel, busybox deb) error {
	if err := copySparse(filepath.Join(a.dir, kernelFile), k.image); err != nil {
		return err
	}
	bb, err := readDebFile(ctx, busybox.path, "usr/bin/busybox")
	if err != nil {
		return err
	}
	modules, err := k.load(ctx, bootModules)
	if err != nil {
		return err
	}
	return makeInitrd(filepath.Join(a.dir, initrdFile), bb, modules)
}
