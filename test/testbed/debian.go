package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"steadfast/compute/image"
	"steadfast/compute/machineio"
)

// Debian is a guest for the machine of this tree, as its files: a small Debian with Redis.
type Debian struct{ Kernel, Initrd, Disk string }

// debianCache keeps it between runs; it is from the root of the repository.
const debianCache = ".cache/machine"

// debianMemory is the memory, in bytes, of the machine that its packages are configured in.
const debianMemory = 512 << 20

// NewDebian returns the guest in a folder, or, if that is "", the one that is kept between
// runs, which is built if it is not there. Fails as image.Builder.
func NewDebian(ctx context.Context, dir string) (d Debian, err error) {
	if dir == "" {
		if dir, err = buildDebian(ctx); err != nil {
			return d, err
		}
	}
	find := func(names ...string) string {
		for _, n := range names {
			if _, e := os.Stat(filepath.Join(dir, n)); e == nil {
				return filepath.Join(dir, n)
			}
		}
		err = errors.Join(err, fmt.Errorf("there is none of %v in %s", names, dir))
		return ""
	}
	return Debian{find("kernel"), find("initrd", "initrd.gz"), find("root.ext4", "disk.raw")}, err
}

func buildDebian(ctx context.Context) (string, error) {
	dir := filepath.Join(debianCache, "guest")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	b := &image.Builder{
		Cache: filepath.Join(debianCache, "image"), Runner: machineio.Runner{Memory: debianMemory},
		Say: func(format string, args ...any) { fmt.Printf("note  guest: "+format+"\n", args...) },
	}
	if err := os.MkdirAll(debianCache, 0o755); err != nil {
		return "", err
	}
	_, err := b.Build(ctx, image.Spec{Name: "check", Profile: "minimal", Packages: []string{"redis-server", "redis-tools"}, SizeBytes: 512 << 20}, dir)
	return dir, err
}
