//go:build !kernel

package lvm2

import (
	"errors"
	"strings"
	"testing"
)

// TestParseID_roundTrip: ids parse with and without hyphens, and new ids are
// valid and unique.
func TestParseID_roundTrip(t *testing.T) {
	const printed = "FZS26V-gx1w-TkLg-pfHT-ADnp-Alql-qv1kNy"
	id, err := ParseID(printed)
	if err != nil || id != "FZS26Vgx1wTkLgpfHTADnpAlqlqv1kNy" || id.String() != printed {
		t.Fatalf("got %q, %v", string(id), err)
	}
	if again, err := ParseID(string(id)); err != nil || again != id {
		t.Errorf("without hyphens: %v, %v", again, err)
	}
	for _, bad := range []string{"", "x", printed[1:] + "-", strings.Repeat("a", 31), strings.Repeat("a", 31) + "_", strings.Replace(printed, "-", "x", 1)} {
		if id, err := ParseID(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, %v", bad, id, err)
		}
	}
	seen := map[ID]bool{}
	for range 1000 {
		id := NewID()
		if _, err := ParseID(string(id)); err != nil || seen[id] || strings.ContainsAny(string(id), "!#") {
			t.Fatalf("new id %q: %v, seen before: %v", string(id), err, seen[id])
		}
		seen[id] = true
	}
}
