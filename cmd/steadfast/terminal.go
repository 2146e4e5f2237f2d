package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"steadfast/fault"
)

// secretBytesMax bounds what is read as a secret: more is a wrong file.
const secretBytesMax = 1024

// isTerminal tells whether f is one.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// confirm asks before something is lost. Without a terminal to ask on, --yes
// must have been said.
func (a *app) confirm(yes bool, format string, args ...any) error {
	if yes {
		return nil
	}
	question := fmt.Sprintf(format, args...)
	if !isTerminal(a.in) {
		return fault.New(fault.Invalid, "%s Say --yes", question)
	}
	a.note("%s Type yes: ", question)
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return fault.New(fault.Canceled, "nothing was changed")
	}
	return nil
}

// secret reads a secret from a file, from standard input for "-", or typed
// without echo for no file. Line ends are not part of it.
func (a *app) secret(file, flag, prompt string) ([]byte, error) {
	switch {
	case file == "-":
		return trimSecret(io.ReadAll(io.LimitReader(a.in, secretBytesMax+1)))
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return nil, fault.Wrap(fault.NotFound, err, "cannot read the secret")
		}
		defer f.Close()
		return trimSecret(io.ReadAll(io.LimitReader(f, secretBytesMax+1)))
	case !isTerminal(a.in):
		return nil, fault.New(fault.Invalid, "no secret; name a file that holds it with %s, or \"-\" for standard input", flag)
	}
	return a.typedSecret(prompt)
}

// typedSecret reads a line from the terminal with its echo off.
func (a *app) typedSecret(prompt string) ([]byte, error) {
	f := a.in.(*os.File)
	old, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "terminal")
	}
	quiet := *old
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &quiet); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "terminal")
	}
	a.note("%s", prompt)
	line, readErr := readLine(f)
	err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, old)
	a.note("\n")
	return trimSecret(line, errors.Join(readErr, err))
}

// readLine reads to a line's end and not beyond, so that what follows is left
// for the next question.
func readLine(r io.Reader) ([]byte, error) {
	var line []byte
	for b := make([]byte, 1); len(line) <= secretBytesMax; {
		n, err := r.Read(b)
		if n == 1 && b[0] == '\n' || errors.Is(err, io.EOF) {
			return line, nil
		}
		if err != nil {
			return nil, err
		}
		line = append(line, b[:n]...)
	}
	return line, nil
}

// trimSecret takes line ends off a secret that was read.
func trimSecret(b []byte, err error) ([]byte, error) {
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "cannot read the secret")
	}
	if len(b) > secretBytesMax {
		return nil, fault.New(fault.Invalid, "the secret has more than %d bytes; is it the right file?", secretBytesMax)
	}
	return bytes.TrimRight(b, "\r\n"), nil
}
