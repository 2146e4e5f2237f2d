package image

import (
	"bytes"
	"context"
	"crypto/rand"
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
