package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// TestPages: every command that is not hidden has a page, which names its flags, and groff has
// nothing to say against any.
func TestPages(t *testing.T) {
	dir := t.TempDir()
	root := (&app{getenv: os.Getenv}).root()
	if err := writePages(root, dir, time.Unix(1e9, 0)); err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pages[filepath.Base(file)] = string(text)
	}
	want := 0
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if !documented(c) {
			return
		}
		want++
		text, ok := pages[pageName(c)+".8"]
		if !ok {
			t.Errorf("%s has no page", c.CommandPath())
		}
		for _, has := range []string{".TH " + strings.ToUpper(pageName(c)) + " 8 2001-09-09 ", ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", `\fB\-\-help\fR`, ".SH EXIT STATUS"} {
			if !strings.Contains(text, has) {
				t.Errorf("the page of %s has no %q", c.CommandPath(), has)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	if len(pages) != want || want < 100 {
		t.Errorf("%d pages of %d commands", len(pages), want)
	}
	for name, has := range map[string]string{
		"steadfast-vm-create.8": `\fB\-\-disk\fR`, "steadfast-up.8": `(default steadfast\-data)`,
		"steadfast.8": ".BR steadfast\\-vm (8)\n", "steadfast-cluster-join.8": ".BR steadfast\\-cluster (8)",
	} {
		if !strings.Contains(pages[name], has) {
			t.Errorf("%s has no %q", name, has)
		}
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Logf("SKIP: the pages were not formatted: there is no groff here: apt-get install groff")
		return
	}
	cmd := exec.Command(groff, append([]string{"-man", "-ww", "-z", "-Tutf8"}, files...)...)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}

// TestRoff: text comes out as it was.
func TestRoff(t *testing.T) {
	for in, want := range map[string]string{
		"a-b":        `a\-b`,
		`a\b`:        `a\eb`,
		".TH x":      `\&.TH x`,
		"x\n'y'":     "x\n\\(aqy\\(aq",
		"plain text": "plain text",
	} {
		if got := roff(in); got != want {
			t.Errorf("roff(%q) = %q; want %q", in, got, want)
		}
	}
}
