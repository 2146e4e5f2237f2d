package node

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"steadfast/compute/vmm"
)

// TestMain is also the processes of machines: vmm starts this binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == vmm.Command {
		if err := vmm.Run(os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
