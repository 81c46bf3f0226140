package driver

import (
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// paginate returns one page of a listing, and the token of the next page. It
// sorts all by id. A token is the id of the last entry of the previous page, so a
// page is correct even if entries were created or deleted meanwhile. A limit of 0
// means all entries. Errors: INVALID_ARGUMENT for a negative limit; ABORTED for a
// token that this node did not issue.
func paginate[E any](d *Driver, all []E, idOf func(E) string, token string, limit int32) (page []E, next string, err error) {
	if limit < 0 {
		return nil, "", invalid("max_entries is negative: %d", limit)
	}
	slices.SortFunc(all, func(a, b E) int { return strings.Compare(idOf(a), idOf(b)) })
	if token != "" {
		if i, ok := handle.Parse(token); !ok || i.Node != d.node {
			return nil, "", aborted("starting_token %q was not issued by this node; list again from the start", token)
		}
		begin, found := slices.BinarySearchFunc(all, token, func(e E, id string) int { return strings.Compare(idOf(e), id) })
		if found {
			begin++
		}
		all = all[begin:]
	}
	if limit > 0 && int(limit) < len(all) {
		all = all[:limit]
		next = idOf(all[limit-1])
	}
	return all, next, nil
}
