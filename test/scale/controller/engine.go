package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// engine serves the CSI Controller service of one node from memory. It heeds the
// conditions of the controller role like pkg/driver. It is safe for concurrent use.
type engine struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	roleapi.UnimplementedNamesServer

	node     string
	reserved callmeta.Reservations

	mu        sync.Mutex
	room      int64
	volumes   []*csi.ListVolumesResponse_Entry // sorted by id
	snapshots []*csi.ListSnapshotsResponse_Entry
}

// roomOf is the room of a simulated node. Nodes have different rooms, so that one
// of them has most.
const roomOf = 1 << 40

func newEngine(node string, more int64, volumes, snapshots int) *engine {
	e := &engine{node: node, room: roomOf + more<<20}
	for i := range volumes {
		name := fmt.Sprintf("pvc-%08x-0000-4000-8000-%012x", i, more)
		e.volumes = append(e.volumes, &csi.ListVolumesResponse_Entry{Volume: e.volume(name, 1<<30)})
		for s := range snapshots {
			e.snapshots = append(e.snapshots, &csi.ListSnapshotsResponse_Entry{Snapshot: &csi.Snapshot{
				SnapshotId: e.id(fmt.Sprintf("snapshot-%08x-%04x-4000-8000-%012x", i, s, more)), SourceVolumeId: e.id(name),
				SizeBytes: 1 << 30, CreationTime: timestamppb.Now(), ReadyToUse: true,
			}})
		}
	}
	return e
}

func (e *engine) id(lv string) string { return handle.ID{Node: e.node, Pool: "fast", LV: lv}.String() }

func (e *engine) volume(name string, bytes int64) *csi.Volume {
	return &csi.Volume{VolumeId: e.id(name), CapacityBytes: bytes, AccessibleTopology: []*csi.Topology{{Segments: map[string]string{handle.TopologyKey: e.node}}}}
}

func idOfVolume(v *csi.ListVolumesResponse_Entry) string     { return v.GetVolume().GetVolumeId() }
func idOfSnapshot(s *csi.ListSnapshotsResponse_Entry) string { return s.GetSnapshot().GetSnapshotId() }

// CreateVolume creates a volume, or answers with the volume of that name.
func (e *engine) CreateVolume(ctx context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	c := callmeta.Of(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	at, there := e.find(q.GetName())
	switch {
	case there:
		return &csi.CreateVolumeResponse{Volume: e.volumes[at].GetVolume()}, nil
	case c.OnlyExisting:
		return nil, e.reserve(q.GetName(), c.Reservation)
	case c.Reservation != "":
		if err := e.reserved.Check(q.GetName(), c.Reservation); err != nil {
			return nil, status.Error(codes.Aborted, err.Error())
		}
	}
	bytes := q.GetCapacityRange().GetRequiredBytes()
	if bytes > e.room {
		return nil, status.Error(codes.ResourceExhausted, "no room")
	}
	e.room -= bytes
	v := e.volume(q.GetName(), bytes)
	e.volumes = slices.Insert(e.volumes, at, &csi.ListVolumesResponse_Entry{Volume: v})
	return &csi.CreateVolumeResponse{Volume: v}, nil
}

// find returns the place of a volume name, and whether a volume has it. The caller
// holds the lock, also for reserve.
func (e *engine) find(name string) (at int, there bool) {
	return slices.BinarySearchFunc(e.volumes, e.id(name), func(v *csi.ListVolumesResponse_Entry, id string) int {
		return compare(idOfVolume(v), id)
	})
}

// reserve reserves a name that no volume has, and returns NOT_FOUND.
func (e *engine) reserve(name, reservation string) error {
	if reservation != "" {
		if err := e.reserved.Take(name, reservation, time.Now()); err != nil {
			return status.Error(codes.Aborted, err.Error())
		}
	}
	return status.Error(codes.NotFound, "no such volume")
}

// Reserve reserves many names.
func (e *engine) Reserve(_ context.Context, q *roleapi.ReserveRequest) (*roleapi.ReserveResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	reply := &roleapi.ReserveResponse{}
	for _, n := range q.GetNames() {
		var err error
		if _, there := e.find(n.GetName()); !there {
			err = e.reserve(n.GetName(), n.GetReservation())
		}
		a := &roleapi.NameAnswer{Code: uint32(status.Code(err))}
		if status.Code(err) != codes.NotFound {
			a.Message = status.Convert(err).Message()
		}
		reply.Answers = append(reply.Answers, a)
	}
	return reply, nil
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// GetCapacity returns the room.
func (e *engine) GetCapacity(context.Context, *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return &csi.GetCapacityResponse{AvailableCapacity: e.room, MaximumVolumeSize: wrapperspb.Int64(e.room), MinimumVolumeSize: wrapperspb.Int64(4 << 20)}, nil
}

// ListVolumes returns a page of volumes.
func (e *engine) ListVolumes(_ context.Context, q *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	page, next := pageOf(e.volumes, idOfVolume, q.GetStartingToken(), int(q.GetMaxEntries()))
	return &csi.ListVolumesResponse{Entries: page, NextToken: next}, nil
}

// ListSnapshots returns a page of snapshots.
func (e *engine) ListSnapshots(_ context.Context, q *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	page, next := pageOf(e.snapshots, idOfSnapshot, q.GetStartingToken(), int(q.GetMaxEntries()))
	return &csi.ListSnapshotsResponse{Entries: page, NextToken: next}, nil
}

// pageOf returns the entries after the token, at most limit unless it is 0.
func pageOf[E any](all []E, id func(E) string, token string, limit int) (page []E, next string) {
	first, found := slices.BinarySearchFunc(all, token, func(e E, t string) int { return compare(id(e), t) })
	if found {
		first++
	}
	page = all[first:]
	if limit > 0 && limit < len(page) {
		page = page[:limit]
		next = id(page[limit-1])
	}
	return slices.Clone(page), next
}

// ControllerGetCapabilities returns the capabilities that the driver has.
func (e *engine) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	a := &csi.ControllerGetCapabilitiesResponse{}
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME, csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY, csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS, csi.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME, csi.ControllerServiceCapability_RPC_GET_VOLUME,
	} {
		a.Capabilities = append(a.Capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{
			Rpc: &csi.ControllerServiceCapability_RPC{Type: t},
		}})
	}
	return a, nil
}

// GetPluginCapabilities returns the services that the driver has.
func (e *engine) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	a := &csi.GetPluginCapabilitiesResponse{}
	for _, t := range []csi.PluginCapability_Service_Type{
		csi.PluginCapability_Service_CONTROLLER_SERVICE, csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS,
	} {
		a.Capabilities = append(a.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: t}}})
	}
	return a, nil
}
