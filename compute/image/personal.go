package image

import (
	"bytes"
	"context"
	"crypto/rand"
	"path"
	"strings"
	"time"

	"github.com/go-crypt/x/yescrypt"

	"steadfast/fault"
)

// passwordBytesMax bounds a password: login reads no more.
const passwordBytesMax = 255

// shadowGroup is Debian's group shadow.
const shadowGroup = 42

// checkPassword fails with fault.Invalid if nobody could type it.
func checkPassword(p []byte) error {
	if len(p) > passwordBytesMax || bytes.ContainsAny(p, "\n\r\x00") {
		return fault.New(fault.Invalid, "a password has at most %d bytes, and is one line", passwordBytesMax)
	}
	return nil
}

// hashPassword returns what /etc/shadow holds for a password: yescrypt, as Debian's passwd
// makes it (crypt(5)).
func hashPassword(p []byte) (string, error) {
	salt := make([]byte, 16)
	// Never fails (crypto/rand).
	_, _ = rand.Read(salt)
	// N = 4096, r = 32: Debian's cost, "j9T".
	setting := append([]byte("$y$j9T$"), yescrypt.Encode64(salt)...)
	h, err := yescrypt.Hash(p, setting)
	return string(h), err
}

// setRootPassword lets root log in with a password on a disk that nobody uses; nil lets root
// in without one, on the console (sshd and su of others refuse empty ones).
func setRootPassword(ctx context.Context, disk string, password []byte, when time.Time) error {
	const file = "/etc/shadow"
	shadow, err := debugfsRead(ctx, disk, file)
	if err != nil {
		return err
	}
	hash := ""
	if password != nil {
		if hash, err = hashPassword(password); err != nil {
			return fault.Wrap(fault.Internal, err, "the password's hash")
		}
	}
	if shadow, err = setShadow(shadow, "root", hash); err != nil {
		return err
	}
	return debugfsReplace(ctx, disk, file, string(shadow), 0o640, shadowGroup, when)
}

// setHostname gives the system on a disk that nobody uses its name.
func setHostname(ctx context.Context, disk, hostname string, when time.Time) error {
	if err := debugfsReplace(ctx, disk, "/etc/hostname", hostname+"\n", 0o644, 0, when); err != nil {
		return err
	}
	return debugfsReplace(ctx, disk, "/etc/hosts", hosts(hostname), 0o644, 0, when)
}

// Bounds of the files that an image gets besides its packages'.
const (
	filesMax     = 100
	fileBytesMax = 64 << 20
)

// checkFiles fails with fault.Invalid for files that no image can get.
func checkFiles(files []File) error {
	if len(files) > filesMax {
		return fault.New(fault.Invalid, "an image gets at most %d files; put them into an archive, or into a package", filesMax)
	}
	seen := map[string]bool{}
	for _, f := range files {
		switch {
		case !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" || strings.ContainsAny(f.Path, "\n\r\x00"):
			return fault.New(fault.Invalid, "%q is no path of a file in the guest, as /etc/motd is", f.Path)
		case len(f.Content) > fileBytesMax:
			return fault.New(fault.Invalid, "the file for %s has %d bytes, and at most %d MiB are put into an image", f.Path, len(f.Content), fileBytesMax>>20)
		case seen[f.Path]:
			return fault.New(fault.Invalid, "there are two files for %s", f.Path)
		}
		seen[f.Path] = true
	}
	return nil
}

// addFiles puts files on a disk that nobody uses. Fails with fault.NotFound if there is no
// folder for one.
func addFiles(ctx context.Context, disk string, files []File, when time.Time) error {
	for _, f := range files {
		if err := needFolder(ctx, disk, path.Dir(f.Path)); err != nil {
			return err
		}
		if err := debugfsReplace(ctx, disk, f.Path, string(f.Content), uint32(f.Mode.Perm()), 0, when); err != nil {
			return fault.Wrap(fault.KindOf(err), err, f.Path)
		}
	}
	return nil
}

// needFolder fails with fault.NotFound unless a disk that nobody uses has a folder.
func needFolder(ctx context.Context, disk, folder string) error {
	out, err := command{name: "debugfs", args: []string{"-R", "stat " + debugfsQuote(folder), disk}}.run(ctx)
	if err == nil && !strings.Contains(string(out), "Type: directory") {
		err = fault.New(fault.NotFound, "the guest has no folder %s; only files are added, into folders of its packages", folder)
	}
	return err
}

// setShadow replaces a user's hash (shadow(5)). Fails with fault.NotFound if the user is not
// there.
func setShadow(shadow []byte, user, hash string) ([]byte, error) {
	all := strings.Split(string(shadow), "\n")
	for i, line := range all {
		f := strings.Split(line, ":")
		if f[0] == user && len(f) > 1 {
			f[1] = hash
			all[i] = strings.Join(f, ":")
			return []byte(strings.Join(all, "\n")), nil
		}
	}
	return nil, fault.New(fault.NotFound, "/etc/shadow has no user %s", user)
}
