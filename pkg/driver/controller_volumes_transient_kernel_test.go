//go:build kernel

package driver

import (
	"context"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
)

// reported returns the reasons that the driver reports for a volume now.
func (r *rig) reported(volume string) (reasons []string) {
	r.t.Helper()
	d, err := New(Options{NodeName: "node-1", KubeletDir: r.kubelet, Pools: r.pools})
	r.must("another driver", err)
	d.reportNew(r.t.Context(), map[concern]time.Time{}, time.Now(), func(_ context.Context, h reports.Happening) {
		if h.ID == volume {
			reasons = append(reasons, h.Reason)
		}
	})
	return reasons
}

// A transient volume is written beside its source and keeps its content while
// the machine runs. After a reboot it starts again from its source, and this is
// reported.
func TestCreateVolume_transient(t *testing.T) {
	for _, fs := range []string{filesystem.Ext4, filesystem.XFS, filesystem.Btrfs} {
		t.Run(fs, func(t *testing.T) {
			r := newRig(t)
			c := mount(writer, fs)
			least := int64(filesystem.MinimumSize(fs))>>20 + 4 // so that a test can request less
			volume := r.volume(request("origin", least, c))
			r.must("stage", r.stage(volume, "st", c))
			r.write("st", "as it was")
			snapshot := r.snapshot("snapshot", volume)
			r.write("st", "as it is")
			ask := func(name string, mib int64, source *csi.VolumeContentSource, parameters map[string]string) *csi.CreateVolumeRequest {
				q := request(name, mib, c)
				q.VolumeContentSource, q.Parameters = source, map[string]string{"transient": "true"}
				for k, v := range parameters {
					q.Parameters[k] = v
				}
				return q
			}
			claim := map[string]string{callmeta.ParameterClaimName: "c", callmeta.ParameterClaimNamespace: "ns"}
			for what, x := range map[string]struct {
				q    *csi.CreateVolumeRequest
				want codes.Code
			}{
				"without a source":                      {ask("x", least, nil, nil), codes.InvalidArgument},
				"neither true nor false":                {ask("x", least, fromSnapshot(snapshot), map[string]string{"transient": "yes"}), codes.InvalidArgument},
				"larger":                                {ask("x", least+64, fromSnapshot(snapshot), nil), codes.OutOfRange},
				"smaller":                               {ask("x", least-4, fromSnapshot(snapshot), nil), codes.OutOfRange},
				"for a claim that nobody has looked at": {ask("x", least, fromSnapshot(snapshot), claim), codes.FailedPrecondition},
			} {
				_, err := r.CreateVolume(t.Context(), x.q)
				r.want(what, err, x.want)
			}
			made, err := r.CreateVolume(callmeta.For(t.Context(), "node-1", callmeta.Conditions{Ephemeral: true}), ask("scratch", least, fromSnapshot(snapshot), claim))
			r.must("create", err)
			id := made.GetVolume().GetVolumeId()
			if second := r.volume(ask("second", least, fromVolume(volume), nil)); second != "" {
				r.must("stage the second", r.stage(second, "second", c))
				r.read("second", "as it is")
				r.must("unstage the second", r.unstage(second, "second"))
				r.must("delete the second", r.remove(second))
			}
			r.must("stage", r.stage(id, "x", c))
			r.must("publish", r.publish(id, "x", "xtg", c, false))
			r.read("xtg", "as it was")
			r.write("xtg", "scratched")
			r.read("st", "as it is")
			r.wantUnchangeable(id, least)
			r.must("unpublish", r.unpublish(id, "xtg"))
			r.must("unstage", r.unstage(id, "x"))
			r.stop()
			r.start()
			r.must("stage again", r.stage(id, "x", c))
			r.read("x", "scratched")
			if told := r.reported(id); len(told) != 0 {
				t.Errorf("reported while nothing is wrong: %v", told)
			}
			r.must("unstage", r.unstage(id, "x"))

			// A reboot would remove its devices.
			r.stop()
			for _, name := range []string{"vgdriver-scratch", "vgdriver-scratch-cow"} {
				if out, err := exec.Command("dmsetup", "remove", "--retry", name).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			r.start()
			r.must("stage after the loss", r.stage(id, "x", c))
			r.read("x", "as it was")
			if told := r.reported(id); !slices.Equal(told, []string{"TransientRestarted"}) {
				t.Errorf("reported after the loss: %v", told)
			}
			r.must("unstage", r.unstage(id, "x"))
			if told := r.reported(id); len(told) != 0 {
				t.Errorf("reported after its use: %v", told)
			}
			r.must("delete", r.remove(id))
			r.must("unstage the source", r.unstage(volume, "st"))
			r.must("delete the source", r.remove(volume))
			_, err = r.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: snapshot})
			r.must("delete the snapshot", err)
		})
	}
}
