package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"steadfast/fault"
)

// manSection is that of all our pages: commands of a system's administrator. man-pages(7).
const manSection = "8"

// manCommand is "steadfast man", by which packages get their pages. The pages are written
// from the commands themselves, so that they cannot say anything else.
func (a *app) manCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "man --to DIR", Short: "Write the manual pages of all commands", Args: exactly(0), Hidden: true,
		Long: `Write a manual page for each command into a folder, in section 8. Their date is that
of $SOURCE_DATE_EPOCH, if it is set, so that the same program makes the same pages.`,
		Example: "  steadfast man --to ./man8",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return fault.New(fault.Invalid, "say with --to in which folder the pages go")
			}
			at := time.Now()
			if text := a.getenv("SOURCE_DATE_EPOCH"); text != "" {
				n, err := strconv.ParseInt(text, 10, 64)
				if err != nil {
					return fault.New(fault.Invalid, "SOURCE_DATE_EPOCH is %q; it is a number of seconds since 1970", text)
				}
				at = time.Unix(n, 0)
			}
			return writePages(cmd.Root(), dir, at)
		},
	}
	c.Flags().StringVar(&dir, "to", "", "the folder")
	return c
}

// writePages writes a command's page and those of the commands under it.
func writePages(c *cobra.Command, dir string, at time.Time) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fault.Wrap(fault.Denied, err, "cannot make the folder")
	}
	for _, sub := range c.Commands() {
		if !documented(sub) {
			continue
		}
		if err := writePages(sub, dir, at); err != nil {
			return err
		}
	}
	c.InitDefaultHelpFlag()
	err := os.WriteFile(filepath.Join(dir, pageName(c)+"."+manSection), page(c, at), 0o644)
	return fault.Wrap(fault.Denied, err, "cannot write a page")
}

// documented tells whether a command has a page. Those that processes of ours run are hidden;
// "help" is cobra's.
func documented(c *cobra.Command) bool { return c.IsAvailableCommand() && c.Name() != "help" }

// pageName is what a command's page is called, as git's are: steadfast-vm-create.
func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// page returns a command's page. groff_man(7).
func page(c *cobra.Command, at time.Time) []byte {
	b := new(bytes.Buffer)
	line := func(format string, args ...any) { fmt.Fprintf(b, format+"\n", args...) }
	line(`.\" Written by "steadfast man" from the command itself.`)
	line(`.TH %s %s %s "steadfast %s" "Steadfast"`, strings.ToUpper(pageName(c)), manSection, at.UTC().Format(time.DateOnly), version)
	// A line is as it is typed: not hyphenated, and not stretched.
	line(".nh\n.ad l")
	line(".SH NAME\n%s \\- %s", roff(pageName(c)), roff(c.Short))
	line(".SH SYNOPSIS")
	if c.Runnable() && !c.HasSubCommands() {
		line(".B %s", roff(c.UseLine()))
	} else {
		line(".B %s\n.I COMMAND\n[\\fIflags\\fR]", roff(c.CommandPath()))
	}
	line(".SH DESCRIPTION")
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	paragraphs(b, text)
	pageCommands(b, c)
	pageFlags(b, "OPTIONS", c.NonInheritedFlags())
	pageFlags(b, "OPTIONS OF ALL COMMANDS", c.InheritedFlags())
	if c.Example != "" {
		line(".SH EXAMPLES\n.nf\n%s\n.fi", roff(unindent(c.Example)))
	}
	if !c.HasParent() {
		pageStatus(b)
		line(pageFiles)
		return b.Bytes()
	}
	line(".SH EXIT STATUS\n0, or that of the kind of what failed: see\n.BR steadfast (8).")
	line(".SH SEE ALSO\n.BR %s (8)", roff(pageName(c.Parent())))
	return b.Bytes()
}

// pageCommands lists the commands under one.
func pageCommands(b *bytes.Buffer, c *cobra.Command) {
	if !slices.ContainsFunc(c.Commands(), documented) {
		return
	}
	b.WriteString(".SH COMMANDS\n")
	for _, sub := range c.Commands() {
		if documented(sub) {
			fmt.Fprintf(b, ".TP\n.BR %s (8)\n%s\n", roff(pageName(sub)), roff(sub.Short))
		}
	}
}

// pageFlags lists flags.
func pageFlags(b *bytes.Buffer, title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		b.WriteString(".TP\n")
		if f.Shorthand != "" {
			fmt.Fprintf(b, "\\fB\\-%s\\fR, ", f.Shorthand)
		}
		kind, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(b, "\\fB\\-\\-%s\\fR", roff(f.Name))
		if kind != "" {
			fmt.Fprintf(b, " \\fI%s\\fR", roff(kind))
		}
		fmt.Fprintf(b, "\n%s", roff(usage))
		if !slices.Contains([]string{"", "false", "0", "0s", "[]"}, f.DefValue) {
			fmt.Fprintf(b, " (default %s)", roff(f.DefValue))
		}
		b.WriteString("\n")
	})
}

// pageStatus lists what the program ends with.
func pageStatus(b *bytes.Buffer) {
	b.WriteString(".SH EXIT STATUS\n.TP\n0\nit was done\n")
	for _, k := range fault.Kinds() {
		r := k.Of()
		fmt.Fprintf(b, ".TP\n%d\n%s\n", r.Exit, roff(r.Name))
	}
	b.WriteString("What each means, and what to do, is in FAULTS.md.\n")
}

// pageFiles is the end of the program's own page.
const pageFiles = `.SH ENVIRONMENT
.TP
.B STEADFAST_SOCKET
the API socket of the process that commands talk to, unless \fB\-\-socket\fR says it
.SH FILES
.TP
.I /etc/steadfast/steadfast.toml
configuration of the storage node, with every key and its default
.TP
.I /etc/steadfast/host.toml
configuration of the host of machines
.TP
.I /var/lib/steadfast, /var/lib/steadfast\-host, /var/lib/steadfast\-witness
what node, host and witness of this machine know: membership, control state, secrets
.TP
.I /run/steadfast/api.sock, /run/steadfast\-host/api.sock, /run/steadfast\-witness/api.sock
their API sockets
.TP
.I /usr/share/doc/steadfast
the documentation: walk.md leads through all of it
.SH SEE ALSO
.BR systemctl (1),
.BR nft (8)`

// paragraphs writes text: paragraphs stand apart by empty lines, and lines that are indented
// are kept as they are.
func paragraphs(b *bytes.Buffer, text string) {
	first := true
	for part := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if !first {
			b.WriteString(".PP\n")
		}
		first = false
		if strings.HasPrefix(part, "  ") {
			fmt.Fprintf(b, ".nf\n%s\n.fi\n", roff(part))
			continue
		}
		b.WriteString(roff(part) + "\n")
	}
}

// unindent takes the two blanks before each line away that --help has there.
func unindent(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}

// roff writes text so that groff prints it as it is: backslashes, hyphens that are typed, and
// lines that begin like a request.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
