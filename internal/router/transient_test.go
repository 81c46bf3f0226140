package router

import (
	"context"
	"maps"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

// TestCreateVolume_transientNeedsPod: transient volumes are created only for
// claims that a pod owns, and the node learns that.
func TestCreateVolume_transientNeedsPod(t *testing.T) {
	source := &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: "v1:n1:fast:v"}}}
	for _, c := range []struct {
		what, value, claim string
		source             *csi.VolumeContentSource
		code               codes.Code
		told               bool // the node learns that a pod owns the claim
	}{
		{"a pod's claim", "true", "pods", source, codes.OK, true},
		{"a pod's claim, not transient", "false", "pods", source, codes.OK, false},
		{"a claim to keep", "true", "keep", source, codes.FailedPrecondition, false},
		{"a claim to keep, not transient", "", "keep", source, codes.OK, false},
		{"a claim that is gone", "true", "gone", source, codes.FailedPrecondition, false},
		{"another one of the same name", "true", "again", source, codes.FailedPrecondition, false},
		{"no claim is named", "true", "", source, codes.FailedPrecondition, false},
		{"without a source", "true", "pods", nil, codes.InvalidArgument, false},
		{"neither true nor false", "yes", "pods", source, codes.InvalidArgument, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			nodes := cluster(t, 100)
			told := false
			nodes[0].before = func(ctx context.Context, _ string) error {
				told = told || callmeta.Of(ctx).Ephemeral
				return nil
			}
			r := routerOf(t, Options{Claims: claims{
				"ns/pods":  {UID: uid, Ephemeral: true},
				"ns/keep":  {UID: uid},
				"ns/again": {UID: "2f" + uid[2:], Ephemeral: true},
			}}, nodes...)
			q := request("pvc-"+uid, 10)
			q.VolumeContentSource = c.source
			q.Parameters = map[string]string{callmeta.ParameterTransient: c.value}
			if c.claim != "" {
				maps.Copy(q.Parameters, map[string]string{claimNamespace: "ns", claimName: c.claim})
			}
			_, err := r.CreateVolume(t.Context(), q)
			wantCode(t, "create", err, c.code)
			if made := nodes[0].has(q.GetName()); made != (c.code == codes.OK) || told != c.told {
				t.Errorf("made: %v, the node was told: %v", made, told)
			}
		})
	}
}
