package standalone

import "io"

// Console is a machine's console for who runs machines in another way: a log and other outputs
// that the guest waits for, and any number of readers, which it does not wait for.
// Its methods may be called by several goroutines.
type Console struct{ c *console }

// NewConsole returns a console. say tells people what happens. End is to follow.
func NewConsole(outputs []io.Writer, say func(format string, args ...any)) *Console {
	return &Console{newConsole(outputs, say)}
}

// Write implements io.Writer: it takes what the guest has written, and never fails.
func (c *Console) Write(p []byte) (int, error) { return c.c.Write(p) }

// Connect makes w what is typed to; nil: who types waits for the next life of the guest.
func (c *Console) Connect(w io.Writer) { c.c.connect(w) }

// Type types. It waits for a guest, and for it to take that, unless the console has ended.
func (c *Console) Type(p []byte) { c.c.typeIn(p) }

// Attach gives w what is written from now on, after the last lines of before. w is closed
// when it is too far behind, when it fails, and when the console ends. leave, which is
// optional, lets it have what there is, and returns when it was closed.
func (c *Console) Attach(w io.WriteCloser) (leave func()) { return c.c.attach(w).leave }

// End lets all who are attached have the rest, and go. It does not wait for them.
func (c *Console) End() { c.c.end() }
