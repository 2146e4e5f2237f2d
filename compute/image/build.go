package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"steadfast/fault"
)

// Spec is what an image is to be.
type Spec struct {
	Name string
	// Profile is a Profile's name, "" the first of them.
	Profile string
	// Packages are added to the profile's: NAME or NAME=VERSION.
	Packages []string
	// SizeBytes is the disk's, 0 for 1 GiB.
	SizeBytes int64
	// Hostname is the guest's, "" for the image's name.
	Hostname string
	// RootPassword may log in on the console; nil is none: there root gets in without.
	RootPassword []byte
	// Mirror is a Debian mirror's address, "" for the one that this host's apt uses.
	Mirror string
	// Refresh builds anew although the cache has it: packages may be newer.
	Refresh bool
	// Files are put on the disk when all is configured; they replace what is there.
	Files []File
}

// File is one that an image gets besides what its packages bring. It is root's.
type File struct {
	// Path is where it is in the guest, in a folder that is there.
	Path    string
	Content []byte
	// Mode are its permissions.
	Mode fs.FileMode
}

// sizeDefault is the disk's size if none is said, in bytes.
const sizeDefault = 1 << 30

// Builder builds images.
type Builder struct {
	// Cache is a folder for what can be made again: packages and built disks.
	Cache string
	// Runner boots the machine of the second stage.
	Runner Runner
	// Say is told of progress, a line at a time.
	Say func(format string, args ...any)
}

// check fills in what was left out. Fails with fault.Invalid.
func (s *Spec) check() (Profile, error) {
	p, err := profileOf(s.Profile)
	if err != nil {
		return p, err
	}
	if s.SizeBytes == 0 {
		s.SizeBytes = sizeDefault
	}
	if s.Hostname == "" {
		s.Hostname = strings.Trim(strings.NewReplacer(".", "-", "_", "-").Replace(s.Name), "-")
	}
	for _, name := range s.Packages {
		if !packageName.MatchString(name) {
			return p, fault.New(fault.Invalid, "%q is no package's name, nor NAME=VERSION", name)
		}
	}
	if !hostName.MatchString(s.Hostname) {
		return p, fault.New(fault.Invalid, "a host cannot be called %q: small letters, digits and dashes, at most 63", s.Hostname)
	}
	if err := checkPassword(s.RootPassword); err != nil {
		return p, err
	}
	if err := checkFiles(s.Files); err != nil {
		return p, err
	}
	return p, checkSize(s.SizeBytes)
}

// key is the hash of all that a build is made of, but the archive's state.
func (s *Spec) key(p Profile) string {
	packages := slices.Compact(slices.Sorted(slices.Values(s.Packages)))
	text, err := json.Marshal(map[string]any{
		"builder": builderVersion, "release": release, "architecture": architecture, "profile": p.Name, "base": p.packages,
		"packages": packages, "size": s.SizeBytes, "mirror": s.Mirror,
	})
	if err != nil {
		// Strings and numbers can always be encoded.
		panic(err)
	}
	h := sha256.Sum256(text)
	return hex.EncodeToString(h[:16])
}

// Build makes an image in dir, which must not be there yet, and returns what it is.
func (b *Builder) Build(ctx context.Context, spec Spec, dir string) (*Manifest, error) {
	p, err := spec.check()
	if err != nil {
		return nil, err
	}
	if err := CheckTools(); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(dir); err == nil {
		return nil, fault.New(fault.Exists, "%s is there already", dir)
	}
	built, err := b.built(ctx, spec, p)
	if err != nil {
		return nil, err
	}
	b.Say("copying the image to %s", dir)
	return b.finish(ctx, spec, built, dir)
}

// built returns the cache's folder of what spec describes, made if need be.
func (b *Builder) built(ctx context.Context, spec Spec, p Profile) (string, error) {
	key := spec.key(p)
	parent := filepath.Join(b.Cache, "built")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	done, err := lock(ctx, filepath.Join(parent, key+".lock"), func() { b.Say("waiting for another build of the same image") })
	if err != nil {
		return "", err
	}
	defer done()
	final := filepath.Join(parent, key)
	if _, err := readManifest(final); err == nil && !spec.Refresh {
		b.Say("the cache has it already (key %s)", key)
		return final, nil
	}
	m, err := beginMaking(ctx, parent)
	if err != nil {
		return "", err
	}
	defer func() { _ = m.end() }()
	if err := b.make(ctx, spec, p, key, m.dir); err != nil {
		return "", err
	}
	if err := removeAll(final); err != nil {
		return "", err
	}
	return final, m.become(final)
}

// make builds into a folder that is being made.
func (b *Builder) make(ctx context.Context, spec Spec, p Profile, key, dir string) error {
	a := &assembly{dir: filepath.Join(dir, "work"), profile: p, size: spec.SizeBytes, key: key, say: b.Say}
	if err := os.Mkdir(a.dir, 0o755); err != nil {
		return err
	}
	man, err := b.fetchAndAssemble(ctx, a, spec)
	if err != nil {
		return err
	}
	if err := b.secondStage(ctx, a, len(man.Packages)); err != nil {
		return err
	}
	date, err := time.Parse(time.RFC3339, man.ArchiveDate)
	if err != nil {
		return err
	}
	if err := checkExt4(ctx, filepath.Join(a.dir, rootFile), date); err != nil {
		return err
	}
	for _, name := range []string{kernelFile, initrdFile, rootFile} {
		if err := os.Rename(filepath.Join(a.dir, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := removeAll(a.dir); err != nil {
		return err
	}
	man.SHA256 = map[string]string{}
	for _, name := range []string{kernelFile, initrdFile} {
		if man.SHA256[name], err = hashFile(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return writeManifest(dir, man)
}

// fetchAndAssemble holds the lock on the folder of packages.
func (b *Builder) fetchAndAssemble(ctx context.Context, a *assembly, spec Spec) (*Manifest, error) {
	debs := filepath.Join(b.Cache, "packages")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return nil, err
	}
	done, err := lock(ctx, debs, func() { b.Say("waiting for another build to have its packages") })
	if err != nil {
		return nil, err
	}
	defer done()
	b.Say("reading the archive's index")
	arch, err := openArchive(ctx, filepath.Join(a.dir, "apt"), debs, spec.Mirror, b.Say)
	if err != nil {
		return nil, err
	}
	return a.assemble(ctx, arch, spec.Packages)
}

// secondStage boots the machine and lets the packages configure themselves.
func (b *Builder) secondStage(ctx context.Context, a *assembly, packages int) error {
	b.Say("configuring %d packages in a machine", packages)
	console := &progress{say: b.Say, of: packages}
	disk := filepath.Join(a.dir, rootFile)
	err := b.Runner.Run(ctx, Boot{
		Kernel: filepath.Join(a.dir, kernelFile), Initrd: filepath.Join(a.dir, initrdFile), Disk: disk,
		Cmdline: cmdline + secondStage, Console: console,
	})
	if ctx.Err() != nil {
		return fault.Wrap(fault.Canceled, ctx.Err(), "the second stage")
	}
	if err == nil {
		_, err = debugfsRead(ctx, disk, builtMark)
	}
	if err != nil {
		return fault.New(fault.Failed, "the second stage failed: %w; the end of the console:\n%s", err, console.tail())
	}
	return nil
}

// consoleBytesMax bounds how much of a console's end is kept.
const consoleBytesMax = 8 << 10

// progress takes a console and says how far the second stage is.
type progress struct {
	say  func(string, ...any)
	of   int
	n    int
	line []byte
	last []byte
}

// Write implements io.Writer.
func (p *progress) Write(b []byte) (int, error) {
	p.last = append(p.last, b...)
	if extra := len(p.last) - consoleBytesMax; extra > 0 {
		p.last = slices.Delete(p.last, 0, extra)
	}
	for _, c := range b {
		if c != '\n' {
			if len(p.line) < consoleBytesMax {
				p.line = append(p.line, c)
			}
			continue
		}
		p.tell(strings.TrimSpace(string(p.line)))
		p.line = p.line[:0]
	}
	return len(b), nil
}

func (p *progress) tell(line string) {
	if name, ok := strings.CutPrefix(line, "Setting up "); ok {
		p.n++
		name, _, _ = strings.Cut(name, " ")
		p.say("  %d of %d: %s", min(p.n, p.of), p.of, name)
	} else if text, ok := strings.CutPrefix(line, "steadfast: "); ok {
		p.say("  %s", text)
	}
}

func (p *progress) tail() string { return string(bytes.ToValidUTF8(p.last, []byte("?"))) }

// finish copies a built image to dir, with a host's name and a password of its own.
func (b *Builder) finish(ctx context.Context, spec Spec, built, dir string) (*Manifest, error) {
	man, err := readManifest(built)
	if err != nil {
		return nil, err
	}
	date, err := time.Parse(time.RFC3339, man.ArchiveDate)
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "the cache's manifest")
	}
	m, err := beginMaking(ctx, filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	defer func() { _ = m.end() }()
	for _, name := range []string{kernelFile, initrdFile, rootFile} {
		if err := copySparse(filepath.Join(m.dir, name), filepath.Join(built, name)); err != nil {
			return nil, err
		}
	}
	disk := filepath.Join(m.dir, rootFile)
	if err := setHostname(ctx, disk, spec.Hostname, date); err != nil {
		return nil, err
	}
	if err := setRootPassword(ctx, disk, spec.RootPassword, date); err != nil {
		return nil, err
	}
	if err := addFiles(ctx, disk, spec.Files, date); err != nil {
		return nil, err
	}
	if err := checkExt4(ctx, disk, date); err != nil {
		return nil, err
	}
	man.Name, man.Hostname, man.Files = spec.Name, spec.Hostname, nil
	for _, f := range spec.Files {
		man.Files = append(man.Files, f.Path)
	}
	if err := writeManifest(m.dir, man); err != nil {
		return nil, err
	}
	return man, m.become(dir)
}

// SayTo is a Say that writes lines.
func SayTo(w io.Writer) func(string, ...any) {
	return func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
}
