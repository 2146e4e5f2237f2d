package walkdoc

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

const page = "# A page\n\n## One\n\nWords.\n\n```console\na$ cat > f <<'END'\na = 1\n\nb$ is text\nEND\nb# show\nstate   up ...\n```\n\n## Two\n```\nc$ other\n```\n"

// TestRead: commands with their prompts and here documents, of the right part.
func TestRead(t *testing.T) {
	got, err := Read(page, "One")
	want := []Command{
		{Line: 8, At: "a", Text: "cat > f <<'END'\na = 1\n\nb$ is text\nEND"},
		{Line: 13, At: "b", Text: "show", Prints: []string{"state   up ..."}},
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
	for text, heading := range map[string]string{
		page:                             "Three",
		"## One\n```\nlost\n```\n":       "One",
		"## One\n```\na$ x <<END\n```\n": "One",
		"## One\n```\na$ x\n":            "One",
	} {
		if got, err := Read(text, heading); err == nil {
			t.Errorf("%q of %q: %v", heading, text, got)
		}
	}
}

// TestMissing: what is printed is found in its order, and what is not there is missed.
func TestMissing(t *testing.T) {
	c := Command{Prints: []string{"state  up", "owner ...", "size 1.0"}}
	for output, want := range map[string]string{
		"x\nstate      up\nowner a, epoch 3\n\nsize 1.0\n": "",
		"state down\nowner a\nsize 1.0":                    "state  up",
		"owner a\nstate up\nsize 1.0":                      "owner ...",
		"state up\nowner a\nsize 1x0":                      "size 1.0",
	} {
		if got := c.Missing(output); got != want {
			t.Errorf("%q: %q is missing; want %q", output, got, want)
		}
	}
}
