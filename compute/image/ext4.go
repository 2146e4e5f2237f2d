package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"steadfast/fault"
)

// ext4Features are written out, so that every host's mke2fs makes the same.
const ext4Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// ext4Label is the label of root filesystems.
const ext4Label = "root"

// ext4Blocks is the size of blocks, in bytes.
const ext4Blocks = 4096

// makeExt4 makes a filesystem of size bytes in a new file, with the content of the
// folder tree, all of it with the date when.
func makeExt4(ctx context.Context, file string, size int64, uuid, tree string, when time.Time) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	// Nothing is left for the guest's kernel to initialize: that would be writes of no use.
	_, err = command{name: "mke2fs", args: []string{
		"-q", "-F", "-t", "ext4", "-b", strconv.Itoa(ext4Blocks), "-I", "256", "-i", "16384", "-m", "1",
		"-O", ext4Features, "-E", "hash_seed=" + uuid + ",lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0",
		"-U", uuid, "-L", ext4Label, "-d", tree, file, strconv.FormatInt(size/1024, 10) + "k",
	}, env: fakeTime(when)}.run(ctx)
	return err
}

// fakeTime are the variables by which tools of e2fsprogs take the date when for now.
func fakeTime(when time.Time) []string {
	s := strconv.FormatInt(when.Unix(), 10)
	return []string{"E2FSPROGS_FAKE_TIME=" + s, "E2FSCK_TIME=" + s, "SOURCE_DATE_EPOCH=" + s}
}

// debugfsQuote makes a path a word of a line of debugfs.
func debugfsQuote(p string) string { return `"` + strings.ReplaceAll(p, `"`, `""`) + `"` }

// debugfsSet is a line that sets a field of a file's inode.
func debugfsSet(quoted, field string, value int) string {
	return "set_inode_field " + quoted + " " + field + " " + strconv.Itoa(value)
}

// debugfsSetMode is a line that sets a file's type and mode.
func debugfsSetMode(quoted string, mode uint32) string {
	return fmt.Sprintf("set_inode_field %s mode 0%o", quoted, mode)
}

// debugfsWrite runs lines of debugfs on a filesystem that nobody uses. Fails with fault.Failed
// at what debugfs said about any of them.
func debugfsWrite(ctx context.Context, file string, when time.Time, lines ...string) error {
	if len(lines) == 0 {
		return nil
	}
	script, err := os.CreateTemp(filepath.Dir(file), tempPrefix+"debugfs-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(script.Name()) }()
	_, err = script.WriteString(strings.Join(lines, "\n") + "\n")
	if err := errorsJoinClose(err, script); err != nil {
		return err
	}
	// debugfs ends well whatever happened; what it complains of, beside its name, is what
	// went wrong.
	out, err := command{name: "debugfs", args: []string{"-w", "-f", script.Name(), file}, env: fakeTime(when), complaints: true}.run(ctx)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "debugfs ") {
			continue
		}
		return fault.New(fault.Failed, "debugfs: %s", line)
	}
	return nil
}

// debugfsRead returns the content of a file in a filesystem that nobody uses. Fails with
// fault.NotFound if it is not there.
func debugfsRead(ctx context.Context, file, path string) ([]byte, error) {
	tmp, err := os.CreateTemp("", "steadfast-debugfs-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	if err := tmp.Close(); err != nil {
		return nil, err
	}
	out, err := command{name: "debugfs", args: []string{"-R", "dump " + debugfsQuote(path) + " " + debugfsQuote(tmp.Name()), file}, complaints: true}.run(ctx)
	if err != nil {
		return nil, err
	}
	if strings.Contains(string(out), "File not found") {
		return nil, fault.New(fault.NotFound, "%s is not in %s", path, file)
	}
	return os.ReadFile(tmp.Name())
}

// debugfsReplace writes content to a file in a filesystem that nobody uses.
func debugfsReplace(ctx context.Context, file, path, content string, mode uint32, gid int, when time.Time) error {
	tmp, err := os.CreateTemp(filepath.Dir(file), tempPrefix+"content-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.WriteString(content)
	if err := errorsJoinClose(err, tmp); err != nil {
		return err
	}
	q := debugfsQuote(path)
	var lines []string
	if _, err := debugfsRead(ctx, file, path); err == nil {
		lines = append(lines, "rm "+q)
	} else if !fault.Is(err, fault.NotFound) {
		return err
	}
	return debugfsWrite(ctx, file, when, append(lines,
		"write "+debugfsQuote(tmp.Name())+" "+q,
		debugfsSet(q, "uid", 0), debugfsSet(q, "gid", gid), debugfsSetMode(q, 0o100000|mode))...)
}

// checkExt4 checks and repairs a filesystem that nobody uses.
func checkExt4(ctx context.Context, file string, when time.Time) error {
	// 1: errors were corrected.
	_, err := command{name: "e2fsck", args: []string{"-f", "-y", file}, good: []int{1}, env: fakeTime(when)}.run(ctx)
	return err
}
