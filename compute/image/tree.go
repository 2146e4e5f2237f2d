package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// tree is a root filesystem as files of this host, owned by whoever builds. What a file is
// to be in the image that it cannot be here, its owner and its mode, is in entries.
type tree struct {
	dir     string
	root    *os.Root
	entries map[string]entry // by path without a leading slash, symbolic links in folders resolved
}

// entry is what is to be in the image.
type entry struct {
	uid, gid int
	mode     uint32 // permissions with set-user-ID, set-group-ID and sticky
	mtime    time.Time
}

func newTree(dir string) (*tree, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &tree{dir, root, map[string]entry{}}, nil
}

func (t *tree) close() error { return t.root.Close() }

// clean makes an archive's path one of the tree's. Fails with fault.Corrupt for one that
// leads out of it, or that no line of a script of debugfs can hold.
func clean(name string) (string, error) {
	p := strings.TrimPrefix(path.Clean("/"+name), "/")
	if strings.Contains("/"+name+"/", "/../") || strings.ContainsAny(p, "\n\r\x00") {
		return "", fault.New(fault.Corrupt, "a package holds a file called %q", name)
	}
	if p == "" {
		p = "."
	}
	return p, nil
}

// unpack adds what a package's archive holds and returns the paths in it, as dpkg lists
// them. rename says what a file is to be called.
func (t *tree) unpack(r io.Reader, rename func(string) string) ([]string, error) {
	var list []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, fault.Wrap(fault.Corrupt, err, "a package's files")
		}
		p, err := clean(h.Name)
		if err != nil {
			return nil, err
		}
		list = append(list, "/"+p)
		if p == "." {
			list[len(list)-1] = "/."
		}
		if err := t.add(h, rename(p), tr); err != nil {
			return nil, fault.Wrap(fault.Failed, err, "unpacking "+p)
		}
	}
}

// add makes one file of an archive.
func (t *tree) add(h *tar.Header, p string, data io.Reader) error {
	e := entry{h.Uid, h.Gid, uint32(h.Mode) & 0o7777, h.ModTime}
	switch h.Typeflag {
	case tar.TypeDir:
		return t.mkdir(p, e)
	case tar.TypeReg:
		return t.write(p, data, e)
	case tar.TypeSymlink:
		e.mode = 0o777
		if err := t.root.Symlink(h.Linkname, p); err != nil {
			return err
		}
		return t.note(p, e)
	case tar.TypeLink:
		to, err := clean(h.Linkname)
		if err != nil {
			return err
		}
		if err := t.root.Link(to, p); err != nil {
			return err
		}
		// One file, two names: the same is to be set by both.
		rel, err := t.resolve(to)
		if err != nil {
			return err
		}
		return t.note(p, t.entries[rel])
	}
	return fault.New(fault.Invalid, "it is of kind %q, which is neither file, folder nor link", h.Typeflag)
}

// mkdir makes a folder; one that is there, or a link to one, stays as it is.
func (t *tree) mkdir(p string, e entry) error {
	if st, err := t.root.Stat(p); err == nil && st.IsDir() {
		if p == "." {
			return t.note(p, e)
		}
		return nil
	}
	if err := t.root.Mkdir(p, 0o755); err != nil {
		return err
	}
	return t.note(p, e)
}

// write makes a file that is not there yet.
func (t *tree) write(p string, data io.Reader, e entry) (err error) {
	f, err := t.root.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, data); err != nil {
		return err
	}
	return t.note(p, e)
}

// note keeps what p is to be in the image, under the path that it is really at.
func (t *tree) note(p string, e entry) error {
	rel, err := t.resolve(p)
	if err == nil {
		t.entries[rel] = e
	}
	return err
}

// resolve returns a path with the symbolic links in its folders resolved.
func (t *tree) resolve(p string) (string, error) {
	real, err := filepath.EvalSymlinks(filepath.Join(t.dir, path.Dir(p)))
	if err != nil {
		return "", err
	}
	base, err := filepath.EvalSymlinks(t.dir)
	if err != nil {
		return "", err
	}
	return filepath.Rel(base, filepath.Join(real, path.Base(p)))
}

// put makes a file, or replaces it, and its folders.
func (t *tree) put(p, content string, mode uint32, when time.Time) error {
	if err := t.folders(path.Dir(p), when); err != nil {
		return err
	}
	if err := t.root.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return t.write(p, strings.NewReader(content), entry{mode: mode, mtime: when})
}

// link makes a symbolic link, or replaces it, and its folders.
func (t *tree) link(p, to string, when time.Time) error {
	if err := t.folders(path.Dir(p), when); err != nil {
		return err
	}
	if err := t.root.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := t.root.Symlink(to, p); err != nil {
		return err
	}
	return t.note(p, entry{mode: 0o777, mtime: when})
}

// folders makes the folders that lead to a path.
func (t *tree) folders(dir string, when time.Time) error {
	if dir == "." {
		return nil
	}
	if err := t.folders(path.Dir(dir), when); err != nil {
		return err
	}
	return t.mkdir(dir, entry{mode: 0o755, mtime: when})
}

// settle gives every file its time, no newer than when, and returns what debugfs has to
// set because it could not be set here.
func (t *tree) settle(when time.Time) ([]string, error) {
	var paths []string
	err := filepath.WalkDir(t.dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(t.dir, p)
		paths = append(paths, rel)
		return err
	})
	if err != nil {
		return nil, err
	}
	// From the leaves up, so that no folder changes after its time was set.
	slices.Reverse(paths)
	var script []string
	for _, p := range paths {
		lines, err := t.settleOne(p, when)
		if err != nil {
			return nil, err
		}
		script = append(script, lines...)
	}
	return script, nil
}

func (t *tree) settleOne(p string, when time.Time) ([]string, error) {
	full := filepath.Join(t.dir, p)
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return nil, fault.Wrap(fault.Failed, err, p)
	}
	want, ok := t.entries[p]
	if !ok {
		want = entry{mode: st.Mode & 0o7777, mtime: when}
	}
	if want.mtime.After(when) || want.mtime.IsZero() {
		want.mtime = when
	}
	ts := unix.NsecToTimespec(want.mtime.Truncate(time.Second).UnixNano())
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, full, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, fault.Wrap(fault.Failed, err, p)
	}
	quoted := debugfsQuote("/" + p)
	// mke2fs takes the time of the last change of an inode from here, where it is now.
	script := []string{fmt.Sprintf("set_inode_field %s ctime @%d", quoted, ts.Sec)}
	if int(st.Uid) != want.uid {
		script = append(script, debugfsSet(quoted, "uid", want.uid))
	}
	if int(st.Gid) != want.gid {
		script = append(script, debugfsSet(quoted, "gid", want.gid))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK && st.Mode&0o7777 != want.mode {
		script = append(script, debugfsSetMode(quoted, st.Mode&unix.S_IFMT|want.mode))
	}
	return script, nil
}
