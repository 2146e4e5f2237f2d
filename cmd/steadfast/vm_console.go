package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	steadfastv1 "steadfast/api/steadfast/v1"
	"steadfast/compute/vmm/standalone"
	"steadfast/fault"
)

// vmEscapeHelp says what the commands of a console are.
const vmEscapeHelp = "Ctrl-A x: power button, once more: end by force; Ctrl-A d: leave the console; Ctrl-A Ctrl-A: Ctrl-A itself"

// Of consoles.
const (
	// consoleRetry is how often a machine is looked for that is to run and has no console yet.
	consoleRetry = 500 * time.Millisecond
	// typedMax bounds what is typed and not sent yet, in bytes: more waits in the terminal.
	typedMax = 4096
)

func (a *app) vmConsole() *cobra.Command {
	c := &cobra.Command{
		Use: "console VM", Short: "Attach to a virtual machine's console", Example: "  steadfast vm console db1", Args: exactly(1),
		Long: `Attach to the console of a virtual machine, wherever it runs, until it stops or standard
input ends. One that is to run is waited for, and one that is started again on another
host is attached to there. Several may be attached; one that does not read is dropped.

` + vmEscapeHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			return interruptible(cmd.Context(), func(ctx context.Context) error { return a.consoleVM(ctx, args[0]) })
		},
	}
	a.complete(c, "", a.vmNames)
	return c
}

// consoleVM makes this terminal, or standard input and output, a machine's console.
func (a *app) consoleVM(ctx context.Context, name string) (err error) {
	if _, err := a.getVM(ctx, name); err != nil {
		return err
	}
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	t := &vmTerminal{a: a, name: name, leave: leave}
	defer func() {
		if t.restore != nil {
			t.restore()
			a.note("\n")
		}
	}()
	said := ""
	for {
		err := t.watch(ctx)
		if ctx.Err() != nil {
			return nil // left
		}
		m, gone := a.getVM(ctx, name)
		switch {
		case ctx.Err() != nil:
			return nil
		case gone != nil:
			return errors.Join(err, gone)
		case m.State != "running" && m.State != "waiting" && m.State != "stopping":
			if !t.begun {
				return fault.New(fault.Busy, "the machine %q does not run (%s); start it: \"steadfast vm start %s\"", name, firstOf(m.Detail, m.State), name)
			}
			a.remark("machine %q does not run any more: %s", name, firstOf(m.Detail, m.State))
			return nil
		}
		why := "machine " + name + " is " + m.State + inBrackets(firstOf(m.Detail, m.Status.GetStep()))
		if err != nil && !fault.Is(err, fault.Busy) && !fault.Is(err, fault.NotFound) {
			why = err.Error()
		}
		if why != said {
			a.remark("%s", why)
			said = why
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(consoleRetry):
		}
	}
}

// vmTerminal is what a machine's console is shown on.
type vmTerminal struct {
	a       *app
	name    string
	leave   func()
	begun   bool   // what is typed is taken in
	pressed bool   // the power button, by this terminal. Of read alone
	restore func() // nil: this is no terminal, or none that was changed
}

// watch shows the console until it ends.
func (t *vmTerminal) watch(ctx context.Context) error {
	stream, err := t.a.vms().WatchConsole(ctx, &steadfastv1.WatchConsoleRequest{Machine: t.name})
	if err != nil {
		return t.a.answer(err)
	}
	defer stream.Close()
	again := t.begun
	for stream.Receive() {
		if err := t.begin(ctx); err != nil {
			t.leave()
			return err
		}
		if len(stream.Msg().Data) == 0 {
			continue // the machine's host answers
		}
		if again {
			t.a.remark("attached to machine %q again", t.name)
			again = false
		}
		if _, err := t.a.out.Write(stream.Msg().Data); err != nil {
			t.leave()
			return err
		}
	}
	return t.a.answer(stream.Err())
}

// begin begins to take in what is typed.
func (t *vmTerminal) begin(ctx context.Context) (err error) {
	if t.begun {
		return nil
	}
	t.begun = true
	terminal := isTerminal(t.a.in)
	if terminal {
		if t.restore, err = rawTerminal(t.a.in.(*os.File)); err != nil {
			return err
		}
		t.a.note("(%s)\r\n", vmEscapeHelp)
	}
	typed := make(chan []byte)
	go t.read(ctx, terminal, typed)
	go t.send(ctx, typed)
	return nil
}

// read reads what is typed, until that ends.
func (t *vmTerminal) read(ctx context.Context, terminal bool, typed chan<- []byte) {
	defer close(typed)
	var e standalone.Escape
	for {
		b := make([]byte, typedMax)
		n, err := t.a.in.Read(b)
		for p := b[:n]; len(p) > 0; {
			text, key, rest := p, standalone.Key(0), []byte(nil)
			if terminal {
				text, key, rest = e.Feed(p)
			}
			if len(text) > 0 {
				select {
				case typed <- text:
				case <-ctx.Done():
					return
				}
			}
			p = rest
			t.do(ctx, key)
		}
		if err != nil {
			return
		}
	}
}

// do does a command.
func (t *vmTerminal) do(ctx context.Context, key standalone.Key) {
	switch key {
	case standalone.KeyPower:
		req := &steadfastv1.StopMachineRequest{Name: t.name, Force: t.pressed}
		t.pressed = true
		go func() {
			if _, err := t.a.vms().StopMachine(ctx, req); err != nil && ctx.Err() == nil {
				t.a.remark("%v", err)
			}
		}()
	case standalone.KeyDetach:
		t.leave()
	case standalone.KeyHelp:
		t.a.note("\r\n(%s)\r\n", vmEscapeHelp)
	}
}

// send sends what is typed, in order, and leaves when that ends.
func (t *vmTerminal) send(ctx context.Context, typed <-chan []byte) {
	for p := range typed {
		_, err := t.a.vms().TypeConsole(ctx, &steadfastv1.TypeConsoleRequest{Machine: t.name, Data: p})
		if err != nil && ctx.Err() == nil {
			t.a.remark("this was not typed: %v", err)
		}
	}
	t.leave()
}
