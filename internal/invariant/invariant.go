// Package invariant ends the process when the program is wrong.
//
// A broken invariant means that memory no longer says what the code believes;
// going on would write that belief to disk or wire. The peer takes over
// instead.
package invariant

import "fmt"

// Check panics with the formatted text unless ok. Conditions must be cheap:
// Check is on in every build.
func Check(ok bool, format string, args ...any) {
	if !ok {
		panic("invariant broken: " + fmt.Sprintf(format, args...))
	}
}
