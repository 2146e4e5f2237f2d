package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"steadfast/internal/walkdoc"
)

// TestWalkParses: every command of ours in docs/walk.md is one that there is, with arguments
// and flags that it takes. That they do what the page says is for "make walk".
func TestWalkParses(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "walk.md"))
	if err != nil {
		t.Fatal(err)
	}
	for heading, min := range map[string]int{"By hand, on one computer": 30, "On three machines": 30} {
		commands, err := walkdoc.Read(string(page), heading)
		if err != nil {
			t.Fatal(err)
		}
		checked := 0
		for _, c := range commands {
			for _, line := range ourCommands(c.Text) {
				checked++
				if err := parses(line); err != nil {
					t.Errorf("docs/walk.md:%d: %q: %v", c.Line, line, err)
				}
			}
		}
		if checked < min {
			t.Errorf("%q: %d commands were found", heading, checked)
		}
	}
	if parses("vm create x --no-such-flag") == nil || parses("vm creat x") == nil || parses("vm start") == nil {
		t.Error("what is wrong was taken")
	}
}

// ourCommands are the commands of this program in what is typed, without its name.
func ourCommands(text string) (list []string) {
	if strings.Contains(text, "<<") {
		return nil // a file's content
	}
	for part := range strings.FieldsFuncSeq(text, func(r rune) bool { return strings.ContainsRune(";|&", r) }) {
		part = regexp.MustCompile(`[0-9]*[<>].*$`).ReplaceAllString(part, "")
		if _, line, ok := strings.Cut(part, "steadfast "); ok && regexp.MustCompile(`^\s*((until|while|do|if) )?\s*$`).MatchString(strings.TrimSuffix(part, "steadfast "+line)) {
			list = append(list, line)
		}
	}
	return list
}

// parses tells whether a command would be taken; it is not run.
func parses(line string) error {
	root := (&app{getenv: os.Getenv}).root()
	c, rest, err := root.Find(shellWords(line))
	if err == nil {
		if err = c.ParseFlags(rest); err == nil && c.Args != nil {
			err = c.Args(c, c.Flags().Args())
		}
	}
	return err
}
