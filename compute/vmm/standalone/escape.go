package standalone

// EscapeKey begins a command at a terminal that is a console: Ctrl-A.
const EscapeKey = 1

// EscapeHelp says what the commands are.
const EscapeHelp = "Ctrl-A x: power button, and once more: end it at once; Ctrl-A d: leave the console; Ctrl-A Ctrl-A: Ctrl-A itself"

// Key is a command that was typed after EscapeKey.
type Key byte

// Commands.
const (
	KeyPower  Key = 'x'
	KeyDetach Key = 'd'
	KeyHelp   Key = '?'
)

// Escape finds commands in what is typed. The zero value is ready.
type Escape struct{ begun bool }

// Feed takes what was typed, and returns what of it is for the guest, up to the first
// command; that command, or 0; and what is left, to be fed again.
func (e *Escape) Feed(p []byte) (guest []byte, key Key, rest []byte) {
	for i, b := range p {
		if !e.begun {
			if e.begun = b == EscapeKey; !e.begun {
				guest = append(guest, b)
			}
			continue
		}
		e.begun = false
		switch k := Key(b | 0x20); {
		case b == EscapeKey:
			guest = append(guest, b)
		case k == KeyPower || k == KeyDetach:
			return guest, k, p[i+1:]
		default:
			return guest, KeyHelp, p[i+1:]
		}
	}
	return guest, 0, nil
}
