//go:build !kernel

package lvm2

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestParseVG_textsOfLVM2: the text that lvm2 2.03.16 wrote to disk (disk.txt)
// and the text of vgcfgbackup (backup.txt) parse to the same volume group.
func TestParseVG_textsOfLVM2(t *testing.T) {
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

// TestParseVG_errors: a text with a missing, duplicate or impossible value is
// damaged or has an unknown status.
func TestParseVG_errors(t *testing.T) {
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

// FuzzParseVG: a text that parses and is valid survives being written, also
// after each logical volume is encoded again.
func FuzzParseVG(f *testing.F) {
	f.Add(golden(f, "disk.txt"))
	f.Add(golden(f, "backup.txt"))
	f.Add([]byte(foreign))
	f.Fuzz(roundTrip)
}

// roundTrip checks that a text that parses and is valid survives being written.
func roundTrip(t *testing.T, text []byte) {
	summarize(text)
	vg, err := ParseVG(text)
	if err != nil {
		return
	}
	present(vg).Free()
	if vg.Validate() != nil {
		return
	}
	// A new encoding, as after an edit, must also preserve everything.
	for _, lv := range vg.LVs {
		if vg.checkEditable(lv) == nil {
			lv.text = lv.encode(vg.PVs)
		}
	}
	out := vg.Text(Stamp{})
	again, err := ParseVG(out)
	if err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	if err := present(again).Validate(); err != nil || !reflect.DeepEqual(vg.Free(), again.Free()) || names(vg) != names(again) {
		t.Fatalf("%v\n%s", err, out)
	}
	if second := again.Text(Stamp{}); !bytes.Equal(out, second) {
		t.Fatalf("first\n%s\nsecond\n%s", out, second)
	}
}

// TestParseVG_mutations: real metadata with one byte changed, deleted or
// inserted is an error or survives a round trip. A fuzzer rarely finds such
// texts, because few texts parse.
func TestParseVG_mutations(t *testing.T) {
	for _, text := range [][]byte{golden(t, "disk.txt"), []byte(foreign)} {
		for i := range text {
			const characters = `0"{}[=,#\/ a-.`
			c := characters[i/3%len(characters)]
			changed := bytes.Clone(text)
			switch i % 3 {
			case 0:
				changed[i] = c
			case 1:
				changed = slices.Delete(changed, i, i+1)
			case 2:
				changed = slices.Insert(changed, i, c)
			}
			roundTrip(t, changed)
		}
	}
}
