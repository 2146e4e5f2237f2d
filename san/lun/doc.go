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
// It trusts the transport to call Begin in command order and to end each task
// it began exactly once, and the volume to do what block.Device says.
//
// Lock order: Server.mu, unit.persist, unit.mu. A volume is called without
// unit.mu. The transport's Events are called without any lock.
//
// Sources: SAM-5 (task sets, task management, unit attentions), SPC-4, SBC-3.
package lun
