package dm

import (
	"reflect"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// tables are lines in the kernel's format, with their meanings.
var tables = []struct {
	line string
	want Segment
}{
	{"0 2097152 linear 8:19 384", Segment{0, 2097152, Linear{Device{8, 19}, 384}}},
	{"8 16 linear 259:1048575 18446744073709551615", Segment{8, 16, Linear{Device{259, 1048575}, 1<<64 - 1}}},
	{"0 64 striped 2 128 8:0 0 8:16 2048", Segment{0, 64, Striped{128, []Area{{Device{8, 0}, 0}, {Device{8, 16}, 2048}}}}},
	{"0 2097152 snapshot-origin 254:11", Segment{0, 2097152, SnapshotOrigin{Device{254, 11}}}},
	{"0 2097152 snapshot 254:11 254:12 P 16", Segment{0, 2097152, Snapshot{Device{254, 11}, Device{254, 12}, Persistent, 16, nil}}},
	{"0 8 snapshot 254:11 254:12 PO 8", Segment{0, 8, Snapshot{Device{254, 11}, Device{254, 12}, PersistentOverflow, 8, nil}}},
	{"0 8 snapshot 254:11 254:12 N 8 2 discard_zeroes_cow discard_passdown_origin", Segment{0, 8,
		Snapshot{Device{254, 11}, Device{254, 12}, Transient, 8, []string{"discard_zeroes_cow", "discard_passdown_origin"}}}},
	{"0 8 snapshot-merge 254:0 254:2 P 8", Segment{0, 8, SnapshotMerge{Device{254, 0}, Device{254, 2}, Persistent, 8, nil}}},
	{"0 614400 mirror core 1 4096 2 98:0 2048 98:16 2048", Segment{0, 614400,
		Mirror{Region: 4096, Legs: []Area{{Device{98, 0}, 2048}, {Device{98, 16}, 2048}}}}},
	{"0 8 mirror core 2 1024 nosync 2 98:0 0 98:16 8 2 handle_errors keep_log", Segment{0, 8,
		Mirror{Region: 1024, NoSync: true, Legs: []Area{{Device{98, 0}, 0}, {Device{98, 16}, 8}}, HandleErrors: true, KeepLog: true}}},
	{"0 8 mirror core 1 1024 2 98:0 0 98:16 8 1 handle_errors", Segment{0, 8,
		Mirror{Region: 1024, Legs: []Area{{Device{98, 0}, 0}, {Device{98, 16}, 8}}, HandleErrors: true}}},
	{"0 8 mirror core 2 1024 sync 2 98:0 0 98:16 8", Segment{0, 8, Unknown{"mirror", "core 2 1024 sync 2 98:0 0 98:16 8"}}},
	{"0 8 mirror disk 2 254:1 1024 2 98:0 0 98:16 8", Segment{0, 8, Unknown{"mirror", "disk 2 254:1 1024 2 98:0 0 98:16 8"}}},
	{"0 8 zero", Segment{0, 8, Zero{}}},
	{"0 8 error", Segment{0, 8, ErrorTarget{}}},
	{"0 8 error 8:0 16", Segment{0, 8, Unknown{"error", "8:0 16"}}},
	{"0 8 thin 254:3 1", Segment{0, 8, Unknown{"thin", "254:3 1"}}},
}

// TestParseTable_roundTrip: each line parses to its segment and prints as the
// kernel printed it.
func TestParseTable_roundTrip(t *testing.T) {
	for _, c := range tables {
		got, err := ParseTable(c.line)
		if err != nil {
			t.Errorf("%s: %v", c.line, err)
			continue
		}
		if !reflect.DeepEqual(got, Table{c.want}) {
			t.Errorf("%s: parsed as %#v", c.line, got)
		}
		if got.String() != c.line {
			t.Errorf("%s: printed as %s", c.line, got)
		}
	}
}

// TestParseTable_spaces: empty lines and extra spaces are skipped.
func TestParseTable_spaces(t *testing.T) {
	got, err := ParseTable("\n0 8 zero\r\n\n  8   4 linear  8:0\t16  \n")
	if err != nil {
		t.Fatal(err)
	}
	if want := "0 8 zero\n8 4 linear 8:0 16"; got.String() != want || got.Length() != 12 {
		t.Errorf("parsed as %q with length %d", got, got.Length())
	}
	if empty, err := ParseTable(" \n"); err != nil || len(empty) != 0 || empty.Length() != 0 {
		t.Errorf("an empty text is %v, %v", empty, err)
	}
}

// TestParseTable_malformed: malformed lines are errors.
func TestParseTable_malformed(t *testing.T) {
	for _, line := range []string{
		"0 8",
		"x 8 zero",
		"0 -8 zero",
		"0 99999999999999999999 zero",
		"0 8 linear 8:0",
		"0 8 linear 8:0 0 0",
		"0 8 linear 8 0",
		"0 8 linear /dev/sda 0",
		"0 8 linear 4096:0 0",
		"0 8 linear 8:1048576 0",
		"0 8 striped 0 128",
		"0 8 striped 2 128 8:0 0",
		"0 8 striped 1 128 8:0 0 8:16 0",
		"0 8 striped 9999999999 128",
		"0 8 snapshot-origin",
		"0 8 snapshot 254:0 254:1 P",
		"0 8 snapshot 254:0 254:1 X 8",
		"0 8 snapshot 254:0 254:1 P 8 2 discard_zeroes_cow",
		"0 8 snapshot 254:0 254:1 P 8 1 discard_zeroes_cow more",
		"0 8 mirror core 1 1024 0",
		"0 8 mirror core 1 1024 2 98:0 0 98:16 8 1 nonsense",
		"0 8 mirror core 1 x 2 98:0 0 98:16 8",
		"0 8 far-too-long-name",
		"0 8 zero\n0 8",
		"0 8 thin\x00 1",
		"0 8 thin 1\x00",
	} {
		if got, err := ParseTable(line); err == nil {
			t.Errorf("%q was parsed as %v", line, got)
		}
	}
}

// TestTable_equal: Equal compares ranges, targets and parameters.
func TestTable_equal(t *testing.T) {
	a, _ := ParseTable("0 8 zero\n8 8 linear 8:0 0")
	for text, want := range map[string]bool{
		"0 8 zero\n8 8 linear 8:0 0": true,
		"0 8 zero\n8 8 linear 8:0 1": false,
		"0 8 zero\n8 9 linear 8:0 0": false,
		"0 8 zero":                   false,
		"":                           false,
	} {
		b, err := ParseTable(text)
		if err != nil {
			t.Fatal(err)
		}
		if a.Equal(b) != want || b.Equal(a) != want {
			t.Errorf("equality with %q is not %v", text, want)
		}
	}
}

// TestTable_check: check rejects tables with gaps, overlaps, empty segments and
// impossible targets.
func TestTable_check(t *testing.T) {
	for name, c := range map[string]struct {
		table Table
		want  string
	}{
		"empty":      {Table{}, "is empty"},
		"no target":  {Table{{0, 8, nil}}, "no target"},
		"no length":  {Table{{0, 0, Zero{}}}, "is empty"},
		"not from 0": {Table{{8, 8, Zero{}}}, "does not begin"},
		"gap":        {Table{{0, 8, Zero{}}, {16, 8, Zero{}}}, "does not begin"},
		"overlap":    {Table{{0, 8, Zero{}}, {4, 8, Zero{}}}, "does not begin"},
		"too long":   {Table{{0, 8, Zero{}}, {8, 1<<64 - 8, Zero{}}}, "too long"},
		"type":       {Table{{0, 8, Unknown{Name: "a b"}}}, "name of a target"},
	} {
		if err := c.table.check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	good := Table{{0, 8, Zero{}}, {8, 1 << 40, ErrorTarget{}}}
	if err := good.check(); err != nil || good.Length() != size.Sectors(1<<40+8) {
		t.Errorf("a good table: %v, length %d", err, good.Length())
	}
}

// FuzzParseTable: a table that parses prints as a text that parses to the same
// table.
func FuzzParseTable(f *testing.F) {
	for _, c := range tables {
		f.Add(c.line)
		f.Add("0 8 zero\n" + c.line)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseTable(text)
		if err != nil {
			return
		}
		b, err := ParseTable(a.String())
		if err != nil {
			t.Fatalf("%q printed as %q does not parse: %v", text, a, err)
		}
		if !reflect.DeepEqual(a, b) || !a.Equal(b) {
			t.Fatalf("%q printed as %q is another table: %#v, %#v", text, a, a, b)
		}
	})
}
