package testbed

import (
	"fmt"
	"os"
	"path/filepath"
)

// Binary is the path of the program under test: what make built, or what
// STEADFAST_BIN names.
func Binary() (string, error) {
	bin := os.Getenv("STEADFAST_BIN")
	if bin == "" {
		bin = binary
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(bin); err != nil {
		return "", fmt.Errorf("no node to start (make build): %w", err)
	}
	return bin, nil
}
