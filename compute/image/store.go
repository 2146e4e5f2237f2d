package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"steadfast/fault"
)

// Store is a folder of images: a folder each, by name.
type Store struct {
	Dir string
}

// Path returns where an image is, or would be. Fails with fault.Invalid for a name that
// cannot be one.
func (s Store) Path(name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	return filepath.Join(s.Dir, name), nil
}

// Get returns an image's manifest. Fails with fault.NotFound.
func (s Store) Get(name string) (*Manifest, error) {
	dir, err := s.Path(name)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "there is no image %q in %s", name, s.Dir)
	}
	return readManifest(dir)
}

// List returns all images' manifests, by name. A folder without one is not an image.
func (s Store) List() ([]*Manifest, error) {
	all, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var list []*Manifest
	for _, e := range all {
		if !e.IsDir() || !imageName.MatchString(e.Name()) {
			continue
		}
		m, err := readManifest(filepath.Join(s.Dir, e.Name()))
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m.Name = e.Name()
		list = append(list, m)
	}
	return list, nil
}

// Delete removes an image: at once for everyone who looks for it, then its files.
func (s Store) Delete(ctx context.Context, name string) error {
	if _, err := s.Get(name); err != nil {
		return err
	}
	m, err := beginMaking(ctx, s.Dir)
	if err != nil {
		return err
	}
	err = os.Rename(filepath.Join(s.Dir, name), filepath.Join(m.dir, "gone"))
	return errors.Join(err, m.end())
}

// UsedBytes returns how much an image's files take of its filesystem.
func (s Store) UsedBytes(name string) (int64, error) {
	dir, err := s.Path(name)
	if err != nil {
		return 0, err
	}
	return usedBytes(dir)
}

// make makes an image by what fill puts into its folder and says of it.
func (s Store) make(ctx context.Context, name string, fill func(dir string) (*Manifest, error)) (*Manifest, error) {
	final, err := s.Path(name)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(final); err == nil {
		return nil, fault.New(fault.Exists, "there is an image %q already", name)
	}
	m, err := beginMaking(ctx, s.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = m.end() }()
	man, err := fill(m.dir)
	if err != nil {
		return nil, err
	}
	man.Name = name
	if err := writeManifest(m.dir, man); err != nil {
		return nil, err
	}
	return man, m.become(final)
}

// Clone copies an image; what can be shared with it is. A hostname that is not "" is given
// to the guest.
func (s Store) Clone(ctx context.Context, from, to, hostname string) (*Manifest, error) {
	src, err := s.Get(from)
	if err != nil {
		return nil, err
	}
	if hostname != "" && !hostName.MatchString(hostname) {
		return nil, fault.New(fault.Invalid, "a host cannot be called %q: small letters, digits and dashes, at most 63", hostname)
	}
	if hostname != "" && src.Filesystem != "ext4" {
		return nil, fault.New(fault.Invalid, "image %q holds no filesystem that its guest's name could be written to", from)
	}
	return s.make(ctx, to, func(dir string) (*Manifest, error) {
		for _, name := range []string{kernelFile, initrdFile, src.Disk} {
			err := copySparse(filepath.Join(dir, name), filepath.Join(s.Dir, from, name))
			if errors.Is(err, fs.ErrNotExist) && name != src.Disk {
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		src.Source = from
		if hostname != "" {
			src.Hostname = hostname
			if err := setHostname(ctx, filepath.Join(dir, src.Disk), hostname, time.Now()); err != nil {
				return nil, err
			}
		}
		return src, nil
	})
}

// Resize makes an image's disk larger; a filesystem that is on it from its first byte on
// grows with it. Other ones are the guest's to grow. Fails with fault.Invalid for a smaller size.
func (s Store) Resize(ctx context.Context, name string, size int64) (*Manifest, error) {
	man, err := s.Get(name)
	if err != nil {
		return nil, err
	}
	if err := checkSize(size); err != nil {
		return nil, err
	}
	if size < man.SizeBytes {
		return nil, fault.New(fault.Invalid, "image %q has %d bytes; disks are not made smaller", name, man.SizeBytes)
	}
	m, err := beginMaking(ctx, s.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = m.end() }()
	// On a copy, so that an interruption leaves the disk as it was.
	old, disk := filepath.Join(s.Dir, name, man.Disk), filepath.Join(m.dir, man.Disk)
	if err := copySparse(disk, old); err != nil {
		return nil, err
	}
	if err := os.Truncate(disk, size); err != nil {
		return nil, err
	}
	if man.Filesystem == "ext4" {
		if err := checkExt4(ctx, disk, time.Now()); err != nil {
			return nil, err
		}
		if _, err := (command{name: "resize2fs", args: []string{disk}}).run(ctx); err != nil {
			return nil, err
		}
	}
	man.SizeBytes = size
	if err := writeManifest(m.dir, man); err != nil {
		return nil, err
	}
	// The manifest last: until then it tells the size that was, which is true of all but the end.
	if err := os.Rename(disk, old); err != nil {
		return nil, err
	}
	return man, os.Rename(filepath.Join(m.dir, manifestFile), filepath.Join(s.Dir, name, manifestFile))
}

// Import is what a disk from elsewhere is imported as.
type Import struct {
	Name string
	// File is the disk: raw, or qcow2 without another file below it.
	File string
	// Kernel and Initrd are files to boot it with; LikeImage names an image whose ones are
	// taken in their place. With none of them it is a disk only.
	Kernel, Initrd, LikeImage string
	// Cmdline is the kernel's command line; "" for that of built images.
	Cmdline string
}

// Import copies a disk from elsewhere. Fails with fault.Invalid for kinds that it does not read.
func (s Store) Import(ctx context.Context, in Import) (*Manifest, error) {
	f, err := os.Open(in.File)
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "the disk to import")
	}
	defer f.Close()
	kern, initrd, err := s.bootOf(in)
	if err != nil {
		return nil, err
	}
	return s.make(ctx, in.Name, func(dir string) (*Manifest, error) {
		man := &Manifest{Architecture: architecture, Disk: diskFile, Source: filepath.Base(in.File)}
		disk := filepath.Join(dir, diskFile)
		if err := importDisk(ctx, disk, f); err != nil {
			return nil, err
		}
		st, err := os.Stat(disk)
		if err != nil {
			return nil, err
		}
		man.SizeBytes = st.Size()
		if man.Filesystem, err = filesystemOf(disk); err != nil {
			return nil, err
		}
		if kern != "" {
			man.Cmdline = in.Cmdline
			if man.Cmdline == "" {
				man.Cmdline = cmdline
			}
		}
		for name, from := range map[string]string{kernelFile: kern, initrdFile: initrd} {
			if from == "" {
				continue
			}
			if err := copySparse(filepath.Join(dir, name), from); err != nil {
				return nil, err
			}
		}
		return man, nil
	})
}

// bootOf returns the files that an import is to be booted with.
func (s Store) bootOf(in Import) (kern, initrd string, err error) {
	if in.LikeImage == "" {
		return in.Kernel, in.Initrd, nil
	}
	if in.Kernel != "" || in.Initrd != "" {
		return "", "", fault.New(fault.Invalid, "either an image to boot like, or a kernel and an initrd")
	}
	if _, err := s.Get(in.LikeImage); err != nil {
		return "", "", err
	}
	dir := filepath.Join(s.Dir, in.LikeImage)
	return filepath.Join(dir, kernelFile), filepath.Join(dir, initrdFile), nil
}

// foreign are the first bytes of kinds of disks that are not read, and their names.
var foreign = map[string]string{"KDMV": "VMDK", "COWD": "VMDK", "vhdxfile": "VHDX", "conectix": "VHD", "<<< ": "VDI", "# Disk DescriptorFile": "VMDK"}

// importDisk writes the disk in f to a new file, raw, its size rounded up to sizeUnit.
func importDisk(ctx context.Context, disk string, f *os.File) (err error) {
	packed, err := kindOf(f)
	if err != nil {
		return err
	}
	var size int64
	if packed {
		size, err = importQcow2(ctx, disk, f)
	} else {
		var st os.FileInfo
		if st, err = f.Stat(); err == nil {
			size = st.Size()
			err = copySparse(disk, f.Name())
		}
	}
	if err != nil {
		return err
	}
	if size == 0 || size > SizeMax {
		return fault.New(fault.Invalid, "%s is a disk of %d bytes", f.Name(), size)
	}
	return os.Truncate(disk, (size+sizeUnit-1)/sizeUnit*sizeUnit)
}

// importQcow2 writes a qcow2 file's disk to a new file and returns its size in bytes.
func importQcow2(ctx context.Context, disk string, f *os.File) (size int64, err error) {
	q, err := openQcow2(f)
	if err != nil {
		return 0, err
	}
	out, err := os.OpenFile(disk, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(q.size); err != nil {
		return 0, err
	}
	if err := q.copyTo(ctx, out); err != nil {
		return 0, err
	}
	return q.size, out.Sync()
}

// filesystemOf returns "ext4" if one begins with the disk, else "".
func filesystemOf(disk string) (string, error) {
	f, err := os.Open(disk)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// The superblock's magic number (Documentation/filesystems/ext4/super.rst).
	var magic [2]byte
	if _, err := f.ReadAt(magic[:], 1024+0x38); err != nil || magic != [2]byte{0x53, 0xef} {
		return "", nil
	}
	return "ext4", nil
}
