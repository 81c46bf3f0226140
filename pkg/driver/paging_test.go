package driver

import (
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// Pages are complete even if entries come and go between them, and invalid
// tokens are refused.
func TestPaginate_changedBetweenPages(t *testing.T) {
	d := &Driver{node: "n"}
	self := func(s string) string { return s }
	ids := func(lvs ...string) (list []string) {
		for _, lv := range lvs {
			list = append(list, handle.ID{Node: "n", Pool: "p", LV: lv}.String())
		}
		return list
	}
	page := func(all []string, token string, limit int32, want []string) string {
		t.Helper()
		got, next, err := paginate(d, slices.Clone(all), self, token, limit)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("from %q: %v, %v; want %v", token, got, err, want)
		}
		return next
	}
	all := ids("d", "b", "a", "c", "e")
	if next := page(all, "", 0, ids("a", "b", "c", "d", "e")); next != "" {
		t.Errorf("token %q after the last page", next)
	}
	next := page(all, "", 2, ids("a", "b"))
	// Entries come and go between the pages. The last entry of the first page goes too.
	changed := ids("a1", "b1", "c", "d", "e")
	next = page(changed, next, 2, ids("b1", "c"))
	if next = page(changed, next, 2, ids("d", "e")); next != "" {
		t.Errorf("token %q after the last page", next)
	}
	page(ids("a"), ids("z")[0], 2, nil)
	page(nil, "", 2, nil)

	for _, c := range []struct {
		token string
		limit int32
		want  codes.Code
	}{
		{"invalid-token", 0, codes.Aborted},
		{handle.ID{Node: "other", Pool: "p", LV: "a"}.String(), 0, codes.Aborted},
		{"", -1, codes.InvalidArgument},
	} {
		if _, _, err := paginate(d, all, self, c.token, c.limit); status.Code(err) != c.want {
			t.Errorf("token %q, limit %d: %v, want %v", c.token, c.limit, err, c.want)
		}
	}
}
