package main

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
)

// sick is a driver with health calls that say one thing.
type sick struct {
	csi.UnimplementedNodeServer
	volume, reason string // of that volume, or of pool fast
	path           string // that the volume's health was asked with
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
		return nil, status.Error(codes.NotFound, "deleted meanwhile")
	case "v1:n1:fast:" + s.volume:
		s.path = r.GetStagingTargetPath()
		h.HealthStatuses = append(h.HealthStatuses, &csi.VolumeHealth_VolumeHealthEntry{Reason: s.reason, Message: "it is so"})
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: h}, nil
}

// What a node reports, and of what: check finds it, unless it is news and no fault. A new
// reason needs a line here, and a way to check: health calls have one.
var whatCheckFinds = map[string]string{
	"Adopted": "news", "Imported": "news", "RolledBack": "news", "SpaceReclaimed": "news",
	"DeviceMissing": "pool", "DiskRefused": "pool", "DuplicateDisk": "pool", "ExtentsInUse": "pool", "MetadataDegraded": "pool", "MetadataFull": "pool",
	"MixedBlockSizes": "pool", "ModuleMissing": "pool", "PoolFull": "pool", "PoolUnavailable": "pool", "SpaceNotReclaimed": "pool", "UnknownTags": "pool",
	"FilesystemErrors": "volume", "FilesystemReadOnly": "volume", "FilesystemShutDown": "volume", "FilesystemUnreachable": "volume", "NotGrown": "volume", "NotStaged": "volume",
	"ForkLost": "volume", "ForkStopped": "volume", "HydrationFailing": "volume", "SnapshotLost": "volume",
	"SnapshotReadDeep": "volume", "SnapshotSpaceLow": "volume", "SourceLost": "volume", "SourceUnreadable": "volume", "TransientLost": "volume",
	"TransientRestarted": "volume", "WritersHeld": "volume",
}

// Every reason of the health calls and events is a finding of check.
func TestCheckFindsAllReasons(t *testing.T) {
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
			t.Errorf("told of another pool: %+v", results[0].Findings)
		}
		return results
	}
	if found := ask()[1].Findings; len(found) > 0 {
		t.Errorf("found while all is well: %+v", found)
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
			t.Errorf("whether check finds %s is not known: add it to whatCheckFinds", reason)
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
