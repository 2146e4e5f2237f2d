// Package remote loads a disk and judges it (test/verify) in another machine,
// where the disk is: what is measured is by that machine's clock.
//
//	Serve  in the guest: has the disk, the judge and the load
//	Load   on the host: asks, one line of JSON, and is answered by one
//
// A line is a serial port here: slow, in order, without a start or an end of its
// own. So the guest begins with a greeting, nothing is asked before the last
// answer is there, and an exchange that was broken off is the last.
//
// The host compares the two clocks over each window, for an emulated machine's may
// stand still. It trusts what the guest says beyond that.
//
// # Locks
//
// Load.exchange is held over an exchange, Load.mu over what answers told.
package remote

import (
	"time"

	"steadfast/test/verify"
)

// A Lane is a stream of requests.
type Lane struct {
	Depth   int `json:"depth"`
	RateMax int `json:"rate_max"` // requests a second; 0: no bound
}

// The verbs of a request.
const (
	doFill     = "fill"      // write all, then judge it
	doStart    = "start"     // start the lanes
	doCut      = "cut"       // end a window
	doSettle   = "settle"    // wait for what is under way
	doReadBack = "read-back" // read all
	doStop     = "stop"      // end the load
)

// request is what the host asks.
type request struct {
	Do       string        `json:"do"`
	Disk     uint32        `json:"disk,omitempty"`     // fill: its number in stamps
	Size     int64         `json:"size,omitempty"`     // fill: bytes to judge, from the start
	Lanes    []Lane        `json:"lanes,omitempty"`    // start
	Patience time.Duration `json:"patience,omitempty"` // settle, in ns
}

// answer is what the guest says: first without being asked.
type answer struct {
	Error string `json:"error,omitempty"`
	// Size is the disk's, in bytes; in the greeting.
	Size    int64           `json:"size,omitempty"`
	Windows []verify.Window `json:"windows,omitempty"` // of a cut, by lane
	// Clock is the guest's, since it began to serve, in ns: of a cut.
	Clock  time.Duration `json:"clock,omitempty"`
	Counts verify.Counts `json:"counts"`
	// Findings are those that no answer has had yet.
	Findings []verify.Finding `json:"findings,omitempty"`
}
