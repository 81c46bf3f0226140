//go:build !kernel

package lvm2

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// present makes all physical volumes found, as they are in an open volume group.
func present(vg *VG) *VG {
	for _, pv := range vg.PVs {
		pv.Device = pv.hint
	}
	return vg
}

// testdata/disk.txt is what lvm2 2.03.16 wrote to disk, backup.txt the same by
// vgcfgbackup.
func TestParse(t *testing.T) {
	for _, file := range []string{"disk.txt", "backup.txt"} {
		vg := present(parseFile(t, file))
		if vg.Name != "vg" || vg.Seqno != 11 || vg.ExtentSize.Bytes() != 4*size.MiB || !reflect.DeepEqual(vg.Tags, []string{"vgtag1"}) {
			t.Errorf("%s: %+v", file, vg)
		}
		if got := names(vg); got != "base str multi snap1 snap2 snapshot0 snapshot1" {
			t.Errorf("%s: logical volumes %s", file, got)
		}
		base := vg.LV("base")
		if base == nil || vg.LVByID(base.ID) != base || !reflect.DeepEqual(base.Tags, []string{"t1", "csi.k8s/x=a+b"}) || base.Size() != 16 {
			t.Errorf("%s: base is %+v", file, base)
		}
		if s := vg.LV("str").Segments[0]; len(s.Stripes) != 2 || s.StripeSize != 128 || s.Stripes[1] != (Stripe{PV: 1}) {
			t.Errorf("%s: str has %+v", file, s)
		}
		if s := vg.LV("snapshot1").Segments[0].Snapshot; *s != (SnapshotSegment{ChunkSize: 8, Origin: "base", COWStore: "snap2"}) {
			t.Errorf("%s: snapshot1 has %+v", file, s)
		}
		want := []Range{{0, 58, 197}}
		if got := vg.Free(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: free %v, want %v", file, got, want)
		}
		if err := vg.Validate(); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if got := vg.Offset(vg.PVs[0], 2); got != 2048+2*8192 {
			t.Errorf("%s: extent 2 is at sector %d", file, got)
		}
	}
}

// What we encode is, byte for byte, what lvm2 encoded.
func TestEncodeAsLVM2(t *testing.T) {
	vg := parseFile(t, "disk.txt")
	for _, lv := range vg.LVs {
		if got := lv.encode(vg.PVs); got != lv.text {
			t.Errorf("got\n%s\nlvm2 wrote\n%s", got, lv.text)
		}
	}
	for _, pv := range vg.PVs {
		pv.Device = pv.hint
		if got := pv.encode(); got != pv.text {
			t.Errorf("got\n%s\nlvm2 wrote\n%s", got, pv.text)
		}
	}
}

func TestTextRoundTrip(t *testing.T) {
	vg := parseFile(t, "disk.txt")
	now := time.Unix(1795341113, 0)
	again := parse(t, string(vg.Text(Stamp{`say "hi"`, "host", now})))
	if again.Name != vg.Name || !reflect.DeepEqual(again.PVs, vg.PVs) || !reflect.DeepEqual(again.LVs, vg.LVs) {
		t.Errorf("%+v\nbecame\n%+v", vg, again)
	}
	text := string(again.Text(Stamp{"d", "h", now}))
	if text != string(vg.Text(Stamp{"d", "h", now})) {
		t.Error("the second text differs from the first")
	}
	if strings.Count(text, "description") != 1 || strings.Count(text, "\ncreation_time = 1795341113\n") != 1 {
		t.Errorf("description and time must stand there once:\n%s", text[len(text)-300:])
	}
}

// foreign has all that this package does not know: keys at every level, a
// section, segment types, areas in lists with other things.
const foreign = `contents = "Text Format Volume Group"
version = 1
future_top = [ "x", 1.5 ]
description = "old"
vg {
	id = "FZS26V-gx1w-TkLg-pfHT-ADnp-Alql-qv1kNy"
	seqno = 6
	format = "lvm2"			# informational
	status = ["RESIZEABLE", "READ", "WRITE"]
	future_key = 3.250000
	extent_size = 8192		# 4 Megabytes
	max_lv = 0
	max_pv = 0
	allocation_policy = "cling"
	physical_volumes {
		pv0 {
			id = "T30zZb-RGqV-1fV4-lKGc-7niM-YBIK-rpRc4k"
			device = "/dev/ubda"
			device_id = "naa.5"
			status = ["ALLOCATABLE"]
			pe_start = 2048
			pe_count = 1000
			ba_start = 2048
		}
		pv1 {
			id = "T30zZb-RGqV-1fV4-lKGc-7niM-YBIK-rpRc4l"
			status = []
			pe_start = 2048
			pe_count = 1000
		}
	}
	logical_volumes {
		ours {
			id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O0"
			status = ["READ", "WRITE", "VISIBLE"]
			creation_time = 1795329550
			creation_host = "h"
			read_ahead = -1
			future = [ ]
			segment_count = 2
			b {
				start_extent = 16
				extent_count = 4
				type = "striped"
				stripe_count = 1
				stripes = [ "pv0", 100 ]
			}
			a {
				start_extent = 0
				extent_count = 16
				tags = ["segtag"]
				type = "striped"
				stripe_count = 1
				stripes = [ "pv0", 0 ]
			}
		}
		alien {
			id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O1"
			status = ["READ", "WRITE", "VISIBLE"]
			segment_count = 1
			segment1 {
				start_extent = 0
				extent_count = 10
				type = "magic+FLAG"
				magic_key = 77
				float = 1.500000
				nested { areas = [ "pv0", 200, "other", 5, "pv0", 300 ] }
			}
		}
		merge { id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O2" status = ["READ", "WRITE"] segment_count = 1
			segment1 { start_extent = 0 extent_count = 20 type = "snapshot" chunk_size = 8 origin = "o" merging_store = "s" } }
		o { id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O3" status = ["READ", "WRITE", "VISIBLE"] segment_count = 1
			segment1 { start_extent = 0 extent_count = 20 type = "striped" stripe_count = 1 stripes = ["pv0", 400] } }
		s { id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O4" status = ["READ", "WRITE"] segment_count = 1
			segment1 { start_extent = 0 extent_count = 20 type = "striped" stripe_count = 1 stripes = ["pv0", 420] } }
		moved { id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O5" status = ["READ", "WRITE", "VISIBLE", "LOCKED"] segment_count = 1
			segment1 { start_extent = 0 extent_count = 20 type = "striped" stripe_count = 1 stripes = ["s", 0] } }
	}
	historical_logical_volumes { gone { id = "Ged0gf-Vxy1-HNWE-3wg9-7N6C-STCv-hmC3O9" creation_time = 1 } }
}
future_section { k = 1 }
`

func TestForeignSurvives(t *testing.T) {
	vg := present(parse(t, foreign))
	next := vg.Clone()
	lv := vg.LV("ours").Clone()
	lv.Name, lv.Tags = "renamed", []string{"t"}
	next.Tags = []string{"vt"}
	if err := errors.Join(next.Replace(lv), next.Add(linearLV("new", 0, 500, 5)), next.Validate()); err != nil {
		t.Fatal(err)
	}
	text := string(next.Text(Stamp{}))
	for _, want := range []string{
		`future_top = [ "x", 1.5 ]`, "future_section { k = 1 }", "future_key = 3.250000", `allocation_policy = "cling"`, "device_id = \"naa.5\"", "ba_start = 2048",
		"read_ahead = -1", "future = [ ]", `tags = ["segtag"]`, "magic_key = 77", "float = 1.500000", `nested { areas = [ "pv0", 200, "other", 5, "pv0", 300 ] }`,
		"historical_logical_volumes { gone {", "renamed {", "\ntags = [\"t\"]\n", "\ntags = [\"vt\"]\nextent_size", "merging_store = \"s\"",
	} {
		if strings.Count(text, want) != 1 {
			t.Errorf("%q stands there %d times", want, strings.Count(text, want))
		}
	}
	if strings.Contains(text, "ours") || strings.Contains(text, `description = "old"`) {
		t.Error("the old name or description is still there")
	}
	again := present(parse(t, text))
	if got := names(again); got != "renamed alien merge o s moved new" {
		t.Errorf("logical volumes %s", got)
	}
	if s := again.LV("renamed").Segments; len(s) != 2 || s[0].Start != 0 || s[1].Start != 16 || s[0].extra == "" {
		t.Errorf("segments %+v", s)
	}
	if vg.LV("ours") == nil || vg.LV("renamed") != nil || vg.LV("new") != nil || len(vg.Tags) != 0 {
		t.Error("the edit of the clone changed the original")
	}
	// The areas of a type not known count as used for the segment's whole length;
	// pv1 is not allocatable.
	want := []Range{{0, 16, 84}, {0, 104, 96}, {0, 210, 90}, {0, 310, 90}, {0, 440, 60}, {0, 505, 495}}
	if got := again.Free(); !reflect.DeepEqual(got, want) {
		t.Errorf("free %v, want %v", got, want)
	}
}

func TestEditRefuses(t *testing.T) {
	for _, c := range []struct {
		lv   string
		want error
	}{{"alien", ErrForeignSegment}, {"merge", ErrLocked}, {"o", ErrLocked}, {"s", ErrLocked}, {"moved", ErrLocked}} {
		vg := parse(t, foreign)
		lv := vg.LV(c.lv)
		if err := vg.Replace(lv.Clone()); !errors.Is(err, c.want) {
			t.Errorf("replace %s: %v, want %v", c.lv, err, c.want)
		}
		if err := vg.Remove(lv.ID); !errors.Is(err, c.want) {
			t.Errorf("remove %s: %v, want %v", c.lv, err, c.want)
		}
		if vg.LV(c.lv) != lv || vg.LVByID(lv.ID) != lv {
			t.Errorf("%s changed", c.lv)
		}
	}
	vg := parse(t, foreign)
	rename := vg.LV("ours").Clone()
	rename.Name = "alien"
	linked := linearLV("snapshot3", 0, 900, 1)
	noSegments, badTag, badPV, badStatus, twice := linearLV("a", 0, 0, 1), linearLV("a", 0, 0, 1), linearLV("a", 7, 0, 1), linearLV("a", 0, 0, 1), linearLV("a", 0, 0, 1)
	noSegments.Segments, badTag.Tags, badStatus.Status, twice.ID = nil, []string{"a b"}, []string{"DMSNAP"}, rename.ID
	badID := linearLV("a", 0, 0, 1)
	badID.ID = "short"
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"rename to a name in use", vg.Replace(rename), ErrExists},
		{"replace what is not there", vg.Replace(linearLV("x", 0, 900, 1)), ErrNotFound},
		{"remove what is not there", vg.Remove(NewID()), ErrNotFound},
		{"add a name in use", vg.Add(linearLV("alien", 0, 900, 1)), ErrExists},
		{"add an id in use", vg.Add(twice), ErrExists},
		{"add a reserved name", vg.Add(linked), ErrInvalid},
		{"add without segments", vg.Add(noSegments), ErrInvalid},
		{"add with a bad tag", vg.Add(badTag), ErrInvalid},
		{"add on no physical volume", vg.Add(badPV), ErrInvalid},
		{"add with an own status", vg.Add(badStatus), ErrUnknownStatus},
		{"add with a bad id", vg.Add(badID), ErrInvalid},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
		}
	}
	if got := names(vg); got != "ours alien merge o s moved" || vg.LV("ours") == nil {
		t.Errorf("logical volumes are now %s", got)
	}
}

func TestCloneIsIndependent(t *testing.T) {
	vg := parseFile(t, "disk.txt")
	before := string(vg.Text(Stamp{}))
	lv := vg.LV("snapshot0").Clone()
	lv.Segments[0].Snapshot.ChunkSize, lv.Status[0] = 64, "X"
	multi := vg.LV("multi").Clone()
	multi.Segments[1].Stripes[0].Start = 99
	next := vg.Clone()
	if err := next.Remove(vg.LV("str").ID); err != nil {
		t.Fatal(err)
	}
	next.Status[0] = "X"
	if string(vg.Text(Stamp{})) != before || vg.LV("str") == nil {
		t.Error("changing a clone changed the original")
	}
	if next.LV("str") != nil || len(next.LVs) != len(vg.LVs)-1 {
		t.Error("the clone did not change")
	}
}

func TestParseRefuses(t *testing.T) {
	good := string(parseFile(t, "disk.txt").Text(Stamp{}))
	for _, c := range []struct {
		old, new string
		want     error
	}{
		{`contents = "Text Format Volume Group"`, `contents = "x"`, ErrDamaged},
		{"version = 1", "version = 2", ErrDamaged},
		{"seqno = 11", "", ErrDamaged},
		{"seqno = 11", "seqno = x", ErrDamaged},
		{"seqno = 11", "seqno = 11 seqno = 12", ErrDamaged},
		{"extent_size = 8192", "extent_size = 0", ErrDamaged},
		{"extent_size = 8192", "extent_size = [8192]", ErrDamaged},
		{`"RESIZEABLE"`, `"RESIZEABLE", "SHINY"`, ErrUnknownStatus},
		{`"ALLOCATABLE"`, `"SHINY"`, ErrUnknownStatus},
		{`["READ", "VISIBLE"]`, `["READ", "SHINY"]`, ErrUnknownStatus},
		{`id = "ag3TrO`, `id = "ag3Tr`, ErrDamaged},
		{"segment_count = 2", "segment_count = 3", ErrDamaged},
		{"stripe_count = 2", "stripe_count = 3", ErrDamaged},
		{`"pv0", 16,`, `"pv0", "16",`, ErrDamaged},
		{"pe_count = 255", "pe_count = 99999999999", ErrDamaged},
		{"start_extent = 250", "start_extent = -250", ErrDamaged},
		{`origin = "base"`, "", ErrDamaged},
		{"physical_volumes {", "physical {", ErrDamaged},
		{"logical_volumes {", "logical_volumes { x = 1", ErrDamaged},
		{"snap1 {", "snap2 {", ErrDamaged},
		{"\n}\n", "\n", ErrDamaged},
	} {
		text := strings.Replace(good, c.old, c.new, 1)
		if text == good {
			t.Fatalf("%q is not in the text", c.old)
		}
		if _, err := ParseVG([]byte(text)); !errors.Is(err, c.want) {
			t.Errorf("%q for %q: %v, want %v", c.new, c.old, err, c.want)
		}
	}
	if _, err := ParseVG(nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("empty text: %v", err)
	}
}

func TestValidate(t *testing.T) {
	replace := func(old, new string) func() *VG {
		return func() *VG {
			text := string(parseFile(t, "disk.txt").Text(Stamp{}))
			if !strings.Contains(text, old) {
				t.Fatalf("%q is not in the text", old)
			}
			return parse(t, strings.Replace(text, old, new, 1))
		}
	}
	for name, make := range map[string]func() *VG{
		"two users of an extent":   replace(`"pv0", 46`, `"pv0", 45`),
		"beyond the PV":            replace(`"pv1", 5`, `"pv1", 6`),
		"gap between segments":     replace("start_extent = 250", "start_extent = 251"),
		"empty segment":            replace("extent_count = 25\n", "extent_count = 0\n"),
		"uneven stripes":           replace("extent_count = 10", "extent_count = 9"),
		"no stripe size":           replace("stripe_size = 128", ""),
		"dangling origin":          replace(`origin = "base"`, `origin = "bass"`),
		"dangling store":           replace(`cow_store = "snap1"`, `cow_store = "snap9"`),
		"chunk not a power of two": replace("chunk_size = 32", "chunk_size = 33"),
		"dangling stripe":          replace(`"pv0", 46`, `"pv7", 46`),
		"same id twice":            replace("LNaKIU-du56-uGKf-0ZKG-Zm9I-iYlI-BqHKEb", "GoVlMH-DyAa-lWay-uEiA-0ptS-t0Mo-HVObgk"),
		"same PV twice":            replace("g4E7EV-H8TW-q1Yf-9xaG-kkZz-fSA3-IBiPm1", "gY0xmQ-2q4D-drYU-MR1O-o2qd-wijL-1mvcLb"),
		"too many LVs":             replace("max_lv = 0", "max_lv = 4"),
		"too many PVs":             replace("max_pv = 0", "max_pv = 1"),
		"seqno at its end":         replace("seqno = 11", fmt.Sprintf("seqno = %d", uint64(maxSeqno)+1)),
		"bad VG tag":               replace(`"vgtag1"`, `"vg tag"`),
		"bad LV name":              replace("multi {", `"mul ti" {`),
	} {
		if err := make().Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := replace("max_lv = 0", "max_lv = 5")().Validate(); err != nil {
		t.Errorf("five visible logical volumes: %v", err)
	}
}
