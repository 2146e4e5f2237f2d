// Package lun is the device server: the logical units behind a target. It
// takes SCSI tasks from a transport (package target) through scsi.Port, keeps
// them in task sets, and performs them on volumes.
//
// A Server holds units, one for each volume, and views: what an initiator sees
// through a target, under which number. One unit may be in many views;
// reservations, mode pages and the task set are the unit's, unit attentions
// are those of each I_T_L nexus.
//
//	       Begin                  Execute                    done
//	task ---------> queued ------------------> running ---------------> gone
//	                  |     (ORDERED and HEAD      |  aborted: no answer,
//	                  |      OF QUEUE may wait)    |  and whoever aborted it
//	                  | abort                      |  waits for this point
//	                  v                            v
//	                dead: can never start         gone
//
// No ghosts. An initiator that aborts a task, resets a unit or preempts
// another host takes the answer to mean that no write of the ended tasks lands
// afterwards, and writes over the place, or lets another host do so. So each
// of these marks the queued tasks dead, in the same step that would let them
// start, and answers when the running ones have returned from the volume.
//
// Takeover. A volume that is a StateKeeper keeps, beside its content, what
// initiators can tell of its unit. Every command that changes reservations,
// registrations or mode pages saves it before the change is in force and before
// the answer: a node that dies before the save leaves the old state and no
// answer, one that dies after it the new state, which the initiator finds when
// it asks again. The node that serves the unit next (AddVolume, or
// ReplaceVolume where initiators see it there already) puts it in force, and
// tells each nexus of its loss, which is what a takeover is to initiators: tasks
// and what RESERVE(6) reserved are gone, the rest is as it was. Attentions that
// a volume raises by itself (Watch) travel with the next save; a capacity that
// has changed since is found out. Nothing in the state names a node: a nexus is
// an initiator port, a target and a relative target port.
//
// The state is kept, and put in force again, without APTPL and after a loss of
// power of all nodes too, when it had become stable: SPC-4, 5.13.5, has
// reservations without APTPL end there. To keep a host fenced is the safe
// mistake of the two, and nodes that come back cannot tell which of them had
// power all the time.
//
// Standby. A unit that another node serves (Standby) is seen here through ports in
// the state standby. What changes the unit is passed on to that node (PassOn,
// Perform), and what its nexuses here are to be told comes back (Teller, Hear):
// passed.go has the rules.
//
// It trusts the transport to call Begin in command order and to end each task
// it began exactly once, the volume to do what block.Device says, and who calls
// Perform to speak for the ports of its own node only.
//
// Lock order: Server.mu, unit.persist, unit.mu. A volume is called without
// unit.mu. The transport's Events are called without any lock.
//
// ReplaceVolume changes a unit's volume under running tasks: those go on with
// the one they have, which answers for itself.
//
// Sources: SAM-5 (task sets, task management, unit attentions), SPC-4, SBC-3.
package lun
