package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"steadfast/fault"
)

// slow skips a test that needs the mirror and time unless it was asked for. That what is built
// boots, and is a whole Debian, is test/guestlife's to show.
func slow(t *testing.T) {
	t.Helper()
	if os.Getenv("STEADFAST_IMAGE_TESTS") == "" {
		t.Skip("needs a Debian mirror: run with STEADFAST_IMAGE_TESTS=1")
	}
}

// cacheDir is where slow tests keep packages and built images.
func cacheDir(t *testing.T) string {
	t.Helper()
	if d := os.Getenv("STEADFAST_IMAGE_CACHE"); d != "" {
		return d
	}
	return t.TempDir()
}

// TestBuildTwice: the same archive makes the same kernel, initrd and disk, byte for byte;
// and a second stage that fails or is interrupted, or did not do all, leaves nothing.
func TestBuildTwice(t *testing.T) {
	slow(t)
	cache := t.TempDir()
	if err := os.Symlink(filepath.Join(cacheDir(t), "packages"), filepath.Join(cache, "packages")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var hashes []string
	runs := []struct {
		kind fault.Kind
		run  func() error
	}{
		{fault.Failed, func() error { return errors.New("no machine") }},
		{fault.Failed, func() error { return nil }},
		{fault.Canceled, func() error { cancel(); return ctx.Err() }},
	}
	for _, r := range runs {
		b := &Builder{Cache: cache, Say: t.Logf, Runner: RunnerFunc(func(_ context.Context, m Boot) error {
			var all []string
			for _, f := range []string{m.Kernel, m.Initrd, m.Disk} {
				h, err := hashFile(f)
				if err != nil {
					t.Error(err)
				}
				all = append(all, h)
			}
			hashes = append(hashes, strings.Join(all, " "))
			return r.run()
		})}
		dir := filepath.Join(t.TempDir(), "image")
		if _, err := b.Build(ctx, Spec{Name: "test", Profile: "minimal"}, dir); !fault.Is(err, r.kind) {
			t.Errorf("%v; want %v", err, r.kind)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("an image is there")
		}
		for _, name := range names(t, filepath.Join(cache, "built")) {
			if !strings.HasSuffix(name, ".lock") {
				t.Errorf("%s is left", name)
			}
		}
	}
	if len(hashes) != len(runs) || hashes[0] != hashes[1] || hashes[0] != hashes[2] {
		t.Errorf("the same build three times:\n%s", strings.Join(hashes, "\n"))
		return
	}
	t.Logf("kernel, initrd and disk before the second stage: %s", hashes[0])
}
