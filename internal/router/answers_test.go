package router

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

const (
	victim = "v1:n1:fast:pvc-victim" // on an honest node
	loot   = "v1:evil:fast:pvc-loot"
)

// lies are the answers of a node that an attacker has taken over, by method.
type lies map[string]func(request any) (any, error)

// says returns a lie that does not depend on the request.
func says(reply proto.Message) func(any) (any, error) {
	return func(any) (any, error) { return reply, nil }
}

// evilRouter returns a router that knows an honest node n1, and the node evil.
func evilRouter(t *testing.T, l lies) (*Router, *fake) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.MaxSendMsgSize(math.MaxInt32), grpc.UnaryInterceptor(
		func(ctx context.Context, q any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
			if lie, ok := l[path.Base(info.FullMethod)]; ok {
				return lie(q)
			}
			return nil, notFound("evil has nothing to say")
		}))
	csi.RegisterControllerServer(s, csi.UnimplementedControllerServer{})
	ended := make(chan error)
	go func() { ended <- s.Serve(listener) }()
	t.Cleanup(func() { s.Stop(); <-ended })
	honest := newFake(t, "n1", 1000)
	honest.fill(2)
	honest.volumes["pvc-victim"] = &csi.Volume{VolumeId: victim, CapacityBytes: 1}
	r := newRouter(t, honest)
	r.SetNodes(append(nodesOf(honest), Node{Name: "evil", Instance: "x", Addresses: []string{listener.Addr().String()}}))
	return r, honest
}

func volumeOn(id string, nodes ...string) *csi.Volume {
	return &csi.Volume{VolumeId: id, CapacityBytes: 1, AccessibleTopology: on(nodes...)}
}

// TestWitness_refusesForeignAnswers: an answer that names another node's
// things, or is impossible, reaches no caller.
func TestWitness_refusesForeignAnswers(t *testing.T) {
	source := func(id string) *csi.VolumeContentSource {
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id}}}
	}
	created := func(change func(*csi.Volume)) proto.Message {
		v := volumeOn(loot, "evil")
		change(v)
		return &csi.CreateVolumeResponse{Volume: v}
	}
	cut := func(change func(*csi.Snapshot)) proto.Message {
		s := &csi.Snapshot{SnapshotId: "v1:evil:fast:s", SourceVolumeId: loot, SizeBytes: 1, AccessibleTopology: on("evil")}
		change(s)
		return &csi.CreateSnapshotResponse{Snapshot: s}
	}
	for what, lie := range map[string]proto.Message{
		"no volume":                      &csi.CreateVolumeResponse{},
		"another node's volume":          &csi.CreateVolumeResponse{Volume: volumeOn(victim, "n1")},
		"another node's volume, here":    &csi.CreateVolumeResponse{Volume: volumeOn(victim, "evil")},
		"no id":                          created(func(v *csi.Volume) { v.VolumeId = "x" }),
		"a volume accessible elsewhere":  created(func(v *csi.Volume) { v.AccessibleTopology = on("n1") }),
		"a volume accessible there too":  created(func(v *csi.Volume) { v.AccessibleTopology = on("evil", "n1") }),
		"a volume accessible everywhere": created(func(v *csi.Volume) { v.AccessibleTopology = nil }),
		"a volume of another key":        created(func(v *csi.Volume) { v.AccessibleTopology[0].Segments["zone"] = "a" }),
		"a foreign source":               created(func(v *csi.Volume) { v.ContentSource = source(victim) }),
		"a negative size":                created(func(v *csi.Volume) { v.CapacityBytes = -1 }),
		"an absurd size":                 created(func(v *csi.Volume) { v.CapacityBytes = math.MaxInt64 }),

		"no snapshot":                      &csi.CreateSnapshotResponse{},
		"another node's snapshot":          cut(func(s *csi.Snapshot) { s.SnapshotId = "v1:n1:fast:s" }),
		"a snapshot of a foreign volume":   cut(func(s *csi.Snapshot) { s.SourceVolumeId = victim }),
		"a snapshot of another volume":     cut(func(s *csi.Snapshot) { s.SourceVolumeId = "v1:evil:fast:other" }),
		"a snapshot of nothing":            cut(func(s *csi.Snapshot) { s.SourceVolumeId = "" }),
		"a snapshot accessible elsewhere":  cut(func(s *csi.Snapshot) { s.AccessibleTopology = on("n1") }),
		"a snapshot of a foreign group":    cut(func(s *csi.Snapshot) { s.GroupSnapshotId = "v1:n1:fast:g" }),
		"a snapshot of an impossible time": cut(func(s *csi.Snapshot) { s.CreationTime = &timestamppb.Timestamp{Seconds: math.MaxInt64} }),
		"a snapshot of a negative size":    cut(func(s *csi.Snapshot) { s.SizeBytes = math.MinInt64 }),

		"get: another node's volume":      &csi.ControllerGetVolumeResponse{Volume: volumeOn(victim, "evil")},
		"get: another volume":             &csi.ControllerGetVolumeResponse{Volume: volumeOn("v1:evil:fast:other", "evil")},
		"get: published elsewhere":        &csi.ControllerGetVolumeResponse{Volume: volumeOn(loot, "evil"), Status: &csi.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: []string{"n1"}}},
		"get: another node's snapshot":    &csi.GetSnapshotResponse{Snapshot: &csi.Snapshot{SnapshotId: "v1:n1:fast:s"}},
		"health of another node's volume": &csi.ControllerGetVolumeHealthResponse{VolumeHealth: &csi.VolumeHealth{VolumeId: victim}},
		"negative room":                   &csi.GetCapacityResponse{AvailableCapacity: -1},
		"absurd room":                     &csi.GetCapacityResponse{AvailableCapacity: math.MaxInt64},
		"an absurd largest volume":        &csi.GetCapacityResponse{MaximumVolumeSize: wrapperspb.Int64(math.MaxInt64)},
		"a negative expanded size":        &csi.ControllerExpandVolumeResponse{CapacityBytes: -1},
	} {
		t.Run(what, func(t *testing.T) {
			method := strings.TrimSuffix(string(lie.ProtoReflect().Descriptor().Name()), "Response")
			r, _ := evilRouter(t, lies{method: says(lie)})
			refused := func(answer any, err error) {
				t.Helper()
				if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "node evil") {
					t.Errorf("%v, %v", answer, err)
				}
			}
			switch method {
			case "CreateVolume":
				q := request("pvc-attacker", 1)
				refused(r.CreateVolume(t.Context(), q)) // to be placed
				q.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: on("evil"), Preferred: on("evil")}
				refused(r.CreateVolume(t.Context(), q))
			case "CreateSnapshot":
				refused(r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: loot}))
			case "ControllerGetVolume":
				refused(r.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: loot}))
			case "GetSnapshot":
				refused(r.GetSnapshot(t.Context(), &csi.GetSnapshotRequest{SnapshotId: loot}))
			case "ControllerGetVolumeHealth":
				refused(r.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: loot}))
			case "GetCapacity":
				refused(r.GetCapacity(t.Context(), &csi.GetCapacityRequest{AccessibleTopology: on("evil")[0]}))
				if a, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{}); err != nil || a.GetAvailableCapacity() != 1000 {
					t.Errorf("all nodes: %v, %v", a, err)
				}
			case "ControllerExpandVolume":
				refused(r.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: loot}))
			default:
				t.Fatal(method)
			}
		})
	}
}

// TestWitness_dropsForeignEntries: a list loses its foreign entries and keeps
// the others.
func TestWitness_dropsForeignEntries(t *testing.T) {
	r, honest := evilRouter(t, lies{
		"ListVolumes": says(&csi.ListVolumesResponse{Entries: []*csi.ListVolumesResponse_Entry{
			{Volume: volumeOn("v1:evil:fast:a", "evil")},
			{Volume: volumeOn(victim, "n1")},
			{Volume: volumeOn("v1:evil:fast:b", "n1")},
			{Volume: volumeOn("v1:evil:fast:c", "evil"), Status: &csi.ListVolumesResponse_VolumeStatus{PublishedNodeIds: []string{"n1"}}},
			{Volume: volumeOn("v1:evil:fast:d", "evil")},
			{}, nil,
		}}),
		"ListSnapshots": says(&csi.ListSnapshotsResponse{Entries: []*csi.ListSnapshotsResponse_Entry{
			{Snapshot: &csi.Snapshot{SnapshotId: "v1:evil:fast:s", SourceVolumeId: loot}},
			{Snapshot: &csi.Snapshot{SnapshotId: "v1:n1:fast:s-v00", SourceVolumeId: "v1:n1:fast:v00"}},
			{Snapshot: &csi.Snapshot{SnapshotId: "v1:evil:fast:t", SourceVolumeId: victim}},
		}}),
		"ControllerListVolumeHealth": says(&csi.ControllerListVolumeHealthResponse{Entries: []*csi.VolumeHealth{{VolumeId: victim}, {VolumeId: loot}}}),
	})
	volumes, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	want := []string{"v1:evil:fast:a", "v1:evil:fast:d", victim, honest.id("v00"), honest.id("v01")}
	if got := volumeIDs(volumes); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	snapshots, err := r.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{})
	if got := ids(snapshots.GetEntries(), snapshotID); err != nil || !slices.Equal(got, []string{"v1:evil:fast:s", honest.id("s-v00"), honest.id("s-v01")}) {
		t.Errorf("%v, %v", got, err)
	}
	// The node must not pass off another of its snapshots as the requested one.
	snapshots, err = r.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{SnapshotId: "v1:evil:fast:u"})
	if err != nil || len(snapshots.GetEntries()) != 0 {
		t.Errorf("%v, %v", snapshots, err)
	}
	r, _ = evilRouter(t, lies{"ControllerListVolumeHealth": says(&csi.ControllerListVolumeHealthResponse{Entries: []*csi.VolumeHealth{{VolumeId: victim}, {VolumeId: loot}}})})
	health, err := r.ControllerListVolumeHealth(t.Context(), &csi.ControllerListVolumeHealthRequest{})
	if err != nil || len(health.GetEntries()) != 1 || health.GetEntries()[0].GetVolumeId() != loot {
		t.Errorf("%v, %v", health, err)
	}
}

// TestCreateSnapshot_noVetoByOneNode: a node that claims every snapshot's name
// is believed only if it shows a snapshot of its own, and never about the names
// that csi-snapshotter makes.
func TestCreateSnapshot_noVetoByOneNode(t *testing.T) {
	of := func(s *csi.Snapshot) func(any) (any, error) { return says(&csi.CreateSnapshotResponse{Snapshot: s}) }
	refusal := func(code codes.Code) func(any) (any, error) {
		return func(any) (any, error) { return nil, errorf(code, "I have that") }
	}
	const generated = "snapshot-0b6ac2b6-1f0b-4d2c-8a3b-9d4d1ad2a6c1"
	for what, c := range map[string]struct {
		lie  func(any) (any, error)
		name string
		want codes.Code
	}{
		"its word":                            {refusal(codes.AlreadyExists), "snapshot-x", codes.OK},
		"another error":                       {refusal(codes.InvalidArgument), "snapshot-x", codes.OK},
		"another node's snapshot":             {of(&csi.Snapshot{SnapshotId: "v1:n1:fast:s", SourceVolumeId: victim}), "snapshot-x", codes.OK},
		"its own snapshot, generated name":    {of(&csi.Snapshot{SnapshotId: "v1:evil:fast:s", SourceVolumeId: loot}), generated, codes.OK},
		"its own snapshot of a foreign":       {of(&csi.Snapshot{SnapshotId: "v1:evil:fast:s", SourceVolumeId: victim}), "snapshot-x", codes.OK},
		"its own snapshot, a name by hand":    {of(&csi.Snapshot{SnapshotId: "v1:evil:fast:s", SourceVolumeId: loot}), "snapshot-x", codes.AlreadyExists},
		"its word on a generated name, again": {refusal(codes.AlreadyExists), generated, codes.OK},
	} {
		r, honest := evilRouter(t, lies{"CreateSnapshot": c.lie})
		s, err := r.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: c.name, SourceVolumeId: victim})
		if status.Code(err) != c.want || err == nil && s.GetSnapshot().GetSnapshotId() != honest.id(c.name) {
			t.Errorf("%s: %v, %v", what, s, err)
		}
	}
}

// TestCreateVolume_volumeCountsMoreThanError: a node's error does not hide the
// volume that another node has.
func TestCreateVolume_volumeCountsMoreThanError(t *testing.T) {
	r, _ := evilRouter(t, lies{"CreateVolume": func(any) (any, error) { return nil, errorf(codes.AlreadyExists, "I have that") }})
	a, err := r.CreateVolume(t.Context(), request("pvc-victim", 1))
	if err == nil || a != nil {
		t.Fatalf("the fake's volume has no topology: %v, %v", a, err)
	}
	r, honest := evilRouter(t, lies{"CreateVolume": func(any) (any, error) { return nil, errorf(codes.AlreadyExists, "I have that") }})
	honest.volumes["pvc-victim"].AccessibleTopology = on("n1")
	if a, err = r.CreateVolume(t.Context(), request("pvc-victim", 1)); err != nil || a.GetVolume().GetVolumeId() != victim {
		t.Errorf("%v, %v", a, err)
	}
}

// TestList_endsWithEndlessNode: a list ends although one node's list has no end
// or its pages do not continue, and it has the entries of the honest node.
func TestList_endsWithEndlessNode(t *testing.T) {
	entries := func(from, count int) (list []*csi.ListVolumesResponse_Entry) {
		for i := range count {
			list = append(list, &csi.ListVolumesResponse_Entry{Volume: &csi.Volume{VolumeId: fmt.Sprintf("v1:evil:fast:%09d", from+i)}})
		}
		return list
	}
	var calls atomic.Int64
	for what, lie := range map[string]func(q *csi.ListVolumesRequest) *csi.ListVolumesResponse{
		"the same page": func(*csi.ListVolumesRequest) *csi.ListVolumesResponse {
			return &csi.ListVolumesResponse{Entries: entries(0, 10), NextToken: "v1:evil:fast:000000009"}
		},
		"empty pages, the same token": func(*csi.ListVolumesRequest) *csi.ListVolumesResponse {
			return &csi.ListVolumesResponse{NextToken: "v1:evil:fast:x"}
		},
		"a foreign token": func(*csi.ListVolumesRequest) *csi.ListVolumesResponse {
			return &csi.ListVolumesResponse{NextToken: "v1:n1:fast:x"}
		},
		"a token before the page's end": func(*csi.ListVolumesRequest) *csi.ListVolumesResponse {
			return &csi.ListVolumesResponse{Entries: entries(0, 10), NextToken: "v1:evil:fast:000000001"}
		},
		"out of order": func(*csi.ListVolumesRequest) *csi.ListVolumesResponse {
			return &csi.ListVolumesResponse{Entries: append(entries(5, 1), entries(1, 1)...)}
		},
		"always more": func(q *csi.ListVolumesRequest) *csi.ListVolumesResponse {
			begin := int(calls.Load()) * pageSize
			return &csi.ListVolumesResponse{Entries: entries(begin, pageSize), NextToken: fmt.Sprintf("v1:evil:fast:%09d", begin+pageSize-1)}
		},
		"more than asked": func(q *csi.ListVolumesRequest) *csi.ListVolumesResponse {
			return &csi.ListVolumesResponse{Entries: entries(0, int(q.GetMaxEntries())+1)}
		},
	} {
		calls.Store(0)
		r, _ := evilRouter(t, lies{"ListVolumes": func(q any) (any, error) {
			a := lie(q.(*csi.ListVolumesRequest))
			calls.Add(1)
			return a, nil
		}})
		var trailer metadata.MD
		a, err := serve(t, r).ListVolumes(t.Context(), &csi.ListVolumesRequest{}, grpc.Trailer(&trailer))
		if err != nil || len(a.GetEntries()) != 3 || !slices.Equal(trailer.Get(callmeta.PartialKey), []string{"evil"}) {
			t.Errorf("%s: %d entries, %v, %v", what, len(a.GetEntries()), trailer, err)
		}
		if n := calls.Load(); n > maxEntries/pageSize+1 {
			t.Errorf("%s: %d calls", what, n)
		}
	}
}

// TestWitness_refusesLargeAnswers: the router does not read an answer that is
// larger than any honest answer.
func TestWitness_refusesLargeAnswers(t *testing.T) {
	padded := func(m proto.Message, bytes int) func(any) (any, error) {
		b := protowire.AppendTag(nil, 1000, protowire.BytesType)
		m.ProtoReflect().SetUnknown(protowire.AppendBytes(b, make([]byte, bytes)))
		return says(m)
	}
	r, _ := evilRouter(t, lies{
		"GetCapacity":   padded(&csi.GetCapacityResponse{}, 128<<10),
		"ListVolumes":   padded(&csi.ListVolumesResponse{}, 2<<20),
		"ListSnapshots": padded(&csi.ListSnapshotsResponse{NextToken: "v1:evil:fast:x"}, 2<<20),
		"GetSnapshot":   func(any) (any, error) { return nil, errors.New(strings.Repeat("x", 1<<20)) },
		"DeleteVolume":  func(any) (any, error) { return nil, unavailable("%s", strings.Repeat("ä", 2000)) },
	})
	_, err := r.GetCapacity(t.Context(), &csi.GetCapacityRequest{AccessibleTopology: on("evil")[0]})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "node evil") {
		t.Errorf("room: %v", err)
	}
	if a, err := r.ListVolumes(t.Context(), &csi.ListVolumesRequest{}); err != nil || len(a.GetEntries()) != 3 {
		t.Errorf("list: %d entries, %v", len(a.GetEntries()), err)
	}
	_, err = r.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{SourceVolumeId: loot})
	wantCode(t, "the snapshots of a volume", err, codes.Internal)
	_, err = r.GetSnapshot(t.Context(), &csi.GetSnapshotRequest{SnapshotId: loot})
	if err == nil || len(err.Error()) > 4096 {
		t.Errorf("an error of %d bytes", len(fmt.Sprint(err)))
	}
	_, err = r.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: loot})
	if wantCode(t, "delete", err, codes.Unavailable); len(err.Error()) > 4096 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

// TestWitness_knowsEveryAnswer: the witness checks the answer of every method
// of the Controller service, also of methods that CSI adds.
func TestWitness_knowsEveryAnswer(t *testing.T) {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName("csi.v1.Controller")
	if err != nil {
		t.Fatal(err)
	}
	methods := d.(protoreflect.ServiceDescriptor).Methods()
	for i := range methods.Len() {
		message := func(m protoreflect.MessageDescriptor) proto.Message {
			kind, err := protoregistry.GlobalTypes.FindMessageByName(m.FullName())
			if err != nil {
				t.Fatal(err)
			}
			return kind.New().Interface()
		}
		m := methods.Get(i)
		if err := (witness{"n", "n"}).check(t.Context(), message(m.Input()), message(m.Output())); errors.Is(err, errUnknownAnswer) {
			t.Errorf("%s: %v", m.Name(), err)
		}
	}
}
