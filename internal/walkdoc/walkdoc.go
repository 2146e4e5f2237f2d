// Package walkdoc reads the commands of a page that leads a reader through something: in
// fenced blocks, each line that begins with a name and $ or # is a command that is typed at
// that name's prompt. Lines after it, up to the END of a here document that it begins, belong
// to it; others are what is printed, or part of it. So that a page's commands can be run, and
// are right, they are read by this and by nobody's copy of them.
package walkdoc

import (
	"fmt"
	"regexp"
	"strings"
)

// Command is what is typed at one prompt.
type Command struct {
	Line   int      // of the page, from 1
	At     string   // whose prompt
	Text   string   // what is typed: several lines for a here document
	Prints []string // lines that are shown as printed; "..." stands for anything
}

// prompt is how a command begins: "a$ " or "a# ".
var prompt = regexp.MustCompile(`^([a-z][a-z0-9]*)[$#] (.+)$`)

// here is the beginning of a here document.
var here = regexp.MustCompile(`<<-?'?([A-Z]+)'?`)

// Read returns the commands under a heading of the page, up to the next one of its level.
// Fails when there is no such heading, a block has no end, or what is printed comes before
// any command.
func Read(page, heading string) ([]Command, error) {
	var list []Command
	found, fenced, until := false, false, ""
	for i, line := range strings.Split(page, "\n") {
		if !fenced && strings.HasPrefix(line, "## ") {
			found = line == "## "+heading
			continue
		}
		if !found {
			if strings.HasPrefix(line, "```") {
				fenced = !fenced
			}
			continue
		}
		last := len(list) - 1
		switch {
		case until != "":
			list[last].Text += "\n" + line
			if line == until {
				until = ""
			}
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case !fenced || line == "":
		case prompt.MatchString(line):
			m := prompt.FindStringSubmatch(line)
			list = append(list, Command{Line: i + 1, At: m[1], Text: m[2]})
			if h := here.FindStringSubmatch(m[2]); h != nil {
				until = h[1]
			}
		case last < 0:
			return nil, fmt.Errorf("line %d is printed before any command: %q", i+1, line)
		default:
			list[last].Prints = append(list[last].Prints, line)
		}
	}
	switch {
	case len(list) == 0:
		return nil, fmt.Errorf("the page has no commands under %q", heading)
	case until != "" || fenced:
		return nil, fmt.Errorf("a block or here document under %q has no end", heading)
	}
	return list, nil
}

// Missing returns the first of the lines that a command is shown to print that output has
// not, in their order; "" when it has all. Blanks count as one, and "..." as anything.
func (c Command) Missing(output string) string {
	lines := strings.Split(output, "\n")
	for _, want := range c.Prints {
		var words []string
		for _, w := range strings.Fields(want) {
			words = append(words, strings.ReplaceAll(regexp.QuoteMeta(w), `\.\.\.`, `.*`))
		}
		shown := regexp.MustCompile(`^\s*` + strings.Join(words, `\s+`) + `\s*$`)
		for len(lines) > 0 && !shown.MatchString(lines[0]) {
			lines = lines[1:]
		}
		if len(lines) == 0 {
			return want
		}
		lines = lines[1:]
	}
	return ""
}
