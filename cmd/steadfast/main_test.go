package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"steadfast/cluster/identity"
	"steadfast/cluster/quorum"
	"steadfast/cluster/quorumio"
	"steadfast/fault"
	"steadfast/internal/freeport"
	"steadfast/node/config"
	"steadfast/node/handed"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"steadfast": main})
}

// TestScripts runs the transcripts in testdata: what an administrator types and
// sees, against a real node with real files under $D. Commands of their own:
//
//	serve                     wait until the node serves
//	await REGEXP COMMAND...   repeat a command until it succeeds and matches
//	exits N ARGS...           steadfast ARGS must end with status N
//	joinhost FILE NAME AT     a host joins by the token in FILE, and does not begin
//	hold ADDRESS GROUP        hold a group's alias address for the nodes a and b
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve": serveScript, "exits": exitsScript, "await": awaitScript, "joinhost": joinHostScript, "hold": holdScript,
		},
		Setup: func(e *testscript.Env) error {
			// Sockets' paths are short; the script's own folder may not be.
			dir, err := os.MkdirTemp("", "sf")
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(dir) })
			e.Setenv("D", dir)
			e.Setenv("STEADFAST_SOCKET", filepath.Join(dir, "api.sock"))
			if err := setUpPair(e, dir); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "steadfast.toml"), fmt.Appendf(nil,
				"data_dir = %q\nsocket = %q\ncache_size = \"16M\"\ndrain_timeout = \"1s\"\n[[portal]]\naddress = \"127.0.0.1:0\"\n",
				filepath.Join(dir, "data"), filepath.Join(dir, "api.sock")), 0o600)
		},
	})
}

// setUpPair gives a script what two nodes and a witness need: the configuration
// files $D/a.toml and $D/b.toml, and the addresses $A, $B, $C and $W. Alias addresses
// are left alone: that needs no root.
func setUpPair(e *testscript.Env, dir string) error {
	for _, name := range []string{"A", "B", "C", "W"} {
		address, err := freeport.Address()
		if err != nil {
			return err
		}
		e.Setenv(name, address)
	}
	for _, name := range []string{"a", "b"} {
		err := os.WriteFile(filepath.Join(dir, name+".toml"), fmt.Appendf(nil,
			"data_dir = %q\nsocket = %q\ncache_size = \"16M\"\ndrain_timeout = \"1s\"\n[[portal]]\naddress = \"127.0.0.1:0\"\n[cluster]\nhanded_aliases = true\n",
			filepath.Join(dir, name), filepath.Join(dir, name+".sock")), 0o600)
		if err != nil {
			return err
		}
	}
	return nil
}

// patience is how long scripts wait for what should take moments.
const patience = 20 * time.Second

// awaitScript waits until a command succeeds and prints what matches.
func awaitScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await REGEXP COMMAND ARGS...")
	}
	want := regexp.MustCompile("(?m)" + args[0])
	// Tried outside of the script, whose log would show every attempt.
	path := ""
	for dir := range strings.SplitSeq(ts.Getenv("PATH"), string(os.PathListSeparator)) {
		if p := filepath.Join(dir, args[1]); path == "" {
			if _, err := os.Stat(p); err == nil {
				path = p
			}
		}
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		cmd := exec.Command(path, args[2:]...)
		cmd.Dir = ts.MkAbs(".")
		cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"), "STEADFAST_SOCKET="+ts.Getenv("STEADFAST_SOCKET"))
		out, err := cmd.CombinedOutput()
		if err == nil && want.Match(out) {
			break
		}
		if time.Now().After(end) {
			ts.Fatalf("%v: not within %v: %v\n%s", args, patience, err, out)
		}
	}
	ts.Check(ts.Exec(args[1], args[2:]...))
}

// serveScript waits until the node that a script started serves.
func serveScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: serve")
	}
	awaitScript(ts, false, []string{"^state +serving$", "steadfast", "status"})
}

// exitsScript checks a command's exit status.
func exitsScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec("steadfast", args[1:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("steadfast %s: exit status %d; want %d", strings.Join(args[1:], " "), got, want)
	}
}

// joinHostScript makes a host a member of a token's cluster. There is no process.
func joinHostScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: joinhost TOKENFILE NAME ADDRESS")
	}
	token, err := identity.ParseToken(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err = quorumio.Join(ctx, filepath.Join(ts.Getenv("D"), args[1]), token, quorum.Member(args[1]), args[2], quorum.RoleHost)
	ts.Check(err)
}

// holdScript listens at an alias address for both nodes, as "steadfast up" does.
func holdScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: hold ADDRESS GROUP")
	}
	at, err := netip.ParseAddr(args[0])
	ts.Check(err)
	var sockets []string
	for _, name := range []string{"a", "b"} {
		sockets = append(sockets, handed.Socket(filepath.Join(ts.Getenv("D"), name)))
	}
	k := handed.NewKeeper(handed.Options{Nodes: sockets, Log: slog.New(slog.DiscardHandler)})
	ts.Defer(k.Close)
	_, err = k.Hold(netip.AddrPortFrom(at, config.DefaultPort), args[1])
	ts.Check(err)
}

// leaves returns every command that does something.
func leaves(c *cobra.Command) []*cobra.Command {
	if !c.HasSubCommands() {
		return []*cobra.Command{c}
	}
	var all []*cobra.Command
	for _, sub := range c.Commands() {
		all = append(all, leaves(sub)...)
	}
	return all
}

// TestHelp: every command says in a line what it does, and shows an example
// that it would accept.
func TestHelp(t *testing.T) {
	for _, c := range leaves((&app{getenv: os.Getenv}).root()) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s: no short text or no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			words := shellWords(strings.TrimSpace(line))
			if len(words) == 0 || words[0] != "steadfast" {
				t.Errorf("%s: example %q does not begin with steadfast", c.CommandPath(), line)
				continue
			}
			// Found and parsed by a fresh tree, but not run.
			found, rest, err := (&app{getenv: os.Getenv}).root().Find(words[1:])
			if err == nil {
				if err = found.ParseFlags(rest); err == nil && found.Args != nil {
					err = found.Args(found, found.Flags().Args())
				}
			}
			if err != nil {
				t.Errorf("%s: example %q: %v", c.CommandPath(), strings.TrimSpace(line), err)
			}
		}
	}
}

// shellWords splits a line at blanks outside of double quotes.
func shellWords(line string) []string {
	var words []string
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 1 {
			words = append(words, part)
		} else {
			words = append(words, strings.Fields(part)...)
		}
	}
	return words
}

// TestFaults: docs/FAULTS.md has a section and a row for every kind, with the
// codes of the table.
func TestFaults(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "FAULTS.md"))
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	for _, k := range fault.Kinds() {
		r := k.Of()
		if !strings.Contains(page, "\n## "+r.Anchor+"\n") {
			t.Errorf("%s: no section %q", k, r.Anchor)
		}
		row := fmt.Sprintf("| [%s](#%s) | %d | %s | %Xh/%02Xh/%02Xh |", r.Name, r.Anchor, r.Exit, r.API, r.Sense.Key, r.Sense.ASC, r.Sense.ASCQ)
		if !strings.Contains(page, "\n"+row+"\n") {
			t.Errorf("%s: no row %s", k, row)
		}
	}
	if rows := regexp.MustCompile(`(?m)^\| \[[a-z-]+\]\(#[a-z-]+\) \| \d+ \|`).FindAllString(page, -1); len(rows) != len(fault.Kinds()) {
		t.Errorf("%d rows of %d kinds: one is of no kind, or twice", len(rows), len(fault.Kinds()))
	}
}

// TestUnreachable: without a node every call says so, with its status.
func TestUnreachable(t *testing.T) {
	var errs strings.Builder
	a := &app{in: strings.NewReader(""), out: &strings.Builder{}, errs: &errs, getenv: func(string) string { return "" }}
	got := a.run(context.Background(), []string{"--socket", filepath.Join(t.TempDir(), "none.sock"), "pool", "list"})
	if got != fault.Unreachable.Of().Exit || !strings.Contains(errs.String(), "no node answers on") {
		t.Errorf("status %d: %s", got, errs.String())
	}
}
