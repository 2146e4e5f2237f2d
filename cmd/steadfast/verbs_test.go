package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestErrorsNameCommands: what texts tell people to type is a command that there is, with flags
// that it has.
func TestErrorsNameCommands(t *testing.T) {
	named := regexp.MustCompile(`\\"steadfast ([^"\\]*)(?:\\"|" *\+|")`)
	fill := regexp.MustCompile(`%[a-z]`)
	checked := 0
	for _, pattern := range []string{"vm*.go", "ft*.go", "status*.go", "../../node/overview/*.go", "../../cluster/placement/*.go", "../../node/api_*.go", "../../node/reach*.go", "../../node/hosting*.go", "../../cluster/inventory/*.go", "../../compute/host/*.go", "../../compute/vmhome/*.go", "../../compute/vmlock/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, files, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range named.FindAllStringSubmatch(string(text), -1) {
				if words := strings.Fields(m[1]); len(words) == 0 || slices.ContainsFunc(words[:min(len(words), 2)], fill.MatchString) && len(words) <= 2 {
					continue // the command is filled in, too
				}
				line := fill.ReplaceAllString(m[1], "x")
				checked++
				root := (&app{getenv: func(string) string { return "" }}).root()
				c, args, err := root.Find(strings.Fields(line))
				if err != nil || c == root || c.HasSubCommands() && len(args) > 0 {
					t.Errorf("%s: there is no command %q: %v", file, m[1], err)
					continue
				}
				for _, word := range args {
					name, isFlag := strings.CutPrefix(word, "--")
					name, _, _ = strings.Cut(name, "=")
					if isFlag && name != "x" && c.Flags().Lookup(name) == nil && c.InheritedFlags().Lookup(name) == nil && name != "help" {
						t.Errorf("%s: %q: %q has no flag --%s", file, m[1], c.CommandPath(), name)
					}
				}
			}
		}
	}
	if checked < 50 {
		t.Errorf("%d commands were found", checked)
	}
}
