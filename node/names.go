package node

import (
	"strings"

	"steadfast/fault"
)

// checkName returns fault.Invalid for a name that no pool, group, volume or
// snapshot may have; the rule is store.VolumeSpec's. what is the noun for the
// message.
func checkName(what, name string) error {
	rest := strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.")
	if name != "" && len(name) <= 63 && rest == "" && name[0] != '-' && name[0] != '.' {
		return nil
	}
	return fault.New(fault.Invalid, "%s name %q is not 1 to 63 of a-z, 0-9, '-' and '.', beginning with a letter or digit", what, name)
}

// unknown returns fault.NotFound for a name, with the nearest of the names
// there are and the command that lists them.
func unknown(what, name, list string, names []string) error {
	if n := nearest(name, names); n != "" {
		return fault.New(fault.NotFound, "%s %q does not exist; did you mean %q? See \"steadfast %s\"", what, name, n, list)
	}
	return fault.New(fault.NotFound, "%s %q does not exist; see \"steadfast %s\"", what, name, list)
}

// nearest returns the name that a mistyped one most likely meant, or "". A
// third of the letters may be wrong.
func nearest(name string, names []string) string {
	best, bestDistance := "", len(name)/3+1
	for _, n := range names {
		if d := distance(name, n); d < bestDistance || d == bestDistance && best == "" {
			best, bestDistance = n, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete, replace or swap with
// their neighbour to make b of a (optimal string alignment), at most 64 of
// each compared.
func distance(a, b string) int {
	a, b = a[max(0, len(a)-64):], b[max(0, len(b)-64):]
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
