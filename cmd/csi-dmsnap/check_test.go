package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
)

// sick is a driver whose health calls report one condition.
type sick struct {
	csi.UnimplementedNodeServer
	volume, reason string // the condition is of this volume; if "", of pool fast
	path           string // the path in the call for the volume's health
}

func (s *sick) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: "n1"}, nil
}

func (s *sick) NodeGetStorageHealth(context.Context, *csi.NodeGetStorageHealthRequest) (*csi.NodeGetStorageHealthResponse, error) {
	r := &csi.NodeGetStorageHealthResponse{}
	if s.reason != "" && s.volume == "" {
		r.BackendHealth = append(r.BackendHealth, &csi.NodeGetStorageHealthResponse_StorageBackendHealth{Reason: s.reason, Message: "pool fast: it is so"})
	}
	return r, nil
}

func (s *sick) NodeGetVolumeHealth(_ context.Context, r *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	h := &csi.VolumeHealth{VolumeId: r.GetVolumeId()}
	switch r.GetVolumeId() {
	case "v1:n1:fast:gone":
		return nil, status.Error(codes.NotFound, "deleted since Verify")
	case "v1:n1:fast:" + s.volume:
		s.path = r.GetStagingTargetPath()
		h.HealthStatuses = append(h.HealthStatuses, &csi.VolumeHealth_VolumeHealthEntry{Reason: s.reason, Message: "it is so"})
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: h}, nil
}

// whatCheckFinds says for each reason of a report whether check finds it at a pool or
// a volume, or whether it is news and not a fault. A new reason needs a line here, and
// must be part of the health calls.
var whatCheckFinds = map[string]string{
	"Adopted": "news", "Imported": "news", "RolledBack": "news", "SpaceReclaimed": "news",
	"DeviceMissing": "pool", "DiskNotAnswering": "pool", "DiskRefused": "pool", "DuplicateDisk": "pool", "ExtentsInUse": "pool", "MetadataDegraded": "pool", "MetadataFull": "pool",
	"MixedBlockSizes": "pool", "ModuleMissing": "pool", "PoolFull": "pool", "PoolUnavailable": "pool", "SpaceNotReclaimed": "pool", "UnknownTags": "pool",
	"FilesystemErrors": "volume", "FilesystemReadOnly": "volume", "FilesystemShutDown": "volume", "FilesystemUnreachable": "volume", "NotGrown": "volume", "NotStaged": "volume",
	"ForkLost": "volume", "ForkStopped": "volume", "HydrationFailing": "volume", "SnapshotLost": "volume",
	"SnapshotReadDeep": "volume", "SnapshotSpaceLow": "volume", "SourceLost": "volume", "SourceUnreadable": "volume", "TransientLost": "volume",
	"TransientRestarted": "volume", "WritersHeld": "volume",
}

// Every fault that health calls and Events report is a finding of check, once.
func TestCheck_everyReason(t *testing.T) {
	s := &sick{}
	socket := filepath.Join(t.TempDir(), "csi.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csi.RegisterNodeServer(server, s)
	go server.Serve(l)
	defer server.Stop()
	h := here{endpoint: "unix://" + socket}
	ask := func(known ...pool.Finding) []*checked {
		t.Helper()
		results := []*checked{
			{Verification: &pool.Verification{Pool: "very-fast", VolumeGroup: "vg2"}},
			{Verification: &pool.Verification{Pool: "fast", VolumeGroup: "vg", Findings: known, Volumes: map[string][]string{"v": {"/a", "/b"}, "gone": nil, "w": nil}}},
		}
		if err := h.askDriver(t.Context(), results); err != nil {
			t.Fatal(err)
		}
		if len(results[0].Findings) > 0 {
			t.Errorf("a finding of another pool: %+v", results[0].Findings)
		}
		return results
	}
	if found := ask()[1].Findings; len(found) > 0 {
		t.Errorf("found in a healthy pool: %+v", found)
	}
	for _, reason := range reports.Reasons() {
		where := "vg"
		switch whatCheckFinds[reason] {
		case "news":
			continue
		case "pool":
			s.volume = ""
		case "volume":
			s.volume, where = "v", "vg/v"
		default:
			t.Errorf("whatCheckFinds lacks %s", reason)
			continue
		}
		s.reason = reason
		if found := ask()[1].Findings; len(found) != 1 || found[0].Reason != reason || found[0].Where != where || !strings.Contains(found[0].What, "it is so") {
			t.Errorf("%s: found %+v", reason, found)
		}
		if found := ask(pool.Finding{Reason: reason, Where: where})[1].Findings; len(found) != 1 {
			t.Errorf("%s: found twice: %+v", reason, found)
		}
	}
	if s.path != "/a" {
		t.Errorf("the health of a mounted volume was asked with the path %q", s.path)
	}
	for reason := range whatCheckFinds {
		if !slices.Contains(reports.Reasons(), reason) {
			t.Errorf("nobody reports %s", reason)
		}
	}
	server.Stop()
	if err := h.askDriver(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "does not answer at unix://"+socket) {
		t.Errorf("without a driver: %v", err)
	}
}

// check exits with 1 if it has findings and with 2 if it fails; other commands exit
// with 1 if they fail.
func TestExitCode_checkDiffers(t *testing.T) {
	list, check := &cobra.Command{Use: "pools"}, &cobra.Command{Use: checkCommandName}
	for _, c := range []struct {
		cmd  *cobra.Command
		err  error
		want int
	}{{list, nil, 0}, {list, errors.New("x"), 1}, {check, nil, 0}, {check, errFindings, 1}, {check, errors.New("x"), 2}} {
		if got := exitCode(c.cmd, c.err); got != c.want {
			t.Errorf("%s, %v: %d, want %d", c.cmd.Name(), c.err, got, c.want)
		}
	}
}
