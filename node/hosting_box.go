package node

import (
	"os"
	"strings"

	"steadfast/node/config"
)

// machineID is a file with what Linux calls this machine by. machine-id(5).
const machineID = "/etc/machine-id"

// hostBox names what this host shares with whatever dies with it: as the configuration says, or
// this machine. Empty: it is not known.
func hostBox(h config.Host) string {
	if h.Box != "" {
		return h.Box
	}
	text, err := os.ReadFile(machineID)
	if err != nil {
		return "" // a person has to say
	}
	return boxIn(string(text))
}

// boxIn is the name of a box in a machine-id; empty: there is none.
func boxIn(machineID string) string {
	id := strings.TrimSpace(machineID)
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" || strings.Trim(id, "0") == "" {
		return ""
	}
	return id
}

// privateNetworks are the networks that live in this host's process.
func privateNetworks(all []config.Network) (list []string) {
	for _, n := range all {
		if n.User {
			list = append(list, n.Name)
		}
	}
	return list
}
