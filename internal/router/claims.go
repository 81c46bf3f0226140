package router

import (
	"context"
	"regexp"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

// Claim is the part of a PersistentVolumeClaim that the router uses.
type Claim struct {
	UID     string
	Created time.Time
	// SelectedNode is the node that the scheduler chose; "" if the claim's
	// class binds immediately.
	SelectedNode string
	// Ephemeral is true if a pod owns the claim, so that the claim ends with the pod.
	Ephemeral bool
}

// Claims looks up PersistentVolumeClaims. found is false if there is no such claim.
type Claims interface {
	Claim(ctx context.Context, namespace, name string) (claim Claim, found bool, err error)
}

// Parameters that csi-provisioner adds with --extra-create-metadata.
const (
	claimName      = callmeta.ParameterClaimName
	claimNamespace = callmeta.ParameterClaimNamespace
)

// claimState is what the router knows about the claim that a volume is made for.
type claimState int

const (
	claimUnnamed claimState = iota // the request names no claim
	claimThere
	claimGone
)

// claimOf looks up the claim that a volume is made for.
// Errors: UNAVAILABLE if the claim cannot be looked up now.
func (r *Router) claimOf(ctx context.Context, q *csi.CreateVolumeRequest) (Claim, claimState, error) {
	namespace, name := q.GetParameters()[claimNamespace], q.GetParameters()[claimName]
	if r.claims == nil || namespace == "" || name == "" {
		return Claim{}, claimUnnamed, nil
	}
	claim, found, err := r.claims.Claim(ctx, namespace, name)
	switch {
	case ctx.Err() != nil:
		return Claim{}, claimUnnamed, ctx.Err()
	case err != nil:
		return Claim{}, claimUnnamed, unavailable("volume %q: looking up claim %s/%s failed: %v", q.GetName(), namespace, name, err)
	case !found:
		return Claim{}, claimGone, nil
	}
	if uid := uuidAtEnd.FindString(q.GetName()); uid != "" && uid != claim.UID {
		return Claim{}, claimGone, nil // another claim has the name now
	}
	return claim, claimThere, nil
}

// uuidAtEnd matches the claim's UID at the end of a volume name that
// csi-provisioner made.
var uuidAtEnd = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// outageMargin is how long before a claim's creation a node must have gone out of
// service. Then no controller can have sent the node a request for the claim, even
// if the controller's list of nodes is old or its clock is wrong.
const outageMargin = 5 * time.Minute

// tooYoungFor reports whether a node cannot have a volume of that name, because
// the node went silent before the claim existed and has not come back.
func (c Claim) tooYoungFor(n *member, name string) bool {
	if uuidAtEnd.FindString(name) != c.UID || c.UID == "" {
		return false
	}
	since := n.silent()
	return !since.IsZero() && since.Add(outageMargin).Before(c.Created)
}
