package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSettingsAreThoseOfTheDocs: what the guests are told is what the page tells
// administrators, so that the page says what was seen to work.
func TestSettingsAreThoseOfTheDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/clients/linux.md")
	if err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile(filepath.Join("guest", filepath.Base(multipathConf)))
	if err != nil {
		t.Fatal(err)
	}
	var block strings.Builder
	for line := range strings.Lines(string(conf)) {
		block.WriteString("    " + line)
	}
	if !strings.Contains(string(page), block.String()) {
		t.Errorf("the page has not got this multipath.conf:\n%s", block.String())
	}
	for _, list := range [][]string{openISCSI, multipathISCSI} {
		for _, line := range list {
			if !strings.Contains(string(page), "    "+line+"\n") && line != "node.startup = manual" {
				t.Errorf("the page has not got %q", line)
			}
		}
	}
}

// TestMultipathItems: each file keeps its place, for that is where udev and
// multipathd look.
func TestMultipathItems(t *testing.T) {
	items := multipathItems()
	if len(items) == 0 || items[0] != multipathConf+"=/etc/multipath.conf" {
		t.Errorf("%v", items)
	}
	for _, item := range items[1:] {
		if from, to, file := strings.Cut(item, "="); file && from != to {
			t.Errorf("%s", item)
		}
	}
}
