// Package overview judges a site as its members tell of it: which of them die together, what
// does not work, and what would not survive the next failure. It does no I/O: what it knows is in
// the Site that it is given, so that whoever reads that can follow each of its sentences.
//
// It trusts what members say of themselves. What a member did not say is no reason for a risk of
// its own beside the one that it is silent.
package overview

import (
	"net/netip"
	"slices"
	"strings"

	steadfastv1 "steadfast/api/steadfast/v1"
)

// Boxes enters what dies with each member: as a person has called it, or else as
// what is on the same computer, or else by the computer's name. A member that does not say is in
// the box of those with its address.
func Boxes(s *steadfastv1.Site) {
	labels, computers := labelsOf(s), map[string][]string{}
	for _, m := range s.Members {
		id := m.GetStatus().GetComputer()
		if label := labels[m.Name]; label != "" && id != "" && !slices.Contains(computers[id], label) {
			computers[id] = append(computers[id], label)
		}
	}
	names := namesOf(s)
	for _, m := range s.Members {
		switch id := m.GetStatus().GetComputer(); {
		case labels[m.Name] != "":
			m.Box = labels[m.Name]
		case id != "" && len(computers[id]) == 1:
			m.Box = computers[id][0]
		case id != "":
			m.Box = names[id]
		}
	}
	for _, m := range s.Members {
		if m.Box == "" {
			m.Box = boxAt(s, m)
		}
	}
}

// labelsOf returns how persons have called members' boxes. What a host has said to the cluster
// counts also while it is silent; its machine-id is no such name.
func labelsOf(s *steadfastv1.Site) map[string]string {
	labels, ids := map[string]string{}, map[string]bool{}
	for _, m := range s.Members {
		ids[m.GetStatus().GetComputer()] = true
		if box := m.GetStatus().GetBox(); box != "" {
			labels[m.Name] = box
		}
	}
	for _, h := range s.Hosts {
		if labels[h.Name] == "" && h.Box != "" && !ids[h.Box] && !isMachineID(h.Box) {
			labels[h.Name] = h.Box
		}
	}
	return labels
}

func isMachineID(box string) bool {
	return len(box) == 32 && strings.Trim(box, "0123456789abcdef") == ""
}

// namesOf returns what computers are called: by the name that they have, or by a part of their
// identifier as well when another one has that name.
func namesOf(s *steadfastv1.Site) map[string]string {
	names, used := map[string]string{}, map[string]int{}
	for _, m := range s.Members {
		if st := m.Status; st.GetComputer() != "" && names[st.Computer] == "" {
			names[st.Computer] = st.Hostname
			used[st.Hostname]++
		}
	}
	for id, name := range names {
		part := id[:min(len(id), 8)]
		switch {
		case name == "":
			names[id] = part
		case used[name] > 1:
			names[id] = name + "/" + part
		}
	}
	return names
}

// boxAt returns the box of all members that have this one's address; empty: none has, or they
// are in several.
func boxAt(s *steadfastv1.Site, m *steadfastv1.SiteMember) (box string) {
	at := hostOf(m.Address)
	if !at.IsValid() || at.IsLoopback() {
		return ""
	}
	for _, other := range s.Members {
		if other.Status == nil || other.Box == "" || hostOf(other.Address) != at {
			continue
		}
		if box != "" && box != other.Box {
			return ""
		}
		box = other.Box
	}
	return box
}

func hostOf(address string) netip.Addr {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr()
}
