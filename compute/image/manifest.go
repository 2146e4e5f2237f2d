package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"

	"steadfast/fault"
)

// Manifest says what an image is. It lies beside the image's files.
type Manifest struct {
	Name    string `json:"name"`
	Release string `json:"release,omitempty"`
	// Architecture is Debian's name of the guest's processor.
	Architecture string `json:"architecture"`
	Profile      string `json:"profile,omitempty"`
	Hostname     string `json:"hostname,omitempty"`
	// Builder and Key tell which build it comes from; imported images have none.
	Builder int    `json:"builder,omitempty"`
	Key     string `json:"key,omitempty"`
	// ArchiveDate is when the archive's index was signed, RFC 3339: the date of all that
	// the build makes.
	ArchiveDate   string `json:"archive_date,omitempty"`
	KernelVersion string `json:"kernel_version,omitempty"`
	// Cmdline is the kernel's command line.
	Cmdline string `json:"cmdline,omitempty"`
	// Disk is the disk's file name, Filesystem what is on it from its first byte on, if known.
	Disk       string `json:"disk"`
	SizeBytes  int64  `json:"size_bytes"`
	Filesystem string `json:"filesystem,omitempty"`
	UUID       string `json:"uuid,omitempty"`
	// Source is where it was imported or cloned from.
	Source   string    `json:"source,omitempty"`
	Packages []Package `json:"packages,omitempty"`
	// Files are paths of files that came from elsewhere than packages.
	Files []string `json:"files,omitempty"`
	// SHA256 are the hashes of the files that do not change, by name.
	SHA256 map[string]string `json:"sha256,omitempty"`
}

// Package is one installed package.
type Package struct {
	Name         string `json:"name"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"`
	// Manual tells that it was asked for, not only depended on.
	Manual bool `json:"manual,omitempty"`
}

func writeManifest(dir string, m *Manifest) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestFile), append(b, '\n'), 0o644)
}

// readManifest fails with fault.NotFound if there is none, and fault.Corrupt if it is none.
func readManifest(dir string) (*Manifest, error) {
	b, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "no image in "+dir)
	}
	m := &Manifest{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, filepath.Join(dir, manifestFile))
	}
	if m.Disk != filepath.Base(m.Disk) || m.Disk == "." {
		return nil, fault.New(fault.Corrupt, "%s: the disk %q is no file beside it", filepath.Join(dir, manifestFile), m.Disk)
	}
	return m, nil
}

// hashFile returns the SHA-256 of a file in hex.
func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
