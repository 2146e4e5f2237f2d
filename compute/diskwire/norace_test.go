//go:build !race

package diskwire

const racing = false
