package image

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"steadfast/fault"
)

// archiveKeyring holds the keys that Debian signs its archive with (package
// debian-archive-keyring).
const archiveKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// archive is apt with a configuration and a state of its own: nothing of the host's apt
// but the way to the mirror is used, and nothing of it is changed.
type archive struct {
	dir     string // configuration and state, of one build
	debs    string // where packages are kept
	sources []source
	date    time.Time
}

// source is one suite of the archive.
type source struct {
	uri, suite string
}

// deb is a package that apt has chosen, and its file.
type deb struct {
	Package
	path string
}

// mirrors reads what this host's apt uses: the archive and, "" if there is none, that of
// security updates.
func mirrors(ctx context.Context) (main, security string, err error) {
	out, err := command{name: "apt-get", args: []string{"indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"}}.run(ctx)
	if err != nil {
		return "", "", err
	}
	for uri := range strings.Lines(string(out)) {
		uri = strings.TrimSpace(uri)
		switch name := filepath.Base(uri); {
		case name == "debian" && main == "":
			main = uri
		case name == "debian-security" && security == "":
			security = uri
		}
	}
	if main == "" {
		return "", "", fault.New(fault.Unreachable, "this host's apt knows no Debian mirror; name one with --mirror")
	}
	return main, security, nil
}

// openArchive reads the mirror's index into dir. Security updates are left out, and said to
// be, if their index cannot be had. Fails with fault.Unreachable if the archive's cannot, and
// with fault.Failed if it is not signed with Debian's key.
func openArchive(ctx context.Context, dir, debs, mirror string, say func(string, ...any)) (*archive, error) {
	security := ""
	if mirror == "" {
		var err error
		if mirror, security, err = mirrors(ctx); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(archiveKeyring); err != nil {
		return nil, fault.Wrap(fault.NotFound, err, "Debian's archive keys (package debian-archive-keyring)")
	}
	a := &archive{dir: dir, debs: debs, sources: []source{{mirror, release}}}
	if err := a.configure(ctx); err != nil {
		return nil, err
	}
	if err := a.update(ctx); err != nil {
		return nil, err
	}
	if security != "" {
		a.sources = append(a.sources, source{security, release + "-security"})
		if err := a.update(ctx); err != nil {
			first, _, _ := strings.Cut(err.Error(), "\n")
			say("without security updates: %s", first)
			a.sources = a.sources[:1]
			if err := a.update(ctx); err != nil {
				return nil, err
			}
		}
	}
	return a, a.readDate()
}

// configure writes apt's configuration.
func (a *archive) configure(ctx context.Context) error {
	for _, d := range []string{"lists/partial", "etc", "cache"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{a.debs, filepath.Join(a.debs, "partial")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(a.dir, "status"), nil, 0o644); err != nil {
		return err
	}
	dump, err := command{name: "apt-config", args: []string{"dump"}}.run(ctx)
	if err != nil {
		return err
	}
	var conf strings.Builder
	for line := range strings.Lines(string(dump)) {
		if wayToMirror.MatchString(line) {
			conf.WriteString(line)
		}
	}
	for _, kv := range [][2]string{
		{"Dir::Etc::main", "/dev/null"},
		{"Dir::Etc::parts", "/dev/null"},
		{"Dir::Etc::sourcelist", filepath.Join(a.dir, "etc", "sources.list")},
		{"Dir::Etc::sourceparts", "/dev/null"},
		{"Dir::Etc::preferences", "/dev/null"},
		{"Dir::Etc::preferencesparts", "/dev/null"},
		{"Dir::State", a.dir},
		{"Dir::State::Lists", filepath.Join(a.dir, "lists")},
		{"Dir::State::status", filepath.Join(a.dir, "status")},
		{"Dir::State::extended_states", filepath.Join(a.dir, "extended_states")},
		{"Dir::Cache", filepath.Join(a.dir, "cache")},
		{"Dir::Cache::archives", a.debs},
		{"Dir::Log", a.dir},
		{"APT::Architecture", architecture},
		{"APT::Install-Recommends", "false"},
		{"APT::Sandbox::User", ""},
		{"APT::Get::Assume-Yes", "true"},
		{"APT::Get::AllowUnauthenticated", "false"},
		{"Acquire::AllowInsecureRepositories", "false"},
		{"Acquire::Retries", "3"},
		{"Debug::NoLocking", "true"},
		{"quiet", "1"},
	} {
		fmt.Fprintf(&conf, "%s %q;\n", kv[0], kv[1])
	}
	fmt.Fprintf(&conf, "APT::Architectures { %q; };\nAcquire::Languages { \"none\"; };\n", architecture)
	return os.WriteFile(a.conf(), []byte(conf.String()), 0o644)
}

// wayToMirror are the lines of the host's configuration of apt that are needed to reach a mirror.
var wayToMirror = regexp.MustCompile(`^Acquire::(https?|socks|tor|ftp|ForceIPv4|ForceIPv6|Check-Valid-Until)\b`)

func (a *archive) conf() string { return filepath.Join(a.dir, "etc", "apt.conf") }

// present are words of apt's complaints about what it could fetch, and would not trust or could
// not keep.
var present = regexp.MustCompile(`(?i)not signed|GPG error|signature|hash sum mismatch|expired|not valid|no space left|enough free space`)

// fetching makes what apt said of a download that failed an error of its own: a mirror that
// is away is fault.Unreachable; one that is not to be trusted, and a host that has no room,
// stay fault.Failed.
func fetching(err error) error {
	if err == nil || fault.Is(err, fault.Canceled) || present.MatchString(err.Error()) {
		return err
	}
	return fault.Wrap(fault.Unreachable, err, "Debian's archive")
}

// apt runs apt-get with the archive's configuration.
func (a *archive) apt(ctx context.Context, args ...string) ([]byte, error) {
	return command{name: "apt-get", args: args, dir: a.debs, env: []string{"APT_CONFIG=" + a.conf()}}.run(ctx)
}

// update fetches the index of what sources name.
func (a *archive) update(ctx context.Context) error {
	var list strings.Builder
	for _, s := range a.sources {
		fmt.Fprintf(&list, "deb [arch=%s signed-by=%s] %s %s main\n", architecture, archiveKeyring, s.uri, s.suite)
	}
	if err := os.WriteFile(filepath.Join(a.dir, "etc", "sources.list"), []byte(list.String()), 0o644); err != nil {
		return err
	}
	_, err := a.apt(ctx, "update", "-o", "APT::Update::Error-Mode=any")
	return fetching(err)
}

// readDate takes the newest date at which an index was signed.
func (a *archive) readDate() error {
	files, err := filepath.Glob(filepath.Join(a.dir, "lists", "*Release"))
	if err != nil {
		return err
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for line := range bytes.Lines(b) {
			text, ok := strings.CutPrefix(string(line), "Date: ")
			if !ok {
				continue
			}
			t, err := time.Parse(time.RFC1123, strings.TrimSpace(text))
			if err != nil {
				return fault.Wrap(fault.Corrupt, err, "the date of "+filepath.Base(name))
			}
			if t.After(a.date) {
				a.date = t.UTC()
			}
			break
		}
	}
	if a.date.IsZero() {
		return fault.New(fault.Corrupt, "no index of the archive says when it was made")
	}
	return nil
}

// aptInstall is a line of apt's simulation: "Inst NAME (VERSION REPOSITORIES [ARCHITECTURE])".
var aptInstall = regexp.MustCompile(`^Inst (\S+) (?:\[\S+\] )?\((\S+) .*\[(\S+)\]\)`)

// plan returns what has to be installed for patterns, in apt's order. Fails with fault.NotFound if apt cannot make it.
func (a *archive) plan(ctx context.Context, patterns []string) ([]deb, error) {
	out, err := a.apt(ctx, append([]string{"--simulate", "install", "--"}, patterns...)...)
	if err != nil {
		if fault.Is(err, fault.Canceled) {
			return nil, err
		}
		return nil, fault.Wrap(fault.NotFound, err, "choosing packages")
	}
	asked := map[string]bool{}
	for _, p := range patterns {
		name, _, _ := strings.Cut(p, "=")
		asked[name] = true
	}
	var all []deb
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		m := aptInstall.FindStringSubmatch(s.Text())
		if m == nil {
			continue
		}
		p := Package{Name: m[1], Version: m[2], Architecture: m[3], Manual: asked[m[1]]}
		all = append(all, deb{p, filepath.Join(a.debs, debFile(p))})
	}
	if len(all) == 0 {
		return nil, fault.New(fault.NotFound, "apt would install nothing for %s", strings.Join(patterns, " "))
	}
	return all, nil
}

// debFile is the name that apt gives a package's file.
func debFile(p Package) string {
	return p.Name + "_" + strings.NewReplacer(":", "%3a", "_", "%5f").Replace(p.Version) + "_" + p.Architecture + ".deb"
}

// fetch downloads packages that are not there yet; apt checks them all. Fails as openArchive.
func (a *archive) fetch(ctx context.Context, debs []deb) error {
	args := []string{"download", "--"}
	for _, d := range debs {
		args = append(args, d.Name+":"+d.Architecture+"="+d.Version)
	}
	if _, err := a.apt(ctx, args...); err != nil {
		return fetching(err)
	}
	for _, d := range debs {
		if _, err := os.Stat(d.path); err != nil {
			return fault.Wrap(fault.Failed, err, "apt did not leave a package where it was expected")
		}
	}
	return nil
}

// guestSources is the file of sources of apt in the guest, in deb822 form. A mirror's name and
// password, if this host's apt has one, is not for the guest.
func (a *archive) guestSources() string {
	var b strings.Builder
	for _, s := range a.sources {
		uri := s.uri
		if u, err := url.Parse(uri); err == nil {
			u.User = nil
			uri = u.String()
		}
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n", uri, s.suite, archiveKeyring)
	}
	return b.String()
}

// kernelPackage finds the real package behind the one that always depends on the newest kernel.
func (a *archive) kernelPackage(ctx context.Context) (deb, error) {
	all, err := a.plan(ctx, []string{"linux-image-" + architecture})
	if err != nil {
		return deb{}, err
	}
	i := slices.IndexFunc(all, func(d deb) bool { return kernelName.MatchString(d.Name) })
	if i < 0 {
		return deb{}, fault.New(fault.NotFound, "linux-image-%s depends on no kernel", architecture)
	}
	return all[i], nil
}

// kernelName is a kernel's package: linux-image-6.12.1+deb13-riscv64.
var kernelName = regexp.MustCompile(`^linux-image-(\d.*)$`)
