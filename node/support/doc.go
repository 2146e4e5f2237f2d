// Package support makes the files that somebody needs who is asked for help with a member: what it
// is, how it is configured, what it runs on, what it has logged. It names each thing that is taken,
// and copies no file and no table whole that a person could have put a secret into: of the
// configuration those keys that are known to hold none, of the kernel's settings those listed here,
// of processes nothing but this one, and no command line of anything.
//
// A Redactor is the second line of defense, for what the first cannot see: a secret that somebody
// has typed where a name belongs. It knows the member's secrets and takes them out of every file.
package support

// File is one file of a bundle. Its name has slashes.
type File struct {
	Name string
	Data []byte
}
