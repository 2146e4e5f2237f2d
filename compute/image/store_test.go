package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"steadfast/fault"
)

// names returns what a folder holds, hidden files included.
func names(t *testing.T, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range all {
		list = append(list, e.Name())
	}
	return list
}

// TestMaking: what is being made is not touched, what a dead maker left is removed, and
// nothing becomes what is there already.
func TestMaking(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	living, err := beginMaking(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(dir, tempPrefix+"dead")
	if err := os.MkdirAll(filepath.Join(dead, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dead, "sub"), 0o500); err != nil {
		t.Fatal(err)
	}
	second, err := beginMaking(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{filepath.Base(living.dir), filepath.Base(second.dir)}, names(t, dir), cmp.Transformer("sorted", func(l []string) map[string]bool {
		m := map[string]bool{}
		for _, s := range l {
			m[s] = true
		}
		return m
	})); diff != "" {
		t.Error(diff)
	}
	final := filepath.Join(dir, "final")
	if err := os.WriteFile(filepath.Join(living.dir, "x"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := living.become(final); err != nil {
		t.Fatal(err)
	}
	if err := second.become(final); !fault.Is(err, fault.Exists) {
		t.Errorf("it became what is there: %v", err)
	}
	if err := errors.Join(living.end(), second.end()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"final"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
}

// TestLock: the second waits, says so once, and can be stopped.
func TestLock(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(context.Background(), file, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	said := 0
	if _, err := lock(ctx, file, func() { said++; cancel() }); !fault.Is(err, fault.Canceled) || said != 1 {
		t.Errorf("%v, said %d times", err, said)
	}
	unlock()
	unlock, err = lock(context.Background(), file, func() { t.Error("it waits for nobody") })
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// sparse makes a file of size bytes with data at 1 MiB.
func sparse(t *testing.T, size int64) (string, []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	data := bytes.Repeat([]byte("data"), 4096)
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(data, 1<<20)
	if err := errors.Join(err, f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return file, b
}

func TestStore(t *testing.T) {
	ctx := context.Background()
	s := Store{Dir: filepath.Join(t.TempDir(), "images")}
	if all, err := s.List(); err != nil || len(all) != 0 {
		t.Errorf("before there is any: %v, %v", all, err)
	}
	file, want := sparse(t, 300<<20+512)
	boot := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(boot, []byte("kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := s.Import(ctx, Import{Name: "one", File: file, Kernel: boot, Initrd: boot})
	if err != nil {
		t.Fatal(err)
	}
	wantM := &Manifest{Name: "one", Architecture: "riscv64", Cmdline: cmdline, Disk: "disk.raw", SizeBytes: 300<<20 + 4096, Source: "disk"}
	if diff := cmp.Diff(wantM, m); diff != "" {
		t.Error(diff)
	}
	got, err := os.ReadFile(filepath.Join(s.Dir, "one", "disk.raw"))
	if err != nil || !bytes.Equal(got[:len(want)], want) || !isZero(got[len(want):]) {
		t.Errorf("the disk is another, %v", err)
	}
	if used, err := s.UsedBytes("one"); err != nil || used > 10<<20 {
		t.Errorf("a file with a hole takes %d bytes, %v", used, err)
	}
	if _, err := s.Import(ctx, Import{Name: "two", File: file, LikeImage: "one"}); err != nil {
		t.Error(err)
	}
	if _, err := s.Clone(ctx, "one", "three", ""); err != nil {
		t.Error(err)
	}
	if m, err := s.Resize(ctx, "three", 400<<20); err != nil || m.SizeBytes != 400<<20 {
		t.Error(m, err)
	}
	st, err := os.Stat(filepath.Join(s.Dir, "three", "disk.raw"))
	if err != nil || st.Size() != 400<<20 {
		t.Error(st, err)
	}
	for _, name := range []string{"one", "two", "three"} {
		if b, err := os.ReadFile(filepath.Join(s.Dir, name, "kernel")); string(b) != "kernel" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if err := s.Delete(ctx, "two"); err != nil {
		t.Error(err)
	}
	all, err := s.List()
	if err != nil || len(all) != 2 || all[0].Name != "one" || all[1].Name != "three" || all[1].Source != "one" {
		t.Errorf("%v, %v", all, err)
	}
	if diff := cmp.Diff([]string{"one", "three"}, names(t, s.Dir)); diff != "" {
		t.Error(diff)
	}
}

func TestStoreRefuses(t *testing.T) {
	ctx := context.Background()
	s := Store{Dir: filepath.Join(t.TempDir(), "images")}
	file, _ := sparse(t, 300<<20)
	if _, err := s.Import(ctx, Import{Name: "one", File: file}); err != nil {
		t.Fatal(err)
	}
	vmdk := filepath.Join(t.TempDir(), "disk.vmdk")
	if err := os.WriteFile(vmdk, []byte("KDMV\x01\x00\x00\x00"), 0o644); err != nil {
		t.Fatal(err)
	}
	one := func(_ *Manifest, err error) error { return err }
	for name, tc := range map[string]struct {
		err  error
		kind fault.Kind
	}{
		"import over one":   {one(s.Import(ctx, Import{Name: "one", File: file})), fault.Exists},
		"import VMDK":       {one(s.Import(ctx, Import{Name: "v", File: vmdk})), fault.Invalid},
		"import nothing":    {one(s.Import(ctx, Import{Name: "v", File: vmdk + "x"})), fault.NotFound},
		"import out":        {one(s.Import(ctx, Import{Name: "../v", File: file})), fault.Invalid},
		"import like none":  {one(s.Import(ctx, Import{Name: "v", File: file, LikeImage: "none"})), fault.NotFound},
		"clone none":        {one(s.Clone(ctx, "none", "v", "")), fault.NotFound},
		"clone onto itself": {one(s.Clone(ctx, "one", "one", "")), fault.Exists},
		"clone with a name": {one(s.Clone(ctx, "one", "v", "v")), fault.Invalid},
		"smaller":           {one(s.Resize(ctx, "one", 290<<20)), fault.Invalid},
		"a part of a block": {one(s.Resize(ctx, "one", 400<<20+1)), fault.Invalid},
		"delete none":       {s.Delete(ctx, "none"), fault.NotFound},
		"delete by a path":  {s.Delete(ctx, "../one"), fault.Invalid},
	} {
		if !fault.Is(tc.err, tc.kind) {
			t.Errorf("%s: %v; want %v", name, tc.err, tc.kind)
		}
	}
	if diff := cmp.Diff([]string{"one"}, names(t, s.Dir)); diff != "" {
		t.Error(diff)
	}
}

func TestSpec(t *testing.T) {
	key := func(s Spec) string {
		t.Helper()
		p, err := s.check()
		if err != nil {
			t.Fatal(err)
		}
		return s.key(p)
	}
	base := Spec{Name: "a", Packages: []string{"redis-server", "hello"}}
	same := []Spec{
		{Name: "b", Packages: []string{"hello", "redis-server"}, Hostname: "x", RootPassword: []byte("y"), Files: []File{{Path: "/etc/motd"}}},
		{Name: "c", Packages: []string{"hello", "redis-server", "hello"}, Profile: "debian", SizeBytes: 1 << 30},
	}
	for _, s := range same {
		if key(s) != key(base) {
			t.Errorf("%+v is built apart", s)
		}
	}
	other := []Spec{
		{Name: "a", Packages: []string{"hello"}},
		{Name: "a", Packages: base.Packages, Profile: "minimal"},
		{Name: "a", Packages: base.Packages, SizeBytes: 2 << 30},
	}
	for _, s := range other {
		if key(s) == key(base) {
			t.Errorf("%+v is not built apart", s)
		}
	}
	for _, s := range []Spec{
		{Name: "a", Packages: []string{"-o=Dir::Etc=/x"}},
		{Name: "a", Packages: []string{"?essential"}},
		{Name: "a", Packages: []string{"/tmp/x.deb"}},
		{Name: "a", Packages: []string{"hello world"}},
		{Name: "a", Hostname: "A"},
		{Name: "a", Hostname: "a.b"},
		{Name: "a", Profile: "none"},
		{Name: "a", SizeBytes: 1 << 20},
		{Name: "a", SizeBytes: 1<<30 + 1},
		{Name: "a", RootPassword: []byte("a\nb")},
		{Name: "a", RootPassword: bytes.Repeat([]byte("a"), 256)},
		{Name: "a", Files: []File{{Path: "etc/motd"}}},
		{Name: "a", Files: []File{{Path: "/etc/../motd"}}},
		{Name: "a", Files: []File{{Path: "/etc/a\nrm /etc/b"}}},
		{Name: "a", Files: []File{{Path: "/"}}},
		{Name: "a", Files: []File{{Path: "/etc/motd"}, {Path: "/etc/motd"}}},
		{Name: "a", Files: []File{{Path: "/etc/motd", Content: make([]byte, fileBytesMax+1)}}},
		{Name: "a", Files: make([]File, filesMax+1)},
	} {
		if _, err := s.check(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	s := Spec{Name: "web.1_a"}
	if _, err := s.check(); err != nil || s.Hostname != "web-1-a" || s.SizeBytes != sizeDefault {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestShadow(t *testing.T) {
	got, err := setShadow([]byte("root:*:1:0:99999:7:::\nother:x:1::::::\n"), "root", "hash")
	if err != nil || string(got) != "root:hash:1:0:99999:7:::\nother:x:1::::::\n" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := setShadow([]byte("rooty:*:\n"), "root", ""); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	a, err := hashPassword([]byte("pass"))
	if err != nil || !strings.HasPrefix(a, "$y$j9T$") || len(a) < 60 {
		t.Errorf("%q, %v", a, err)
	}
	if b, err := hashPassword([]byte("pass")); err != nil || a == b {
		t.Errorf("the same hash twice: %v", err)
	}
}

func TestProgress(t *testing.T) {
	var said strings.Builder
	p := &progress{say: SayTo(&said), of: 2}
	for _, s := range []string{"[    0.0] Linux\r\nSetting up li", "bc6:riscv64 (2.41-12) ...\r\nsteadf", "ast: done\r\nSetting up hello (2.10) ...\n", strings.Repeat("x", 2*consoleBytesMax)} {
		if _, err := p.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if want := "  1 of 2: libc6:riscv64\n  done\n  2 of 2: hello\n"; said.String() != want {
		t.Errorf("%q; want %q", said.String(), want)
	}
	if p.tail() != strings.Repeat("x", consoleBytesMax) {
		t.Error("its end is not the console's")
	}
}

// tools skips a test whose tools are not on this host.
func tools(t *testing.T, names ...string) {
	t.Helper()
	if err := needTools(names...); err != nil {
		t.Skip(err)
	}
}

// when is a date for tests.
var when = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
