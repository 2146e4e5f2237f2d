package machine

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// machineParts are the packages whose code decides what a machine's next state is.
var machineParts = []string{"device", "memory", "riscv", "riscv/softfloat", "riscv/boot", "virtio", "devices", "machine"}

// TestSourcesOfChance: what a machine is made of has none of what could make two of them
// go on differently: no order of a map, no goroutine, channel or select, no floating point
// of the host but in softfloat's short way, and there no product that a compiler could fuse
// with a sum. Clocks, randomness, locks and system calls are kept out by internal/archtest.
func TestSourcesOfChance(t *testing.T) {
	if testing.Short() {
		t.Skip("it asks the go command for all that is imported")
	}
	exports := exportData(t)
	for _, name := range machineParts {
		for _, found := range chances(t, "steadfast/compute/"+name, exports, nil) {
			t.Errorf("compute/%s: %s", name, found)
		}
	}
	// It can find each, or a package that has none proves nothing.
	const all = `package p
func f(m map[int]int, c chan int, x float64) (n int) {
	for k := range m { n += k }
	go f(m, c, x)
	select { default: }
	c <- 1
	<-c
	return int(x*2 + 1) + int(float64(x*2) + 1)
}`
	got := map[string]int{}
	for _, found := range chances(t, "p", exports, []byte(all)) {
		_, what, _ := strings.Cut(found, ": ")
		got[what]++
	}
	want := map[string]int{
		"the order of a map": 1, "a goroutine": 1, "a select": 1, "a channel": 2, fusedProduct: 1,
		hostFloat: 7, // x three times, two sums, the product that is rounded, and its conversion
	}
	if !maps.Equal(got, want) {
		t.Errorf("it finds %v, want %v", got, want)
	}
}

// exportData is where the go command keeps what packages export, by import path.
func exportData(t *testing.T) map[string]string {
	t.Helper()
	argv := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}\t{{.Dir}}\t{{.GoFiles}}"}
	for _, name := range machineParts {
		argv = append(argv, "steadfast/compute/"+name)
	}
	out, err := exec.Command("go", argv...).Output()
	must(t, err)
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, rest, _ := strings.Cut(strings.TrimSpace(line), "\t")
		exports[path] = rest
	}
	return exports
}

// chances lists what in a package, or in a text, is of chance.
func chances(t *testing.T, path string, exports map[string]string, text []byte) (found []string) {
	t.Helper()
	fset := token.NewFileSet()
	var files []*ast.File
	add := func(name string, src any) {
		f, err := parser.ParseFile(fset, name, src, parser.SkipObjectResolution)
		must(t, err)
		files = append(files, f)
	}
	if text != nil {
		add("p.go", text)
	} else {
		parts := strings.Split(exports[path], "\t")
		for name := range strings.FieldsSeq(strings.Trim(parts[2], "[]")) {
			add(parts[1]+"/"+name, nil)
		}
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	lookup := func(path string) (io.ReadCloser, error) {
		file, _, _ := strings.Cut(exports[path], "\t")
		return os.Open(file)
	}
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", lookup)}
	if _, err := conf.Check(path, fset, files, info); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		rounded := map[ast.Expr]bool{} // by a conversion, so that nothing is fused with it
		ast.Inspect(f, func(n ast.Node) bool {
			if n == nil {
				return true
			}
			if c, ok := n.(*ast.CallExpr); ok && info.Types[c.Fun].IsType() {
				rounded[c.Args[0]] = true
			}
			at := fset.Position(n.Pos())
			what := chance(info, n, rounded)
			if what == hostFloat && strings.HasSuffix(at.Filename, "softfloat/fast.go") {
				what = ""
			}
			if what != "" {
				found = append(found, fmt.Sprintf("%s: %s", at, what))
			}
			return true
		})
	}
	return found
}

const (
	hostFloat    = "floating point of the host"
	fusedProduct = "a product of the host's floating point that may be fused"
)

// chance says what of a node is of chance, or "".
func chance(info *types.Info, n ast.Node, rounded map[ast.Expr]bool) string {
	if b, ok := n.(*ast.BinaryExpr); ok && b.Op == token.MUL && !rounded[b] && isFloat(info.Types[b]) {
		return fusedProduct
	}
	switch n := n.(type) {
	case *ast.GoStmt:
		return "a goroutine"
	case *ast.SelectStmt:
		return "a select"
	case *ast.SendStmt:
		return "a channel"
	case *ast.RangeStmt:
		if _, ok := info.TypeOf(n.X).Underlying().(*types.Map); ok {
			return "the order of a map"
		}
	case *ast.UnaryExpr:
		if n.Op == token.ARROW {
			return "a channel"
		}
	case ast.Expr:
		if isFloat(info.Types[n]) {
			return hostFloat
		}
	}
	return ""
}

// isFloat tells whether an expression is computed by the host's floating point.
func isFloat(tv types.TypeAndValue) bool {
	basic, ok := tv.Type.(*types.Basic)
	return ok && tv.Value == nil && !tv.IsType() && basic.Info()&(types.IsFloat|types.IsComplex) != 0
}
