package dm

import (
	"reflect"
	"testing"
)

var statuses = []struct {
	typ, text string
	want      Status
}{
	{"snapshot", "2056/8192 16", SnapshotStatus{Used: 2056, Total: 8192, Metadata: 16}},
	{"snapshot", "Invalid", SnapshotStatus{Invalid: true}},
	{"snapshot", "Overflow", SnapshotStatus{Overflow: true}},
	{"snapshot", "Unknown", SnapshotStatus{NoUsage: true}},
	{"snapshot-merge", "16/409600 16", SnapshotStatus{Used: 16, Total: 409600, Metadata: 16}},
	{"snapshot-merge", "Merge failed", SnapshotStatus{MergeFailed: true}},
	{"mirror", "2 98:0 98:16 7/150 1 AD 1 core", MirrorStatus{
		Legs:   []MirrorLeg{{Device{98, 0}, LegAlive}, {Device{98, 16}, LegWriteError}},
		InSync: 7, Total: 150, Log: "core"}},
	{"mirror", "1 98:0 1/1 1 A 3 disk 254:1 A", MirrorStatus{
		Legs: []MirrorLeg{{Device{98, 0}, LegAlive}}, InSync: 1, Total: 1, Log: "disk 254:1 A"}},
	{"linear", "", RawStatus("")},
	{"striped", "2 8:0 8:16 1 AA", RawStatus("2 8:0 8:16 1 AA")},
}

// TestParseStatus_roundTrip: each status parses to its value and prints as the
// kernel printed it.
func TestParseStatus_roundTrip(t *testing.T) {
	for _, c := range statuses {
		got, err := ParseStatus(c.typ, c.text)
		if err != nil {
			t.Errorf("%s %s: %v", c.typ, c.text, err)
			continue
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s %s: parsed as %#v", c.typ, c.text, got)
		}
		if got.String() != c.text {
			t.Errorf("%s %s: printed as %s", c.typ, c.text, got)
		}
	}
}

// TestParseStatus_malformed: malformed statuses are errors.
func TestParseStatus_malformed(t *testing.T) {
	for _, c := range [][2]string{
		{"snapshot", ""},
		{"snapshot", "16"},
		{"snapshot", "16/32"},
		{"snapshot", "16 32 16"},
		{"snapshot", "16/32/48 16"},
		{"snapshot", "16/32 16 16"},
		{"snapshot", "Invalid 1"},
		{"mirror", "2 98:0 98:16 7/150 1 A 1 core"},
		{"mirror", "2 98:0 98:16 7/150 2 AA AA 1 core"},
		{"mirror", "2 98:0 98:16 7/150"},
		{"mirror", "3 98:0 98:16 7/150 1 AAA 1 core"},
		{"mirror", "2 98:0 98:16 7/150 1 AA 2 core"},
		{"mirror", "999999999999 98:0"},
	} {
		if got, err := ParseStatus(c[0], c[1]); err == nil {
			t.Errorf("%s %q was parsed as %#v", c[0], c[1], got)
		}
	}
}

// TestMirrorStatus_synced: a mirror is synced if all regions are in sync and
// all legs are alive.
func TestMirrorStatus_synced(t *testing.T) {
	for text, want := range map[string]bool{
		"2 98:0 98:16 150/150 1 AA 1 core": true,
		"2 98:0 98:16 149/150 1 AA 1 core": false,
		"2 98:0 98:16 150/150 1 AR 1 core": false,
	} {
		s, err := ParseStatus("mirror", text)
		if err != nil {
			t.Fatal(err)
		}
		if s.(MirrorStatus).Synced() != want {
			t.Errorf("%s: synced is not %v", text, want)
		}
	}
}

// FuzzParseStatus: a status that parses prints as a text that parses to the
// same status.
func FuzzParseStatus(f *testing.F) {
	for _, c := range statuses {
		f.Add(c.typ, c.text)
	}
	f.Fuzz(func(t *testing.T, typ, text string) {
		a, err := ParseStatus(typ, text)
		if err != nil {
			return
		}
		b, err := ParseStatus(typ, a.String())
		if err != nil {
			t.Fatalf("%s %q printed as %q does not parse: %v", typ, text, a, err)
		}
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("%s %q printed as %q is another status: %#v, %#v", typ, text, a, a, b)
		}
	})
}
