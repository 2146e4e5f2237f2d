package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"steadfast/fault"
)

// archived makes an archive of headers; a file's content is its name.
func archived(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.ModTime.IsZero() {
			h.ModTime = when.Add(-time.Hour)
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, h.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func keepName(p string) string { return p }

func testTree(t *testing.T) *tree {
	t.Helper()
	tr, err := newTree(filepath.Join(t.TempDir(), "tree"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.close() })
	return tr
}

// usrMerged are the folders and the link that base-files begins with.
func usrMerged() []tar.Header {
	return []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./usr/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./usr/bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin", Mode: 0o777},
	}
}

// TestImageHasOwners: what was unpacked without root is in the filesystem with owners, modes,
// links and times as packed. It is read back with debugfs, as written by mke2fs and debugfs.
func TestImageHasOwners(t *testing.T) {
	tools(t, "mke2fs", "debugfs", "e2fsck", "resize2fs")
	ctx := context.Background()
	tr := testTree(t)
	list, err := tr.unpack(archived(t, append(usrMerged(),
		tar.Header{Name: "./usr/bin/chage", Typeflag: tar.TypeReg, Mode: 0o2755, Gid: 42},
		tar.Header{Name: "./usr/bin/su", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 5},
		tar.Header{Name: "./usr/bin/hard", Typeflag: tar.TypeLink, Linkname: "./usr/bin/su"},
		tar.Header{Name: "./usr/bin/secret \"q\" ő", Typeflag: tar.TypeReg, Mode: 0, Uid: 7, Gid: 8},
		tar.Header{Name: "./usr/bin/link", Typeflag: tar.TypeSymlink, Linkname: "/nowhere", Uid: 9},
		tar.Header{Name: "./etc/", Typeflag: tar.TypeDir, Mode: 0o1750, Gid: 3},
		tar.Header{Name: "./etc/conf", Typeflag: tar.TypeReg, Mode: 0o640, ModTime: when.Add(time.Hour)},
		// Through the link that base-files has, as old packages do.
		tar.Header{Name: "./bin/", Typeflag: tar.TypeDir, Mode: 0o700},
		tar.Header{Name: "./bin/old", Typeflag: tar.TypeReg, Mode: 0o711, Uid: 1},
	)...), func(p string) string { return strings.Replace(p, "etc/conf", "etc/conf.dpkg-new", 1) })
	if err != nil {
		t.Fatal(err)
	}
	want := "/. /usr /usr/bin /bin /usr/bin/chage /usr/bin/su /usr/bin/hard /usr/bin/secret \"q\" ő /usr/bin/link /etc /etc/conf /bin /bin/old"
	if got := strings.Join(list, " "); got != want {
		t.Errorf("the list is\n%s; want\n%s", got, want)
	}
	if err := tr.put("usr/lib/ours", "content", 0o600, when); err != nil {
		t.Fatal(err)
	}
	script, err := tr.settle(when)
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	const uuid = "01234567-89ab-8def-8123-456789abcdef"
	if err := makeExt4(ctx, disk, 64<<20, uuid, tr.dir, when); err != nil {
		t.Fatal(err)
	}
	if err := debugfsWrite(ctx, disk, when, script...); err != nil {
		t.Fatal(err)
	}
	if err := checkExt4(ctx, disk, when); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/":                       "directory 0755 0 0 1767323045",
		"/usr/bin/chage":          "regular 02755 0 42 1767319445",
		"/usr/bin/su":             "regular 04755 5 0 1767319445",
		"/usr/bin/hard":           "regular 04755 5 0 1767319445",
		"/usr/bin/secret \"q\" ő": "regular 0000 7 8 1767319445",
		"/usr/bin/link":           "symlink 0777 9 0 1767319445",
		"/etc":                    "directory 01750 0 3 1767319445",
		"/etc/conf.dpkg-new":      "regular 0640 0 0 1767323045",
		"/usr/bin/old":            "regular 0711 1 0 1767319445",
		"/usr/lib/ours":           "regular 0600 0 0 1767323045",
	} {
		if got := statIn(t, disk, path); got != want {
			t.Errorf("%s: %s; want %s", path, got, want)
		}
	}
	b, err := debugfsRead(ctx, disk, "/usr/bin/old")
	if err != nil || string(b) != "./bin/old" {
		t.Errorf("%q, %v", b, err)
	}
	testReplace(t, disk)
}

// TestSameTreeSameBytes: the same files, made at another time, are the same filesystem.
func TestSameTreeSameBytes(t *testing.T) {
	tools(t, "mke2fs", "debugfs", "e2fsck")
	ctx := context.Background()
	var hashes []string
	for range 2 {
		a := &assembly{dir: t.TempDir(), size: 64 << 20, key: "key"}
		tr := testTree(t)
		if _, err := tr.unpack(archived(t, append(usrMerged(), tar.Header{Name: "./usr/bin/x", Typeflag: tar.TypeReg, Mode: 0o2755, Gid: 42})...), keepName); err != nil {
			t.Fatal(err)
		}
		if err := a.disk(ctx, tr, when); err != nil {
			t.Fatal(err)
		}
		h, err := hashFile(filepath.Join(a.dir, rootFile))
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, h)
		testSuperblock(t, filepath.Join(a.dir, rootFile))
	}
	if hashes[0] != hashes[1] {
		t.Error("they are not")
	}
}

// testSuperblock: no time in it is that of the host
// (Documentation/filesystems/ext4/super.rst).
func testSuperblock(t *testing.T, disk string) {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1024)
	if _, err := f.ReadAt(b, 1024); err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]int{"s_wtime": 0x30, "s_lastcheck": 0x40, "s_mkfs_time": 0x108} {
		if got := int64(binary.LittleEndian.Uint32(b[at:])); got != when.Unix() {
			t.Errorf("%s is %v; want %v", name, time.Unix(got, 0).UTC(), when)
		}
	}
}

// testReplace changes a filesystem's files.
func testReplace(t *testing.T, disk string) {
	t.Helper()
	ctx := context.Background()
	if _, err := debugfsRead(ctx, disk, "/etc/shadow"); !fault.Is(err, fault.NotFound) {
		t.Errorf("what is not there: %v", err)
	}
	for _, text := range []string{"first\n", strings.Repeat("second\n", 1000)} {
		if err := debugfsReplace(ctx, disk, "/etc/shadow", text, 0o640, 42, when); err != nil {
			t.Fatal(err)
		}
		if b, err := debugfsRead(ctx, disk, "/etc/shadow"); err != nil || string(b) != text {
			t.Errorf("%.20q, %v", b, err)
		}
		if got, want := statIn(t, disk, "/etc/shadow"), "regular 0640 0 42 1767323045"; got != want {
			t.Errorf("%s; want %s", got, want)
		}
	}
	if err := addFiles(ctx, disk, []File{{Path: "/etc/our \"own\"", Content: []byte("own\n"), Mode: 0o755}, {Path: "/etc/shadow", Mode: 0o600}}, when); err != nil {
		t.Fatal(err)
	}
	if b, err := debugfsRead(ctx, disk, "/etc/our \"own\""); err != nil || string(b) != "own\n" {
		t.Errorf("%q, %v", b, err)
	}
	if own, shadow := statIn(t, disk, "/etc/our \"own\""), statIn(t, disk, "/etc/shadow"); own != "regular 0755 0 0 1767323045" || shadow != "regular 0600 0 0 1767323045" {
		t.Errorf("%s, %s", own, shadow)
	}
	for _, path := range []string{"/none/file", "/etc/shadow/file"} {
		if err := addFiles(ctx, disk, []File{{Path: path}}, when); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := debugfsWrite(ctx, disk, when, "rm /not/there"); !fault.Is(err, fault.Failed) {
		t.Errorf("debugfs's complaint is not heard: %v", err)
	}
	// Unchanged by a check that finds nothing to repair.
	if _, err := (command{name: "e2fsck", args: []string{"-f", "-n", disk}}).run(ctx); err != nil {
		t.Error(err)
	}
}

// statIn describes a file in a filesystem: type, mode, owner, group, time.
func statIn(t *testing.T, disk, path string) string {
	t.Helper()
	out, err := command{name: "debugfs", args: []string{"-R", "stat " + debugfsQuote(path), disk}}.run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(strings.NewReplacer(":", " ").Replace(string(out)))
	after := func(word string) string {
		for i, w := range f {
			if w == word && i+1 < len(f) {
				return f[i+1]
			}
		}
		return "?"
	}
	seconds := "?"
	for line := range strings.Lines(string(out)) {
		if s, ok := strings.CutPrefix(strings.TrimSpace(line), "mtime: 0x"); ok {
			s, _, _ = strings.Cut(s, ":")
			n, err := strconv.ParseInt(s, 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			seconds = strconv.FormatInt(n, 10)
		}
	}
	return strings.Join([]string{after("Type"), after("Mode"), after("User"), after("Group"), seconds}, " ")
}

// TestUnpackRefuses: nothing is written outside of the tree, nor what no package has.
func TestUnpackRefuses(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"up":            {{Name: "../x", Typeflag: tar.TypeReg, Mode: 0o644}},
		"up within":     {{Name: "./usr/../../x", Typeflag: tar.TypeReg, Mode: 0o644}},
		"a line's end":  {{Name: "./usr/a\nb", Typeflag: tar.TypeReg, Mode: 0o644}},
		"a device":      {{Name: "./usr/null", Typeflag: tar.TypeChar, Mode: 0o666}},
		"twice":         {{Name: "./usr/x", Typeflag: tar.TypeReg, Mode: 0o644}, {Name: "./usr/x", Typeflag: tar.TypeReg, Mode: 0o644}},
		"out by a link": {{Name: "./usr/out", Typeflag: tar.TypeSymlink, Linkname: "/tmp"}, {Name: "./usr/out/x", Typeflag: tar.TypeReg, Mode: 0o644}},
		"up by a link":  {{Name: "./usr/out", Typeflag: tar.TypeSymlink, Linkname: "../../"}, {Name: "./usr/out/x", Typeflag: tar.TypeReg, Mode: 0o644}},
		"a link out":    {{Name: "./usr/x", Typeflag: tar.TypeLink, Linkname: "../../x"}},
	} {
		t.Run(name, func(t *testing.T) {
			tr := testTree(t)
			if _, err := tr.unpack(archived(t, append(usrMerged(), headers...)...), keepName); err == nil {
				t.Error("it is unpacked")
			}
			if all := names(t, filepath.Dir(tr.dir)); len(all) != 1 {
				t.Errorf("beside the tree: %v", all)
			}
		})
	}
}

// makeDeb packs a package of files with dpkg-deb.
func makeDeb(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, "p", name)
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, "inst") {
			mode = 0o755
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "p.deb")
	if _, err := (command{name: "dpkg-deb", args: []string{"--root-owner-group", "--build", filepath.Join(dir, "p"), file}}).run(context.Background()); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestDpkgDatabase: the database is what dpkg leaves after it has unpacked.
func TestDpkgDatabase(t *testing.T) {
	tools(t, "dpkg-deb")
	lib := makeDeb(t, map[string]string{
		"DEBIAN/control":  "Package: libx\nVersion: 1:2-3\nArchitecture: riscv64\nMulti-Arch: same\nMaintainer: M <m@example.org>\nDescription: a library\n of two lines\n",
		"DEBIAN/triggers": "# comment\ninterest-noawait /usr/lib/plugins\ninterest-await cache\nactivate-noawait ldconfig\n",
		"DEBIAN/postinst": "#!/bin/sh\n",
		"usr/lib/libx.so": "library",
	})
	daemon := makeDeb(t, map[string]string{
		"DEBIAN/control":   "Package: xd\nEssential: yes\nVersion: 1\nArchitecture: all\nMaintainer: M <m@example.org>\nDescription: a daemon\n",
		"DEBIAN/conffiles": "/etc/xd.conf\n",
		"DEBIAN/preinst":   "#!/bin/sh\n",
		"etc/xd.conf":      "configuration",
	})
	tr := testTree(t)
	db, err := unpackDebs(context.Background(), tr, []deb{
		{Package{Name: "libx", Version: "1:2-3", Architecture: "riscv64"}, lib},
		{Package{Name: "xd", Version: "1", Architecture: "all"}, daemon},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.write(tr, when); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	err = filepath.WalkDir(tr.dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(tr.dir, p)
		if mode := tr.entries[rel].mode; mode != 0o644 {
			rel += fmt.Sprintf(" %o", mode)
		}
		got[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const d = "var/lib/dpkg/"
	want := map[string]string{
		"usr/lib/libx.so":      "library",
		"etc/xd.conf.dpkg-new": "configuration",
		d + "status": "Package: libx\nStatus: install ok unpacked\nVersion: 1:2-3\nArchitecture: riscv64\nMulti-Arch: same\n" +
			"Maintainer: M <m@example.org>\nDescription: a library\n of two lines\n\n" +
			"Package: xd\nStatus: install ok unpacked\nEssential: yes\nVersion: 1\nArchitecture: all\n" +
			"Maintainer: M <m@example.org>\nDescription: a daemon\nConffiles:\n /etc/xd.conf newconffile\n\n",
		d + "available": "", d + "diversions": "", d + "statoverride": "", d + "info/format": "1\n",
		d + "info/libx:riscv64.list":         "/.\n/usr\n/usr/lib\n/usr/lib/libx.so\n",
		d + "info/libx:riscv64.triggers":     "# comment\ninterest-noawait /usr/lib/plugins\ninterest-await cache\nactivate-noawait ldconfig\n",
		d + "info/libx:riscv64.postinst 755": "#!/bin/sh\n",
		d + "info/xd.list":                   "/.\n/etc\n/etc/xd.conf\n",
		d + "info/xd.conffiles":              "/etc/xd.conf\n",
		d + "info/xd.preinst 755":            "#!/bin/sh\n",
		d + "triggers/File":                  "/usr/lib/plugins libx:riscv64/noawait\n",
		d + "triggers/Unincorp":              "",
		d + "triggers/cache":                 "libx:riscv64\n",
		"var/lib/apt/extended_states":        "Package: libx\nArchitecture: riscv64\nAuto-Installed: 1\n\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"xd"}, db.preinsts); diff != "" {
		t.Error(diff)
	}
}
