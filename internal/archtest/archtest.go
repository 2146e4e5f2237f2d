// Package archtest proves from the source text that the tree is built the way
// docs/adr/0001-house.md says: imports go one way, the two halves meet only in
// node, cores stay pure, and nothing starts or ends the process behind the
// reader's back.
//
// It reads files, never runs the go command, so that it also judges code that
// does not build yet. Its own test feeds it trees that break each rule: a check
// that cannot fail proves nothing.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Rules is what a tree is held to. Paths are relative to the module's root.
type Rules struct {
	// Module is the module's path; imports under it are the tree's own.
	Module string
	// Layers lists the roots of the tree from the top down: a package imports
	// packages of its own layer or of one below, never of one above.
	Layers [][]string
	// Apart are pairs of roots that never import each other.
	Apart [][2]string
	// Joiners are the only roots that may import both sides of an Apart pair.
	Joiners []string
	// Private maps a root to the roots that may import it.
	Private map[string][]string
	// Pure are the packages that decide and do no I/O.
	Pure []string
	// Impure are the imports a pure package does without.
	Impure []string
	// BadNames are package names that say nothing.
	BadNames []string
	// Enders are the roots whose code may end the process.
	Enders []string
	// FakeUsers are the roots that may import fakes (packages named *test)
	// outside of _test.go files.
	FakeUsers []string
	// BadText are strings that no text file of the tree may hold.
	BadText []string
	// SkipDirs are folders that are not part of the source.
	SkipDirs []string
}

// Steadfast returns the rules of this repository.
func Steadfast() Rules {
	return Rules{
		Module: "steadfast",
		Layers: [][]string{
			{"test"},
			{"cmd"},
			{"node"},
			{"sim"},
			{"san", "compute"},
			{"cluster"},
			{"scsi", "iscsi", "block", "fault"},
			{"api", "web"},
			{"internal"},
		},
		Apart:   [][2]string{{"san", "compute"}},
		Joiners: []string{"node", "sim"},
		Private: map[string][]string{
			"api":  {"api", "cmd", "node", "test"},
			"web":  {"web", "node"},
			"sim":  {"sim"},
			"test": {"test"},
			"cmd":  {"cmd"},
			"node": {"node", "cmd", "test"},
		},
		Pure: []string{
			"scsi", "iscsi", "fault", "san/lun/reserve", "san/store/format", "cluster/quorum", "cluster/group", "cluster/inventory", "cluster/placement", "san/mirror", "san/alias",
			"compute/device", "compute/riscv", "compute/riscv/softfloat", "compute/riscv/asm", "compute/riscv/bare", "compute/riscv/boot", "compute/virtio", "compute/devices", "compute/machine", "compute/vmlock", "compute/lockstep",
			"compute/netswitch/bridge", "compute/initiator/nexus",
		},
		// time is judged by what is used of it: see durationOnly.
		Impure: []string{
			"net", "os", "sync", "context", "math/rand", "math/rand/v2",
			"crypto/rand", "log", "log/slog", "syscall", "golang.org/x/sys",
		},
		BadNames:  []string{"util", "utils", "common", "types", "helpers", "manager", "misc"},
		Enders:    []string{"cmd", "test"},
		FakeUsers: []string{"sim", "test"},
		// In halves, so that this file keeps its own rule.
		BadText: []string{
			"proxy." + "golang.org", "sum." + "golang.org", "deb." + "debian.org",
			"registry." + "npmjs", "pypi" + ".org", "/" + "work/",
		},
		SkipDirs: []string{".git", ".cache", "bin", "dist", "node_modules", "steadfast-data"},
	}
}

// Violation is one place that breaks a rule.
type Violation struct {
	Where string // path, with a line where there is one
	Rule  string // the rule's short name
	Text  string // what is wrong and what to do
}

// String renders v as one line.
func (v Violation) String() string { return v.Where + ": " + v.Rule + ": " + v.Text }

// Check reads the tree and returns what breaks the rules, in the tree's order.
// It errs only when the tree cannot be read or a Go file cannot be parsed.
func Check(tree fs.FS, rules Rules) ([]Violation, error) {
	c := &checker{Rules: rules, files: token.NewFileSet()}
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			if slices.Contains(rules.SkipDirs, d.Name()) || d.Name() == "testdata" && name != "." {
				return fs.SkipDir
			}
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		return c.file(tree, name)
	})
	if err != nil {
		return nil, fmt.Errorf("read the tree: %w", err)
	}
	return c.found, nil
}

// checker collects what Check finds.
type checker struct {
	Rules
	files *token.FileSet
	found []Violation
}

func (c *checker) add(where, rule, format string, args ...any) {
	c.found = append(c.found, Violation{where, rule, fmt.Sprintf(format, args...)})
}

// file judges one file: its text, and its code if it is Go.
func (c *checker) file(tree fs.FS, name string) error {
	text, err := fs.ReadFile(tree, name)
	if err != nil {
		return err
	}
	c.text(name, text)
	if !strings.HasSuffix(name, ".go") {
		return nil
	}
	f, err := parser.ParseFile(c.files, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	g := goFile{
		name: name, dir: path.Dir(name), ast: f,
		test: strings.HasSuffix(name, "_test.go"), generated: ast.IsGenerated(f),
	}
	c.imports(g)
	c.packageName(g)
	if !g.generated {
		c.endings(g)
	}
	return nil
}

// goFile is a parsed file with what the rules ask about it.
type goFile struct {
	name, dir       string
	ast             *ast.File
	test, generated bool
}

func (c *checker) at(pos token.Pos) string {
	p := c.files.Position(pos)
	return p.Filename + ":" + strconv.Itoa(p.Line)
}

// text finds forbidden strings. Binary files have no lines to show: skipped.
func (c *checker) text(name string, text []byte) {
	whole := string(text)
	if strings.ContainsRune(whole, 0) {
		return
	}
	for _, bad := range c.BadText {
		if before, _, ok := strings.Cut(whole, bad); ok {
			c.add(fmt.Sprintf("%s:%d", name, 1+strings.Count(before, "\n")), "text", "%q does not belong in the repository", bad)
		}
	}
}

// imports holds each import of a file to the layer, privacy and purity rules.
func (c *checker) imports(g goFile) {
	pure := !g.test && slices.Contains(c.Pure, g.dir)
	sides := map[string]bool{}
	for _, spec := range g.ast.Imports {
		target, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		where := c.at(spec.Pos())
		if pure {
			c.purity(g, where, target)
		}
		own, ok := strings.CutPrefix(target, c.Module+"/")
		if !ok {
			continue
		}
		sides[root(own)] = true
		c.layer(g, where, own)
		c.private(g, where, own)
		c.fake(g, where, own)
	}
	if pure {
		c.durationOnly(g)
	}
	for _, pair := range c.Apart {
		if sides[pair[0]] && sides[pair[1]] && !c.under(g.dir, c.Joiners) {
			c.add(g.name, "halves", "imports both %s and %s; only %s may", pair[0], pair[1], strings.Join(c.Joiners, " and "))
		}
	}
}

// purity reports an import that a pure package does without.
func (c *checker) purity(g goFile, where, target string) {
	for _, bad := range c.Impure {
		if target == bad || strings.HasPrefix(target, bad+"/") {
			c.add(where, "purity", "%s is a core and imports %s: pass what it needs as an input", g.dir, target)
		}
	}
}

// layer reports an import of a higher layer, and of the other half.
func (c *checker) layer(g goFile, where, own string) {
	from, to := c.layerOf(g.dir), c.layerOf(own)
	switch {
	case from < 0 || to < 0:
		name := own
		if from < 0 {
			name = g.dir
		}
		c.add(where, "layer", "%s is in no layer: give it one in archtest and docs/ARCHITECTURE.md", name)
	case to < from:
		c.add(where, "layer", "%s imports %s, which is above it", g.dir, own)
	}
	for _, pair := range c.Apart {
		a, b := root(g.dir), root(own)
		if a == pair[0] && b == pair[1] || a == pair[1] && b == pair[0] {
			c.add(where, "halves", "%s and %s never import each other: meet in block.Device", a, b)
		}
	}
}

// layerOf returns the index of a path's layer from the top, or -1.
func (c *checker) layerOf(p string) int {
	return slices.IndexFunc(c.Layers, func(layer []string) bool { return slices.Contains(layer, root(p)) })
}

// private reports an import of a root that is not for everyone below it.
func (c *checker) private(g goFile, where, own string) {
	users, ok := c.Private[root(own)]
	if ok && !c.under(g.dir, users) {
		c.add(where, "private", "%s imports %s, which is only for %s", g.dir, own, strings.Join(users, ", "))
	}
}

// fake reports code outside of tests that stands on a fake.
func (c *checker) fake(g goFile, where, own string) {
	if !isFake(own) || isFake(g.dir) || g.test || c.under(g.dir, c.FakeUsers) {
		return
	}
	c.add(where, "fake", "%s imports %s: fakes are for tests and the simulation", g.dir, own)
}

// isFake tells whether a package is a fake or a check by its name.
func isFake(p string) bool {
	name := path.Base(p)
	return strings.HasSuffix(name, "test") && name != "test"
}

// durationOnly reports uses of package time that need a clock. A core may hold
// a length of time; what time it is, it is told.
func (c *checker) durationOnly(g goFile) {
	name := localName(g.ast, "time")
	if name == "" {
		return
	}
	allowed := []string{"Duration", "Nanosecond", "Microsecond", "Millisecond", "Second", "Minute", "Hour"}
	ast.Inspect(g.ast, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if id, ok := sel.X.(*ast.Ident); ok && id.Name == name && !slices.Contains(allowed, sel.Sel.Name) {
			c.add(c.at(sel.Pos()), "purity", "%s is a core and uses time.%s: pass the time as an input", g.dir, sel.Sel.Name)
		}
		return true
	})
}

// packageName reports names that say nothing about what is inside.
func (c *checker) packageName(g goFile) {
	name := g.ast.Name.Name
	if slices.Contains(c.BadNames, strings.TrimSuffix(name, "_test")) || slices.Contains(c.BadNames, path.Base(g.dir)) {
		c.add(g.name, "name", "package %s: name it after what it does", name)
	}
}

// endings reports init functions, and ends of the process outside of the
// roots that own it. A deferred Close does not run after os.Exit: a library
// that calls it drops what its callers still hold.
func (c *checker) endings(g goFile) {
	for _, decl := range g.ast.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
			c.add(c.at(f.Pos()), "init", "no init functions: construct where it is used")
		}
	}
	if c.under(g.dir, c.Enders) || g.test {
		return
	}
	osName, logName := localName(g.ast, "os"), localName(g.ast, "log")
	ast.Inspect(g.ast, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		id, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		exit := osName != "" && id.Name == osName && sel.Sel.Name == "Exit"
		fatal := logName != "" && id.Name == logName && strings.HasPrefix(sel.Sel.Name, "Fatal")
		if exit || fatal {
			c.add(c.at(sel.Pos()), "exit", "%s.%s outside of cmd: return an error", id.Name, sel.Sel.Name)
		}
		return true
	})
}

// localName returns the name a file gives to an imported package, or "".
func localName(f *ast.File, target string) string {
	for _, spec := range f.Imports {
		if spec.Path.Value != strconv.Quote(target) {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name
		}
		return path.Base(target)
	}
	return ""
}

// root returns the first element of a path.
func root(p string) string {
	first, _, _ := strings.Cut(p, "/")
	return first
}

// under tells whether a path lies in one of the roots.
func (c *checker) under(p string, roots []string) bool { return slices.Contains(roots, root(p)) }
