//go:build !kernel

package lvm2

import (
	"errors"
	"fmt"
	"strings"
	"testing"
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
