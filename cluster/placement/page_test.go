package placement

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"steadfast/cluster/inventory"
)

// TestPage: docs/FAULTS.md has a row for each code of what fault tolerance takes and for each reason
// that a machine needs another secondary, and for nothing else.
func TestPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/FAULTS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, page, _ := strings.Cut(string(text), "\n## Fault tolerance\n")
	w := newWorld(t.Fatal)
	w.site(true, "m")
	w.vm("m", "c", 512, "", "")
	v := w.view()
	var codes []string
	for _, p := range Prerequisites(v, v.Machines["m"], Facts{}, 0) {
		codes = append(codes, p.Code)
	}
	if d := cmp.Diff(codes, rows(page, regexp.MustCompile("`(FT-[A-Z]+)`"))); d != "" {
		t.Errorf("codes of prerequisites (-) and docs/FAULTS.md (+) differ:\n%s", d)
	}
	reasons := constants(t, "../inventory/documents.go", "PartReason")
	if !slices.Contains(reasons, string(inventory.PartDivergence)) {
		t.Fatalf("reasons: %q", reasons) // looked for in the wrong place
	}
	if d := cmp.Diff(reasons, rows(page, regexp.MustCompile("^([a-z ]+)$"))); d != "" {
		t.Errorf("reasons (-) and docs/FAULTS.md (+) differ:\n%s", d)
	}
}

// rows are what a pattern finds in the first cells of tables, but for their heads.
func rows(page string, of *regexp.Regexp) (list []string) {
	lines := strings.Split(page, "\n")
	for i, line := range lines {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || i+1 < len(lines) && strings.HasPrefix(lines[i+1], "| ---") {
			continue
		}
		for _, m := range of.FindAllStringSubmatch(strings.TrimSpace(cells[1]), -1) {
			list = append(list, m[1])
		}
	}
	return list
}

// constants are the values of a file's constants of a type.
func constants(t *testing.T, file, of string) (list []string) {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != of {
			return true
		}
		for _, v := range spec.Values {
			if lit, ok := v.(*ast.BasicLit); ok {
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				list = append(list, text)
			}
		}
		return true
	})
	return list
}
