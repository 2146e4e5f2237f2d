package sim

import (
	"maps"
	"math/rand/v2"
)

// profile is what a history tends to do.
type profile struct {
	name       string
	drives     int
	operations int
	crashes    bool
	volumeMax  int64 // bytes; volumes are smaller most of the time
	volumes    int   // at once
	weights    map[string]int
}

// weight says how often an action is drawn.
func (p *profile) weight(action string) int {
	if w, ok := p.weights[action]; ok {
		return w
	}
	return everyday[action]
}

// without takes actions out.
func (p *profile) without(actions ...string) {
	weights := maps.Clone(p.weights)
	if weights == nil {
		weights = map[string]int{}
	}
	for _, a := range actions {
		weights[a] = 0
	}
	p.weights = weights
}

// everyday has the weights that a profile does not change.
var everyday = map[string]int{
	"write": 60, "zero": 6, "trim": 8, "compare-and-write": 8, "copy": 6, "flush": 6, "read": 14,
	"create": 4, "change": 4, "delete": 1, "snapshot": 4, "delete snapshot": 2, "rollback": 1, "clone": 2,
	"attribute": 3, "thresholds": 1, "refused": 3,
	"maintain": 10, "drain": 2, "reopen": 2, "die": 2, "check": 2, "changed": 4, "scrub": 1,
	"add drive": 1, "evacuate": 1, "space": 1, "since": 10,
}

// profiles are the tendencies that histories are drawn from.
var profiles = []profile{
	{name: "mixed", volumeMax: 8 << 20, volumes: 5},
	{name: "small writes", volumeMax: 2 << 20, volumes: 3, weights: map[string]int{"write": 300, "create": 1, "space": 0}},
	{name: "snapshots", volumeMax: 4 << 20, volumes: 4, weights: map[string]int{"snapshot": 14, "delete snapshot": 10, "rollback": 5, "clone": 8, "delete": 5, "create": 8, "changed": 12}},
	{name: "copies", volumeMax: 4 << 20, volumes: 4, weights: map[string]int{"copy": 60, "clone": 4, "trim": 12}},
	{name: "filling", volumeMax: 96 << 20, volumes: 4, weights: map[string]int{"fill": 60, "write": 30, "snapshot": 1, "clone": 1, "trim": 10, "copy": 2, "delete": 2, "check": 1, "scrub": 0}},
	{name: "drives", volumeMax: 8 << 20, volumes: 3, weights: map[string]int{"add drive": 6, "evacuate": 10, "space": 4, "fill": 4}},
	{name: "catalog", volumeMax: 64 << 40, volumes: 12, weights: map[string]int{"create": 20, "change": 20, "delete": 8, "attribute": 20, "write": 20, "clone": 6}},
	{name: "bases", volumeMax: 8 << 20, volumes: 3, weights: map[string]int{"since": 60, "trim": 30, "zero": 20, "copy": 14, "snapshot": 6, "delete snapshot": 6, "rollback": 2}},
	{name: "idle", volumeMax: 4 << 20, volumes: 2, weights: map[string]int{"maintain": 80, "drain": 20, "reopen": 8, "die": 8}},
}

// drawProfile draws a history's profile.
func drawProfile(r *rand.Rand, family string) profile {
	p := profiles[r.IntN(len(profiles))]
	p.drives = 1 + r.IntN(3)
	p.operations = 150 + r.IntN(500)
	p.crashes = family == "crash"
	if p.name == "filling" || p.name == "drives" {
		p.drives = 1 + r.IntN(2)
	}
	return p
}
