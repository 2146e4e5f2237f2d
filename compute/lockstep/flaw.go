package lockstep

// Flaw is a rule that a test has a side break, to see that breaking it is noticed.
// The product never sets one.
type Flaw uint8

const (
	flawNone      Flaw = iota
	flawEarly          // an output leaves before it is acknowledged
	flawNoHorizon      // it needs the inputs before it, and not that there are no more
	flawLateHold       // outputs are held when the secondary has acknowledged the block, not when it is told
	flawNoAlone        // a silent secondary is left without a word to the lock
	flawLostLog        // what is not executed when the lock is won is forgotten
	flawLateAck        // records are acknowledged, and forgotten, while the lock is asked for
	flawMute           // streams that may not have left are not sent
	flawPaper          // a digest that differs is passed over
	flawHasty          // a guest that has ended is gone before the secondary has said to know it
	flawPatient        // a secondary that makes no progress is waited for
)

// Flaws by name, for the simulation.
func Flaws() map[string]Flaw {
	return map[string]Flaw{
		"output-early": flawEarly, "no-horizon": flawNoHorizon, "late-hold": flawLateHold, "no-alone": flawNoAlone, "lost-log": flawLostLog,
		"late-ack": flawLateAck, "mute": flawMute, "paper-over": flawPaper, "patient": flawPatient, "hasty": flawHasty,
	}
}
