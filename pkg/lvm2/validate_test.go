//go:build !kernel

package lvm2

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestValidate_errors: Validate rejects overlaps, gaps, dangling references,
// duplicates and exceeded limits.
func TestValidate_errors(t *testing.T) {
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

// TestValidate_changed: after any edits of a clone, the checks of a commit find a fault if and
// only if there is one among all logical volumes, read again.
func TestValidate_changed(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	vg := present(parseFile(t, "disk.txt"))
	if err := vg.Validate(); err != nil {
		t.Fatal(err)
	}
	bad := 0
	for round := range 2000 {
		next := vg.Clone()
		before := next.Edition()
		touched := map[ID]bool{}
		for range 1 + random.IntN(4) {
			switch lv := next.LVs[random.IntN(len(next.LVs))]; {
			case random.IntN(3) == 0:
				lv := linearLV(fmt.Sprintf("new%d", random.IntN(40)), 0, Extents(random.IntN(300)), Extents(1+random.IntN(4)))
				if next.Add(lv) == nil {
					touched[lv.ID] = true
				}
			case len(next.LVs) > 12 || random.IntN(5) == 0:
				if next.Remove(lv.ID) == nil {
					touched[lv.ID] = true
				}
			default:
				touched[lv.ID] = true
				c := lv.Clone()
				s := &c.Segments[random.IntN(len(c.Segments))]
				switch random.IntN(3) {
				case 0:
					c.Name = fmt.Sprintf("other%d", random.IntN(40))
				case 1:
					if len(s.Stripes) == 1 {
						s.Stripes[0].Start = Extents(random.IntN(300))
					}
				case 2:
					s.Count = Extents(random.IntN(8))
				}
				if err := next.Replace(c); err != nil {
					delete(touched, lv.ID)
				}
			}
			next = next.Clone()
		}
		if ids, known := next.ChangedSince(before); len(touched) > 0 && known {
			t.Fatalf("round %d: a clone of a changed clone claims to know the changes: %v", round, ids)
		}
		text := next.Text(Stamp{Time: time.Now(), Description: defaultDescription})
		again := present(parse(t, string(text)))
		all, changed := again.Validate(), next.validateChanged()
		if (all == nil) != (changed == nil) {
			t.Fatalf("round %d: all: %v; changed: %v\n%s", round, all, changed, text)
		}
		if got := next.TextSize(); got < size.Bytes(len(text)) || got > size.Bytes(len(text)+2) {
			t.Fatalf("round %d: the text has %d bytes, but TextSize says %d", round, len(text), got)
		}
		if all == nil {
			vg = next
		} else {
			bad++
		}
	}
	if bad < 100 || bad > 1900 {
		t.Errorf("%d of 2000 rounds had a fault", bad)
	}
}
