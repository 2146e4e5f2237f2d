package image

import (
	"regexp"
	"slices"
	"strings"

	"steadfast/fault"
)

// Profile is what an image is made of before packages are added.
type Profile struct {
	Name string
	// Short says in a line what it is.
	Short string
	// packages are apt's patterns of what is installed, besides what they depend on.
	packages []string
	// modules tells whether the disk gets the kernel's modules, besides those of the initrd.
	modules bool
	// units are enabled with systemctl at the end of the second stage.
	units []string
}

// profiles in the order in which they are listed.
var profiles = []Profile{
	{
		Name:  "debian",
		Short: "systemd, networkd, resolved, D-Bus, the usual tools, the kernel's modules",
		packages: []string{
			"?essential", "?priority(required)", "apt", "systemd-sysv", "udev", "dbus", "libpam-systemd", "systemd-resolved",
			"e2fsprogs", "iproute2", "iputils-ping", "kmod", "less", "nano", "netbase", "passwd", "procps", "login", "tzdata",
		},
		modules: true,
		units:   []string{"systemd-networkd.service", "steadfast-ssh-keys.service"},
	},
	{
		Name:     "minimal",
		Short:    "dpkg and apt with busybox as init: boots in moments, for tests",
		packages: []string{"?essential", "apt", "busybox-static", "e2fsprogs", "login", "mount", "netbase", "passwd"},
	},
}

// Profiles returns what there is, the default first.
func Profiles() []Profile { return slices.Clone(profiles) }

// profileOf finds a profile; "" is the first. Fails with fault.Invalid.
func profileOf(name string) (Profile, error) {
	if name == "" {
		return profiles[0], nil
	}
	var names []string
	for _, p := range profiles {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Profile{}, fault.New(fault.Invalid, "there is no profile %q; there are: %s", name, strings.Join(names, ", "))
}

// What names may look like. A package's is Debian policy's, 5.6.1, with a version that may
// follow; a host's is RFC 1123's, one label.
var (
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]+(=[A-Za-z0-9.+~:-]+)?$`)
	hostName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	imageName   = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
)

// CheckName fails with fault.Invalid if an image cannot be called so.
func CheckName(name string) error {
	if imageName.MatchString(name) {
		return nil
	}
	return fault.New(fault.Invalid, "an image cannot be called %q: small letters, digits, dots, dashes and underscores, at most 63", name)
}

// checkSize fails with fault.Invalid if a disk cannot have so many bytes.
func checkSize(n int64) error {
	if n >= SizeMin && n <= SizeMax && n%sizeUnit == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "a disk of %d bytes: it must be a multiple of %d, from %d MiB to %d TiB", n, sizeUnit, SizeMin>>20, int64(SizeMax)>>40)
}
