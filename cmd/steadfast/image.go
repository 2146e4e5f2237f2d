package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"steadfast/compute/image"
	"steadfast/fault"
	"steadfast/node/size"
)

// imageCommand is "steadfast image".
func (a *app) imageCommand() *cobra.Command {
	var dir string
	store := func() (image.Store, error) {
		d, err := a.imageStore(dir)
		return image.Store{Dir: d}, err
	}
	c := group("image", "Make and keep the images that machines boot",
		a.imageBuild(store), a.imageImport(store), a.imageList(store), a.imageShow(store),
		a.imageClone(store), a.imageResize(store), a.imageDelete(store))
	c.PersistentFlags().StringVar(&dir, "store", "", "folder of images (default $STEADFAST_IMAGES, or steadfast/images in the user's data)")
	return c
}

// openStore finds the folder of images that the flags mean.
type openStore func() (image.Store, error)

// imageStore returns the folder of images (XDG Base Directory Specification).
func (a *app) imageStore(dir string) (string, error) {
	if dir == "" {
		dir = a.getenv("STEADFAST_IMAGES")
	}
	if dir == "" {
		base := a.getenv("XDG_DATA_HOME")
		if base == "" {
			home := a.getenv("HOME")
			if home == "" {
				return "", fault.New(fault.Invalid, "no HOME to keep images in; say --store")
			}
			base = filepath.Join(home, ".local", "share")
		}
		dir = filepath.Join(base, "steadfast", "images")
	}
	all, err := absolute(dir)
	if err != nil {
		return "", err
	}
	return all[0], nil
}

// imageCache returns the folder of what can be made again.
func (a *app) imageCache(dir string) (string, error) {
	if dir != "" {
		all, err := absolute(dir)
		if err != nil {
			return "", err
		}
		return all[0], nil
	}
	base := a.getenv("XDG_CACHE_HOME")
	if base == "" {
		home := a.getenv("HOME")
		if home == "" {
			return "", fault.New(fault.Invalid, "no HOME to keep a cache in; set XDG_CACHE_HOME")
		}
		base = filepath.Join(home, ".cache")
	}
	return filepath.Join(base, "steadfast", "images"), nil
}

// imageNames lists names for completion. Flags are not read yet then.
func (a *app) imageNames(context.Context) []string {
	dir, err := a.imageStore("")
	if err != nil {
		return nil
	}
	all, err := image.Store{Dir: dir}.List()
	if err != nil {
		return nil
	}
	var names []string
	for _, m := range all {
		names = append(names, m.Name)
	}
	return names
}

// interruptible runs what takes long, ended in order by Ctrl-C.
func interruptible(ctx context.Context, do func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, unix.SIGTERM)
	defer stop()
	return do(ctx)
}

func (a *app) imageBuild(store openStore) *cobra.Command {
	var spec image.Spec
	var bytes sizeFlag
	var dir, cache, passwordFile string
	var files []string
	c := &cobra.Command{
		Use: "build NAME", Short: "Build a Debian 13 image for riscv64 machines", Args: exactly(1),
		Long: `Build a Debian 13 (trixie) image for riscv64 machines: kernel, initrd, disk and a
manifest. No root is needed.

Packages come from the Debian mirror that this host's apt uses, with apt's checks
of their signatures. They are configured in a machine of its own ("steadfast machine"),
once; after that the cache has the result, and another image of the same packages and size is a copy of it.
--refresh builds anew, with what the mirror has now.

Root logs in on the console (ttyS0): with the password in --root-password-file, or
without one, and then from nowhere else. eth0 is set up by DHCP. The power button
shuts the machine down in order.

Profiles:
` + profileList(),
		Example: `  steadfast image build vm1
  steadfast image build db1 --package redis-server --size 4G --root-password-file pw
  steadfast image build ci --profile minimal --dir ./ci-image
  steadfast image build web1 --package nginx --file site.conf:/etc/nginx/conf.d/site.conf`,
		RunE: func(cmd *cobra.Command, args []string) error {
			spec.Name, spec.SizeBytes = args[0], int64(bytes)
			if err := image.CheckName(spec.Name); err != nil {
				return err
			}
			if passwordFile != "" {
				var err error
				if spec.RootPassword, err = a.secret(passwordFile, "--root-password-file", ""); err != nil {
					return err
				}
			}
			var err error
			if spec.Files, err = imageFiles(files); err != nil {
				return err
			}
			to, err := a.imageTarget(store, spec.Name, dir)
			if err != nil {
				return err
			}
			b := &image.Builder{Say: image.SayTo(a.errs)}
			b.Runner = stage{b.Say}
			if b.Cache, err = a.imageCache(cache); err != nil {
				return err
			}
			return interruptible(cmd.Context(), func(ctx context.Context) error {
				m, err := b.Build(ctx, spec, to)
				if err != nil {
					return err
				}
				return a.didImage(m, "built image %q in %s: %d packages, %s", m.Name, to, len(m.Packages), size.Format(m.SizeBytes))
			})
		},
	}
	c.Flags().StringVar(&spec.Profile, "profile", "", "what the image is made of (default "+image.Profiles()[0].Name+")")
	c.Flags().StringArrayVar(&spec.Packages, "package", nil, "a package to add, NAME or NAME=VERSION; may be repeated")
	c.Flags().StringArrayVar(&files, "file", nil, "FILE:PATH, a file of this host to put at a path of the guest's, root's there; may be repeated")
	c.Flags().Var(&bytes, "size", "the disk's size (default 1G)")
	c.Flags().StringVar(&spec.Hostname, "hostname", "", "the guest's name (default NAME)")
	c.Flags().StringVar(&passwordFile, "root-password-file", "", "file with root's password (\"-\": standard input; default: none is needed on the console)")
	c.Flags().StringVar(&spec.Mirror, "mirror", "", "a Debian mirror's URL (default: the one that this host's apt uses)")
	c.Flags().BoolVar(&spec.Refresh, "refresh", false, "build anew although the cache has it")
	c.Flags().StringVar(&dir, "dir", "", "make the image in this folder, which must not be there yet, and not in the store")
	c.Flags().StringVar(&cache, "cache", "", "folder of packages and built disks (default steadfast/images in the user's cache)")
	a.complete(c, "profile", func(context.Context) []string {
		var names []string
		for _, p := range image.Profiles() {
			names = append(names, p.Name)
		}
		return names
	})
	return c
}

// imageFiles reads the files of --file. Fails with fault.Invalid, and fault.NotFound.
func imageFiles(flags []string) ([]image.File, error) {
	var files []image.File
	for _, text := range flags {
		// The last colon: a path of this host may have some.
		i := strings.LastIndexByte(text, ':')
		if i < 1 || i == len(text)-1 {
			return nil, fault.New(fault.Invalid, "--file %q: it is FILE:PATH, as in site.conf:/etc/nginx/conf.d/site.conf", text)
		}
		info, err := os.Stat(text[:i])
		if err == nil && !info.Mode().IsRegular() {
			err = fault.New(fault.Invalid, "%s is no regular file", text[:i])
		}
		var content []byte
		if err == nil {
			content, err = os.ReadFile(text[:i])
		}
		if err != nil {
			kind := fault.Invalid
			if errors.Is(err, fs.ErrNotExist) {
				kind = fault.NotFound
			}
			return nil, fault.Wrap(kind, err, "--file")
		}
		files = append(files, image.File{Path: text[i+1:], Content: content, Mode: info.Mode().Perm()})
	}
	return files, nil
}

// profileList is the help's list of profiles.
func profileList() string {
	var lines []string
	for _, p := range image.Profiles() {
		lines = append(lines, fmt.Sprintf("  %-8s %s", p.Name, p.Short))
	}
	return strings.Join(lines, "\n")
}

// imageTarget returns where an image is to be made.
func (a *app) imageTarget(store openStore, name, dir string) (string, error) {
	if dir != "" {
		all, err := absolute(dir)
		if err != nil {
			return "", err
		}
		return all[0], nil
	}
	s, err := store()
	if err != nil {
		return "", err
	}
	return s.Path(name)
}

// didImage prints what a change came to: the manifest as JSON, or a sentence.
func (a *app) didImage(m *image.Manifest, format string, args ...any) error {
	if a.output == "json" {
		return a.printJSON(m)
	}
	_, err := fmt.Fprintf(a.out, format+"\n", args...)
	return err
}

func (a *app) imageImport(store openStore) *cobra.Command {
	var in image.Import
	c := &cobra.Command{
		Use: "import NAME FILE", Short: "Copy a raw or qcow2 disk into the store", Args: exactly(2),
		Long: `Copy a disk from elsewhere into the store: raw, or qcow2 of version 2 or 3 without
another file below it. A machine boots a kernel that lies beside the disk: give one
with --kernel and --initrd, or take that of another image with --like.`,
		Example: `  steadfast image import data1 data.qcow2
  steadfast image import vm2 vm2.raw --like vm1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := store()
			if err != nil {
				return err
			}
			in.Name, in.File = args[0], args[1]
			return interruptible(cmd.Context(), func(ctx context.Context) error {
				m, err := s.Import(ctx, in)
				if err != nil {
					return err
				}
				return a.didImage(m, "imported image %q: %s", m.Name, size.Format(m.SizeBytes))
			})
		},
	}
	c.Flags().StringVar(&in.Kernel, "kernel", "", "file of the kernel to boot (a riscv64 Image)")
	c.Flags().StringVar(&in.Initrd, "initrd", "", "file of its initial RAM disk")
	c.Flags().StringVar(&in.LikeImage, "like", "", "take kernel and initrd of this image")
	c.Flags().StringVar(&in.Cmdline, "cmdline", "", "the kernel's command line (default: as for built images)")
	a.complete(c, "like", a.imageNames)
	return c
}

func (a *app) imageList(store openStore) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List images", Example: "  steadfast image list", Args: exactly(0),
		RunE: func(*cobra.Command, []string) error {
			s, err := store()
			if err != nil {
				return err
			}
			all, err := s.List()
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.printJSON(append([]*image.Manifest{}, all...))
			}
			w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
			row(w, "IMAGE", "RELEASE", "PROFILE", "SIZE", "USED", "KERNEL")
			for _, m := range all {
				used, err := s.UsedBytes(m.Name)
				if err != nil {
					return err
				}
				row(w, m.Name, m.Release, m.Profile, size.Format(m.SizeBytes), size.Format(used), m.KernelVersion)
			}
			return w.Flush()
		},
	}
}

func (a *app) imageShow(store openStore) *cobra.Command {
	c := &cobra.Command{
		Use: "show NAME", Short: "Show an image", Example: "  steadfast image show vm1 --output json", Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := store()
			if err != nil {
				return err
			}
			m, err := s.Get(args[0])
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.printJSON(m)
			}
			return a.showImage(s, m)
		},
	}
	a.complete(c, "", a.imageNames)
	return c
}

// showImage prints an image's manifest.
func (a *app) showImage(s image.Store, m *image.Manifest) error {
	dir, err := s.Path(m.Name)
	if err != nil {
		return err
	}
	used, err := s.UsedBytes(m.Name)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	showFields(w, [][2]string{
		{"image", m.Name},
		{"folder", dir},
		{"release", m.Release},
		{"architecture", m.Architecture},
		{"profile", m.Profile},
		{"hostname", m.Hostname},
		{"source", m.Source},
		{"kernel", m.KernelVersion},
		{"cmdline", m.Cmdline},
		{"disk", fmt.Sprintf("%s, %s, files take %s", m.Disk, size.Format(m.SizeBytes), size.Format(used))},
		{"filesystem", strings.TrimSpace(m.Filesystem + " " + m.UUID)},
		{"archive", m.ArchiveDate},
		{"build", m.Key},
	})
	for _, p := range m.Packages {
		if p.Manual {
			row(w, "package", p.Name+" "+p.Version)
		}
	}
	for _, path := range m.Files {
		row(w, "file", path)
	}
	if n := len(m.Packages); n > 0 {
		row(w, "packages", fmt.Sprintf("%d in all; --output json lists them", n))
	}
	return w.Flush()
}

// showFields prints the fields that have a value.
func showFields(w io.Writer, fields [][2]string) {
	for _, f := range fields {
		if f[1] != "" {
			row(w, f[0], f[1])
		}
	}
}

func (a *app) imageClone(store openStore) *cobra.Command {
	var hostname string
	c := &cobra.Command{
		Use: "clone NAME NEW", Short: "Copy an image", Args: exactly(2),
		Long: `Copy an image. Space is shared with the source where the filesystem can do that.
The copy of one that has been booted has its keys and identifiers.`,
		Example: "  steadfast image clone vm1 vm2 --hostname vm2",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := store()
			if err != nil {
				return err
			}
			return interruptible(cmd.Context(), func(ctx context.Context) error {
				m, err := s.Clone(ctx, args[0], args[1], hostname)
				if err != nil {
					return err
				}
				return a.didImage(m, "cloned image %q as %q", args[0], args[1])
			})
		},
	}
	c.Flags().StringVar(&hostname, "hostname", "", "the guest's name (default: as in NAME)")
	a.complete(c, "", a.imageNames)
	return c
}

func (a *app) imageResize(store openStore) *cobra.Command {
	c := &cobra.Command{
		Use: "resize NAME SIZE", Short: "Make an image's disk larger", Args: exactly(2),
		Long: `Make an image's disk larger, and the ext4 filesystem on it with it if there is no
partition table. No machine may use the image.`,
		Example: "  steadfast image resize vm1 8G",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := store()
			if err != nil {
				return err
			}
			n, err := size.Parse(args[1])
			if err != nil {
				return err
			}
			return interruptible(cmd.Context(), func(ctx context.Context) error {
				m, err := s.Resize(ctx, args[0], n)
				if err != nil {
					return err
				}
				return a.didImage(m, "resized image %q to %s", args[0], size.Format(m.SizeBytes))
			})
		},
	}
	a.complete(c, "", a.imageNames)
	return c
}

func (a *app) imageDelete(store openStore) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "delete NAME", Short: "Delete an image and its disk", Example: "  steadfast image delete vm1 --yes", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := store()
			if err != nil {
				return err
			}
			if _, err := s.Get(args[0]); err != nil {
				return err
			}
			if err := a.confirm(yes, "Delete image %q and all that is on its disk?", args[0]); err != nil {
				return err
			}
			if err := s.Delete(cmd.Context(), args[0]); err != nil {
				return err
			}
			return a.did(nil, "deleted image %q", args[0])
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	a.complete(c, "", a.imageNames)
	return c
}
