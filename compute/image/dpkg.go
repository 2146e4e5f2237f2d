package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"sort"
	"strings"
	"time"

	"steadfast/fault"
)

// dpkgDB collects dpkg's database of packages that are unpacked and not yet configured, as
// dpkg leaves it then (dpkg 1.22, src/main/unpack.c): the second stage goes on from there.
type dpkgDB struct {
	status   strings.Builder
	extended strings.Builder // apt's: which packages nobody asked for
	files    map[string]string
	scripts  map[string]bool
	fileTrig []string            // lines of triggers/File
	trig     map[string][]string // lines of triggers/NAME
	preinsts []string            // info names of packages with a preinst, in order
	packages []Package
}

func newDpkgDB() *dpkgDB {
	return &dpkgDB{files: map[string]string{}, scripts: map[string]bool{}, trig: map[string][]string{}}
}

// control is what a package's control archive holds, by file name.
type control struct {
	files map[string][]byte
	exec  map[string]bool
}

func readControl(ctx context.Context, file string) (control, error) {
	c := control{map[string][]byte{}, map[string]bool{}}
	out, err := command{name: "dpkg-deb", args: []string{"--ctrl-tarfile", file}}.run(ctx)
	if err != nil {
		return c, err
	}
	for tr := tar.NewReader(bytes.NewReader(out)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return c, fault.Wrap(fault.Corrupt, err, file)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			return c, fault.Wrap(fault.Corrupt, err, file)
		}
		name := path.Base(h.Name)
		c.files[name] = b
		c.exec[name] = h.Mode&0o100 != 0
	}
	if len(c.files["control"]) == 0 {
		return c, fault.New(fault.Corrupt, "%s: no control file", file)
	}
	return c, nil
}

// field returns a field of the control file, "" if there is none.
func (c control) field(name string) string {
	for line := range strings.Lines(string(c.files["control"])) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(k, name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// conffiles returns the paths that are to be configuration files. A line may say
// "remove-on-upgrade" first: that one is none.
func (c control) conffiles() []string {
	var all []string
	for line := range strings.Lines(string(c.files["conffiles"])) {
		if p := strings.TrimSpace(line); strings.HasPrefix(p, "/") {
			all = append(all, p)
		}
	}
	return all
}

// infoName is the name of a package's files in dpkg's database: with the architecture
// where several may be installed beside each other.
func (c control) infoName() string {
	if c.field("Multi-Arch") == "same" {
		return c.field("Package") + ":" + c.field("Architecture")
	}
	return c.field("Package")
}

// add enters a package whose files are list.
func (db *dpkgDB) add(c control, p Package, list []string) {
	name := c.infoName()
	if c.field("Essential") == "yes" || c.field("Priority") == "required" {
		p.Manual = true
	}
	db.packages = append(db.packages, p)
	db.stanza(c)
	if !p.Manual {
		fmt.Fprintf(&db.extended, "Package: %s\nArchitecture: %s\nAuto-Installed: 1\n\n", p.Name, architecture)
	}
	for f, b := range c.files {
		// dpkg keeps the rest as it is, scripts executable.
		if f == "control" {
			continue
		}
		db.files[name+"."+f] = string(b)
		db.scripts[name+"."+f] = c.exec[f]
	}
	db.files[name+".list"] = strings.Join(list, "\n") + "\n"
	if _, ok := c.files["preinst"]; ok {
		db.preinsts = append(db.preinsts, name)
	}
	db.triggers(c, name)
}

// stanza appends the package's paragraph to the file status.
func (db *dpkgDB) stanza(c control) {
	for line := range strings.Lines(string(c.files["control"])) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		db.status.WriteString(strings.TrimRight(line, "\n") + "\n")
		if strings.HasPrefix(line, "Package:") {
			db.status.WriteString("Status: install ok unpacked\n")
		}
	}
	if conffiles := c.conffiles(); len(conffiles) > 0 {
		db.status.WriteString("Conffiles:\n")
		for _, p := range conffiles {
			db.status.WriteString(" " + p + " newconffile\n")
		}
	}
	db.status.WriteString("\n")
}

// triggers enters what the package is interested in (deb-triggers(5)).
func (db *dpkgDB) triggers(c control, name string) {
	for line := range strings.Lines(string(c.files["triggers"])) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) != 2 || !strings.HasPrefix(f[0], "interest") {
			continue
		}
		who := name
		if f[0] == "interest-noawait" {
			who += "/noawait"
		}
		if strings.HasPrefix(f[1], "/") {
			db.fileTrig = append(db.fileTrig, f[1]+" "+who)
		} else {
			db.trig[f[1]] = append(db.trig[f[1]], who)
		}
	}
}

// write puts the database into the tree.
func (db *dpkgDB) write(t *tree, when time.Time) error {
	const dir = "var/lib/dpkg/"
	put := func(name, content string, mode uint32) error { return t.put(dir+name, content, mode, when) }
	for _, d := range []string{"alternatives", "info", "parts", "triggers", "updates"} {
		if err := t.folders(dir+d, when); err != nil {
			return err
		}
	}
	files := map[string]string{
		"status": db.status.String(), "available": "", "diversions": "", "statoverride": "",
		"info/format": "1\n", "triggers/Unincorp": "", "triggers/File": "",
	}
	if len(db.fileTrig) > 0 {
		files["triggers/File"] = strings.Join(db.fileTrig, "\n") + "\n"
	}
	for name, lines := range db.trig {
		files["triggers/"+name] = strings.Join(lines, "\n") + "\n"
	}
	for name, content := range db.files {
		files["info/"+name] = content
	}
	for _, name := range sortedKeys(files) {
		mode := uint32(0o644)
		if db.scripts[strings.TrimPrefix(name, "info/")] {
			mode = 0o755
		}
		if err := put(name, files[name], mode); err != nil {
			return err
		}
	}
	return t.put("var/lib/apt/extended_states", db.extended.String(), 0o644, when)
}

// unpackDebs unpacks packages into the tree, as dpkg does, and returns its database.
func unpackDebs(ctx context.Context, t *tree, debs []deb) (*dpkgDB, error) {
	db := newDpkgDB()
	debs = slices.Clone(debs)
	// base-files first: it has the links that make /bin and /lib parts of /usr.
	sort.SliceStable(debs, func(i, j int) bool { return debs[i].Name == "base-files" && debs[j].Name != "base-files" })
	for _, d := range debs {
		c, err := readControl(ctx, d.path)
		if err != nil {
			return nil, err
		}
		conffiles := map[string]bool{}
		for _, p := range c.conffiles() {
			conffiles[strings.TrimPrefix(p, "/")] = true
		}
		out, err := command{name: "dpkg-deb", args: []string{"--fsys-tarfile", d.path}}.run(ctx)
		if err != nil {
			return nil, err
		}
		list, err := t.unpack(bytes.NewReader(out), func(p string) string {
			if conffiles[p] {
				// Configuring puts it in its place.
				return p + ".dpkg-new"
			}
			return p
		})
		if err != nil {
			return nil, fault.Wrap(fault.KindOf(err), err, d.Name)
		}
		db.add(c, d.Package, list)
	}
	return db, nil
}

// sortedKeys returns a map's keys in order.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// tarFile returns one file of an archive. Fails with fault.NotFound if it is not there.
func tarFile(r io.Reader, name string) ([]byte, error) {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil, fault.New(fault.NotFound, "a package has no file %s", name)
		}
		if err != nil {
			return nil, err
		}
		if path.Clean("/"+h.Name) == "/"+name && h.Typeflag == tar.TypeReg {
			return io.ReadAll(tr)
		}
	}
}
