// Package freeport gives tests addresses that they have to know before they listen
// at them.
package freeport

import (
	"fmt"
	"net"
	"os"
)

// Address returns a TCP address of loopback that nobody listens at, and that no other
// process comes by in the meantime: each has a host address of its own out of
// 127.64.0.0/10. (At 127.0.0.1 a port that was let go may be any connection's before
// it is listened at.) Linux takes all of 127.0.0.0/8 as its own.
func Address() (string, error) {
	pid := os.Getpid() // at most 2^22
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 64+pid>>16&63, pid>>8&255, pid&255))
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
