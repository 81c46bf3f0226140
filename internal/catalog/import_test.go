package catalog

import (
	"errors"
	"testing"
)

// TestImportable_refusals: only a plain, writable, visible logical volume of LVM2's with a free
// name may become a volume.
func TestImportable_refusals(t *testing.T) {
	for _, c := range []struct {
		what  string
		given string
		spec  ImportSpec
		err   error
	}{
		{"plain one", "data 30+4", ImportSpec{LV: "data", Name: "data"}, nil},
		{"marked for static volumes", "data 30+4 static", ImportSpec{LV: "data", Name: "data"}, nil},
		{"no name", "data 30+4", ImportSpec{LV: "data"}, ErrInvalid},
		{"none of that name", "data 30+4", ImportSpec{LV: "other", Name: "other"}, ErrNotFound},
		{"hidden part of a snapshot", "data 30+4", ImportSpec{LV: "snapshot0", Name: "data"}, ErrNotFound},
		{"a volume already", "data 30+4", ImportSpec{LV: "bare", Name: "bare"}, ErrConflict},
		{"a deleted volume", "base 0+8,locked role=volume mode=block deleted", ImportSpec{LV: "base", Name: "base"}, ErrPrecondition},
		{"a snapshot", "data 30+4", ImportSpec{LV: "old", Name: "data"}, ErrPrecondition},
		{"name of a volume", "data 30+4", ImportSpec{LV: "data", Name: "pvc-2"}, ErrConflict},
		{"read-only", "data 30+4,ro", ImportSpec{LV: "data", Name: "data"}, ErrPrecondition},
		{"internal", "data 30+4,hidden", ImportSpec{LV: "data", Name: "data"}, ErrPrecondition},
		{"without extents", "data 0+4,error", ImportSpec{LV: "data", Name: "data"}, ErrPrecondition},
		{"name too long for an id", "a23456789012345678901234567890123456789012345678901234567890 30+4",
			ImportSpec{LV: "a23456789012345678901234567890123456789012345678901234567890", Name: "data"}, ErrPrecondition},
	} {
		lv, err := NewView(group(t, c.given).vg, nil).Importable(c.spec)
		if !errors.Is(err, c.err) || err == nil && lv.Name != c.spec.LV {
			t.Errorf("%s: the error is %v, want %v", c.what, err, c.err)
		}
	}
}
