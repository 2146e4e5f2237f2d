package storetest

import (
	"slices"
	"testing"

	"steadfast/block"
	"steadfast/san/store"
)

// history applies operations as answered, the durable ones first.
func history(durable int, ops ...Op) *Model {
	m := NewModel()
	for i, op := range ops {
		m.Answered(op, i < durable)
	}
	return m
}

func volume(name string) CreateVolume {
	return CreateVolume{Spec: store.VolumeSpec{Name: name, Size: 1 << 20}}
}

// write makes a write of n sectors, the first stamped s.
func write(off int64, n int, s Stamp) Write {
	stamps := make([]Stamp, n)
	for i := range stamps {
		stamps[i] = s + Stamp(i)
	}
	return Write{Volume: "v", Offset: off, Stamps: stamps, Verb: "write"}
}

// after returns the state after operations, as it would be read.
func after(ops ...Op) *State { return history(len(ops), ops...).Now() }

// TestRecover lists what may be there after a crash, and what may not.
func TestRecover(t *testing.T) {
	const k = block.BlockSize
	first, second, third := write(0, 8, 100), write(k, 16, 200), write(0, 8, 300)
	torn := write(k, 8, 200) // of second, only the first block
	for _, tc := range []struct {
		name     string
		durable  int
		open     Op // in flight at the crash
		got      *State
		lost, ok bool
	}{
		{"all is there", 4, nil, after(volume("v"), first, second, third), true, true},
		{"a durable write is gone", 4, nil, after(volume("v"), first, second), true, false},
		{"a cached write is gone, after a power loss", 3, nil, after(volume("v"), first, second), true, true},
		{"a cached write is gone, after a kill", 3, nil, after(volume("v"), first, second), false, false},
		{"a cached write is there in part", 2, nil, after(volume("v"), first, torn), true, true},
		{"a later one without an earlier one", 2, nil, after(volume("v"), first, third), true, false},
		{"one in flight is there", 4, write(2*k, 8, 400), after(volume("v"), first, second, third, write(2*k, 8, 400)), false, true},
		{"one in flight is not there", 4, write(2*k, 8, 400), after(volume("v"), first, second, third), false, true},
		{"half a block of one in flight is there", 4, write(2*k, 8, 400), after(volume("v"), first, second, third, write(2*k, 4, 400)), false, false},
		{"the volume is gone", 4, nil, NewState(), true, false},
		{"a snapshot in flight is there", 4, CreateSnapshot{"v", "s"}, after(volume("v"), first, second, third, CreateSnapshot{"v", "s"}), false, true},
		{"a snapshot of another moment", 4, CreateSnapshot{"v", "s"}, after(volume("v"), first, second, CreateSnapshot{"v", "s"}, third), false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := history(tc.durable, volume("v"), first, second, third)
			if tc.open != nil {
				m.Unanswered(tc.open)
			}
			err := m.Recover(tc.got, tc.lost)
			if (err == nil) != tc.ok {
				t.Fatalf("%v", err)
			}
			if err == nil && m.Compare(tc.got) != nil {
				t.Error("what was recovered was not taken over")
			}
		})
	}
}

// TestKillThenPower says that what a kill left in the caches can still be lost
// with the power, until something durable follows.
func TestKillThenPower(t *testing.T) {
	m := history(1, volume("v"), write(0, 8, 1))
	if err := m.Recover(after(volume("v"), write(0, 8, 1)), false); err != nil {
		t.Fatal(err)
	}
	if err := m.Recover(after(volume("v")), true); err != nil {
		t.Error(err)
	}
}

// TestOperations follows a few operations by hand.
func TestOperations(t *testing.T) {
	const k = block.BlockSize
	s := after(
		volume("v"),
		write(0, 16, 10),
		CreateSnapshot{"v", "s"},
		write(k+512, 2, 50),
		Clear{Volume: "v", Offset: 512, Length: k},
		Clone{Volume: "v", Snapshot: "s", Name: "c"},
		Copy{Volume: "c", Offset: 4 * k, From: "v", FromOffset: 0, Length: k},
	)
	for _, tc := range []struct {
		name string
		got  []Stamp
		want []Stamp
	}{
		{"parts of two blocks are cleared", s.Volumes["v"].Read(0, 2*k), []Stamp{10, 0, 0, 0, 0, 0, 0, 0, 0, 50, 51, 21, 22, 23, 24, 25}},
		{"the clone has what the snapshot has", s.Volumes["c"].Read(0, k), []Stamp{10, 11, 12, 13, 14, 15, 16, 17}},
		{"the copy has what the volume has", s.Volumes["c"].Read(4*k, k), []Stamp{10, 0, 0, 0, 0, 0, 0, 0}},
	} {
		if !slices.Equal(tc.got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, tc.got, tc.want)
		}
	}
	if n := s.Stored(); n != 4 {
		t.Errorf("%d blocks are stored, want 4: two of the snapshot, two of the volume, one of which the clone shares", n)
	}
	if own := s.Own(s.Volumes["v"].Content); own != 1 {
		t.Errorf("%d blocks are the volume's own, want 1", own)
	}
}

// TestJudgeChanged demands what differs and allows what was written.
func TestJudgeChanged(t *testing.T) {
	const k = block.BlockSize
	s := after(volume("v"), write(0, 8, 10), CreateSnapshot{"v", "a"}, write(k, 8, 20), write(2*k, 8, 0), CreateSnapshot{"v", "b"})
	v := s.Volumes["v"]
	old := v.Snapshot("a").History
	old.Line = append(old.Line, v.Snapshot("a").Key)
	for name, tc := range map[string]struct {
		said map[int64]bool
		ok   bool
	}{
		"what differs":        {map[int64]bool{1: true, 2: true}, true},
		"too little":          {map[int64]bool{2: true}, false},
		"an untouched block":  {map[int64]bool{0: true, 1: true, 2: true}, false},
		"nothing it must say": {map[int64]bool{}, false},
	} {
		if err := judgeChanged(old, v.History, tc.said); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDecode refuses sectors nobody wrote.
func TestDecode(t *testing.T) {
	p := Bytes([]Stamp{0, 7, 9})
	if got, err := Decode(p); err != nil || !slices.Equal(got, []Stamp{0, 7, 9}) {
		t.Fatalf("%v %v", got, err)
	}
	p[block.SectorSize+100] ^= 1
	if _, err := Decode(p); err == nil {
		t.Error("a flipped bit was taken")
	}
}

// TestJudgeSince demands what was changed, also if it reads as it did, and allows
// what something was done to; and after a crash asks for what comes after it.
func TestJudgeSince(t *testing.T) {
	const k = block.BlockSize
	m := history(2, volume("v"), write(0, 32, 10))
	m.Remember("v", 7, nil)
	for _, op := range []Op{write(k, 8, 20), write(k, 8, 18), write(2*k, 8, 26), Clear{Volume: "v", Offset: 3 * k, Length: k}} {
		m.Answered(op, false)
	}
	for name, tc := range map[string]struct {
		said []span
		ok   bool
	}{
		"what was changed":          {[]span{{1, 2}, {3, 4}}, true},
		"and what was written over": {[]span{{1, 4}}, true},
		"not what is the same":      {[]span{{3, 4}}, false},
		"not the trim":              {[]span{{1, 2}}, false},
		"an untouched block":        {[]span{{0, 4}}, false},
		"everything":                {[]span{{0, 256}}, false},
		"nothing":                   {nil, false},
	} {
		if err := m.Now().Volumes["v"].judgeSince(m.moments[0], tc.said); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.Remember("v", 9, nil)
	if err := m.Recover(after(volume("v"), write(0, 32, 10)), true); err != nil {
		t.Fatal(err)
	}
	m.Answered(write(2*k, 8, 50), false)
	for _, mo := range m.moments {
		for _, said := range [][]span{{{2, 3}}, nil} {
			if err := m.Now().Volumes["v"].judgeSince(mo, said); (err == nil) != (len(said) == 1) {
				t.Errorf("since %d, after a crash, %v: %v", mo.Position, said, err)
			}
		}
	}
}
