package bridge

import "steadfast/compute/virtio"

// Large tells whether a frame is longer than an ordinary one, so that who takes only those is
// to be given what Cut makes of it.
func Large(frame []byte, mtu int) bool { return len(frame) > ordinary(mtu) }

// Cut calls do with the frames of at most mtu that one makes of a large segment, each
// good until do returns. Of a frame that is no such segment it makes none: false.
func Cut(frame []byte, mtu int, do func(frame []byte)) bool { return virtio.CutTCP4(frame, mtu, do) }
