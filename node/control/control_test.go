package control_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"steadfast/fault"
	"steadfast/node/control"
)

func open(t *testing.T, dir string) *control.State {
	t.Helper()
	s, err := control.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestReopen: everything is there again after a reopening, the node's name too.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	id := s.NodeID()
	must(t, s.PutPool(control.Pool{ID: "0a", Name: "p", Paths: []string{"/d1", "/d2"}}))
	must(t, s.PutTarget(control.Target{Name: "iqn.2026-11.io.example:t", Alias: "x", Groups: []uint16{2}}))
	must(t, s.PutInitiator(control.Initiator{Name: "iqn.2026-11.io.example:i", ChapUser: "u"},
		control.SecretChange{Set: true, Secret: control.Secret("a secret of 12+")}, control.SecretChange{}))
	m := control.Mapping{Target: "iqn.2026-11.io.example:t", Initiator: "iqn.2026-11.io.example:i", LUN: 3, Volume: "0b", VolumeName: "v"}
	must(t, s.PutMappings(m))
	before := []any{s.Pools(), s.Targets(), s.Initiators(), s.Mappings(nil)}
	must(t, s.Close())

	s = open(t, dir)
	defer s.Close()
	if s.NodeID() != id || len(id) != 16 {
		t.Errorf("node id was %q and is %q", id, s.NodeID())
	}
	if d := cmp.Diff(before, []any{s.Pools(), s.Targets(), s.Initiators(), s.Mappings(nil)}); d != "" {
		t.Error(d)
	}
	i, _ := s.Initiator("iqn.2026-11.io.example:i")
	chap, mutual, err := s.Secrets(i)
	if err != nil || string(chap) != "a secret of 12+" || mutual != nil {
		t.Errorf("secrets: %q, %q, %v", []byte(chap), []byte(mutual), err)
	}
}

// TestSecretFiles: mode 0600, replaced and deleted with what refers to them,
// orphans swept, and nothing in the state's own file.
func TestSecretFiles(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	files := func() []string {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(dir, "secrets"))
		must(t, err)
		var texts []string
		for _, e := range entries {
			info, err := e.Info()
			must(t, err)
			if info.Mode() != 0o600 {
				t.Errorf("%s has mode %v", e.Name(), info.Mode())
			}
			b, err := os.ReadFile(filepath.Join(dir, "secrets", e.Name()))
			must(t, err)
			texts = append(texts, string(b))
		}
		return texts
	}
	i := control.Initiator{Name: "iqn.2026-11.io.example:i", ChapUser: "u", MutualUser: "m"}
	set := func(text string) control.SecretChange {
		return control.SecretChange{Set: true, Secret: control.Secret(text)}
	}
	must(t, s.PutInitiator(i, set("first-secret-1"), set("mutual-secret-1")))
	must(t, s.PutInitiator(i, set("second-secret-2"), control.SecretChange{}))
	if got := files(); len(got) != 2 || strings.Join(got, " ") == "" || strings.Contains(strings.Join(got, " "), "first-secret") {
		t.Errorf("after a change: %q", got)
	}
	must(t, s.PutInitiator(i, control.SecretChange{}, set("")))
	if got := files(); cmp.Diff(got, []string{"second-secret-2"}) != "" {
		t.Errorf("after a removal: %q", got)
	}
	must(t, os.WriteFile(filepath.Join(dir, "secrets", "orphan"), []byte("left by a crash"), 0o600))
	must(t, s.Close())
	db, err := os.ReadFile(filepath.Join(dir, "control.db"))
	must(t, err)
	if strings.Contains(string(db), "second-secret-2") {
		t.Error("the state's file holds a secret")
	}
	s = open(t, dir)
	if got := files(); len(got) != 1 {
		t.Errorf("after a sweep: %q", got)
	}
	must(t, s.DeleteInitiator(i.Name))
	if got := files(); len(got) != 0 {
		t.Errorf("after a deletion: %q", got)
	}
	must(t, s.Close())
}

// TestSecretPrintsNothing: no usual way of printing tells it.
func TestSecretPrintsNothing(t *testing.T) {
	s := control.Secret("do-not-print-me")
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s, "change", control.SecretChange{Secret: s})
	j, err := json.Marshal(control.SecretChange{Secret: s})
	must(t, err)
	all := fmt.Sprintf("%v %s %+v %#v %s %s", s, s, control.SecretChange{Secret: s}, s, j, log.String())
	if strings.Contains(all, "do-not") || strings.Contains(all, "ZG8t") {
		t.Error(all)
	}
}

func TestViewAndConflict(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	for name, group := range map[string]string{"iqn.2026-11.io.example:a": "esx", "iqn.2026-11.io.example:b": "esx", "iqn.2026-11.io.example:c": ""} {
		must(t, s.PutInitiator(control.Initiator{Name: name, Group: group}, control.SecretChange{}, control.SecretChange{}))
	}
	must(t, s.PutMappings(
		control.Mapping{Target: "t", Initiator: "esx", LUN: 1, Volume: "v1"},
		control.Mapping{Target: "t", Initiator: "iqn.2026-11.io.example:a", LUN: 2, Volume: "v2"},
		control.Mapping{Target: "other", Initiator: "esx", LUN: 1, Volume: "v3"},
		control.Mapping{Target: "t", Initiator: "nobody", LUN: 1, Volume: "v4"},
	))
	got := map[string][]string{}
	for name, seen := range s.View("t") {
		if err := control.Conflict(name, seen); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, m := range seen {
			got[name] = append(got[name], fmt.Sprintf("%d=%s", m.LUN, m.Volume))
		}
	}
	want := map[string][]string{"iqn.2026-11.io.example:a": {"1=v1", "2=v2"}, "iqn.2026-11.io.example:b": {"1=v1"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, seen := range [][]control.Mapping{
		{{LUN: 1, Volume: "v1"}, {LUN: 1, Volume: "v2"}},
		{{LUN: 1, Volume: "v1"}, {LUN: 2, Volume: "v1"}},
	} {
		if err := control.Conflict("a", seen); !fault.Is(err, fault.Exists) {
			t.Errorf("%v: %v", seen, err)
		}
	}
}

// TestDamage: a file that is no control state is refused, not overwritten.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "control.db")
	must(t, os.WriteFile(path, []byte(strings.Repeat("not a database", 1000)), 0o600))
	if _, err := control.Open(dir); !fault.Is(err, fault.Corrupt) || !strings.Contains(err.Error(), path) {
		t.Errorf("damaged file: %v", err)
	}
}
