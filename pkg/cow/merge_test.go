package cow

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestMerge_errors: a store that is lost, or that lists a chunk beyond its used
// length, ends the merge with an error, and so does the end of the context.
func TestMerge_errors(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	good := randomLayer(r, 4*size.KiB, size.MiB, 10)
	short := good.layer()
	short.Used -= short.Chunk.Sectors()
	lost := randomLayer(r, 4*size.KiB, size.MiB, 10)
	lost.store[4] = 0
	for name, c := range map[string]struct {
		layer Layer
		want  error
	}{
		"beyond what is used": {short, ErrDamaged},
		"lost":                {lost.layer(), ErrInvalid},
	} {
		var failed error
		for _, err := range Merge(t.Context(), []Layer{good.layer(), c.layer}) {
			failed = err
		}
		if !errors.Is(failed, c.want) {
			t.Errorf("%s: %v", name, failed)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := NewFlat(4*size.KiB, 10)
	if _, err := f.Write(make(sink, f.Metadata()), Merge(ctx, []Layer{good.layer()})); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
