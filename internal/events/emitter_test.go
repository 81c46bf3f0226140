package events

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

func TestMain(m *testing.M) {
	firstRetry, lastRetry = 5*time.Millisecond, 20*time.Millisecond
	goleak.VerifyTestMain(m)
}

// serve serves a log like a node, at an address or, if address is "", at a free one.
func serve(t *testing.T, l *reports.Log, address string) (_ string, stop func()) {
	t.Helper()
	if address == "" {
		address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	roleapi.RegisterReportsServer(server, l)
	var done sync.WaitGroup
	done.Go(func() { _ = server.Serve(listener) })
	stop = func() { server.Stop(); done.Wait() }
	t.Cleanup(stop)
	return listener.Addr().String(), stop
}

const (
	volume   = "v1:n:fast:pvc"
	snapshot = "v1:n:fast:snap"
)

// cluster returns an API server with a claim pvc and a snapshot snap on node n.
func cluster() Options {
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: handle.Driver, VolumeHandle: volume}},
		ClaimRef:               &corev1.ObjectReference{Namespace: "ns", Name: "pvc", UID: "pvc-uid"},
	}}
	theirs := pv.DeepCopy()
	theirs.Name, theirs.Spec.CSI.Driver, theirs.Spec.ClaimRef.Name = "theirs", "other.example", "theirs"
	content := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": map[string]any{"name": "content"},
		"spec": map[string]any{
			"driver": handle.Driver, "volumeSnapshotRef": map[string]any{"namespace": "ns", "name": "snap", "uid": "snap-uid"},
		},
		"status": map[string]any{"snapshotHandle": snapshot},
	}}
	return Options{
		Client: fake.NewClientset(pv, theirs),
		Dynamic: dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
			map[schema.GroupVersionResource]string{contents: "VolumeSnapshotContentList"}, content),
		Dial: func(string) []grpc.DialOption {
			return []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
		},
	}
}

func emitter(t *testing.T, o Options, nodes ...Node) *Emitter {
	t.Helper()
	e := New(context.Background(), o)
	t.Cleanup(e.Close)
	e.SetNodes(nodes)
	return e
}

// events returns the sorted Events of the API server, as "Kind namespace/name Type Reason: message".
func events(t *testing.T, o Options) []string {
	t.Helper()
	list, err := o.Client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, v := range list.Items {
		i := v.InvolvedObject
		all = append(all, fmt.Sprintf("%s %s/%s %s %s: %s", i.Kind, i.Namespace, i.Name, v.Type, v.Reason, v.Message))
	}
	slices.Sort(all)
	return all
}

func expect(t *testing.T, o Options, want ...string) {
	t.Helper()
	var got []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if got = events(t, o); len(got) >= len(want) {
			break
		}
	}
	time.Sleep(50 * time.Millisecond) // an Event too many would appear
	if got = events(t, o); !slices.Equal(got, want) {
		t.Errorf("events:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

var (
	lost = reports.Happening{Kind: roleapi.Happening_KIND_SNAPSHOT, ID: snapshot, Reason: "SnapshotLost", Message: "gone", Warning: true, Lasting: true}
	low  = reports.Happening{Kind: roleapi.Happening_KIND_VOLUME, ID: volume, Reason: "SnapshotSpaceLow", Message: "90%", Warning: true}
	back = reports.Happening{Kind: roleapi.Happening_KIND_POOL, ID: "fast", Reason: "SpaceReclaimed", Message: "free again"}
)

const (
	lostEvent = "VolumeSnapshot ns/snap Warning SnapshotLost: gone"
	lowEvent  = "PersistentVolumeClaim ns/pvc Warning SnapshotSpaceLow: 90%"
	backEvent = "Node /n Normal SpaceReclaimed: pool fast: free again"
)

// TestEmitter_events: happenings become Events of the claim, the VolumeSnapshot
// or the node that they are about.
func TestEmitter_events(t *testing.T) {
	o, l := cluster(), reports.NewLog()
	l.Add(t.Context(), lost) // before anybody listens
	address, _ := serve(t, l, "")
	emitter(t, o, Node{Name: "n", Addresses: []string{"127.0.0.1:1", address}}, Node{Name: "silent"})
	expect(t, o, lostEvent)
	l.Add(t.Context(), low)
	l.Add(t.Context(), back)
	l.Add(t.Context(), reports.Happening{Kind: roleapi.Happening_KIND_VOLUME, ID: "v1:n:fast:pvc2", Reason: "SourceLost", Message: strings.Repeat("ä", 600)})
	expect(t, o, "Node /n Normal SourceLost: v1:n:fast:pvc2: "+strings.Repeat("ä", 502)+"...", backEvent, lowEvent, lostEvent)
}

// TestEmitter_once: a broken connection, a restarted node and a second
// controller neither lose nor repeat an Event.
func TestEmitter_once(t *testing.T) {
	o, l := cluster(), reports.NewLog()
	address, stop := serve(t, l, "")
	node := Node{Name: "n", Instance: "1", Addresses: []string{address}}
	first := emitter(t, o, node)
	l.Add(t.Context(), lost)
	l.Add(t.Context(), low)
	expect(t, o, lowEvent, lostEvent)
	stop()
	l.Add(t.Context(), back)
	_, stop = serve(t, l, address)
	expect(t, o, backEvent, lowEvent, lostEvent)

	// All happenings are confirmed, so another controller receives none.
	first.Close()
	second := emitter(t, o, node)
	expect(t, o, backEvent, lowEvent, lostEvent)
	third := emitter(t, o, node) // two at the same time
	l.Add(t.Context(), low)
	expect(t, o, backEvent, lowEvent, lowEvent, lostEvent)

	// In a new epoch the lasting happening has its Event already; the other is new.
	stop()
	l = reports.NewLog()
	l.Add(t.Context(), lost)
	l.Add(t.Context(), low)
	address, _ = serve(t, l, "")
	for _, e := range []*Emitter{second, third} {
		e.SetNodes([]Node{{Name: "n", Instance: "2", Addresses: []string{address}}})
	}
	expect(t, o, backEvent, lowEvent, lowEvent, lowEvent, lostEvent)
	for _, e := range []*Emitter{second, third} {
		e.SetNodes(nil)
		e.running.Wait()
	}
	l.Add(t.Context(), back)
	expect(t, o, backEvent, lowEvent, lowEvent, lowEvent, lostEvent)
}

// TestEmitter_deedsOnce: a deed makes one Event, however often the node's
// process starts, and the next deed another.
func TestEmitter_deedsOnce(t *testing.T) {
	o := cluster()
	deed := func(message string) reports.Happening {
		return reports.Happening{Kind: roleapi.Happening_KIND_VOLUME, ID: volume, Reason: "RolledBack", Message: message, Lasting: true}
	}
	const first, second = "10:00: root rolled back", "11:00: root rolled back"
	for i, deeds := range [][]string{{first}, {first}, {first, second}} {
		l := reports.NewLog()
		for _, d := range deeds {
			l.Add(t.Context(), deed(d))
		}
		address, stop := serve(t, l, "")
		e := emitter(t, o, Node{Name: "n", Instance: fmt.Sprint(i), Addresses: []string{address}})
		want := []string{"PersistentVolumeClaim ns/pvc Normal RolledBack: " + first}
		if i == 2 {
			want = append(want, "PersistentVolumeClaim ns/pvc Normal RolledBack: "+second)
		}
		expect(t, o, want...)
		e.Close()
		stop()
	}
}

// TestEmitter_apiServerFails: an Event is retried while the API server fails,
// and dropped if the API server refuses it for good.
func TestEmitter_apiServerFails(t *testing.T) {
	o, l := cluster(), reports.NewLog()
	var attempts atomic.Int32
	o.Client.(*fake.Clientset).PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
		switch attempts.Add(1) {
		case 1, 2:
			return true, nil, errors.New("the API server is away")
		case 3:
			return true, nil, apierrors.NewInvalid(schema.GroupKind{Kind: "Event"}, "e", nil)
		}
		return false, nil, nil
	})
	// The cluster has no type VolumeSnapshot.
	o.Dynamic.(*dynamicfake.FakeDynamicClient).PrependReactor("list", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(contents.GroupResource(), "")
	})
	address, _ := serve(t, l, "")
	l.Add(t.Context(), low) // tried three times, then dropped
	l.Add(t.Context(), lost)
	emitter(t, o, Node{Name: "n", Addresses: []string{address}})
	expect(t, o, "Node /n Warning SnapshotLost: v1:n:fast:snap: gone")
}

// TestSpread_ofPauses: pauses of one length end at different times, and none is longer.
func TestSpread_ofPauses(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 100 {
		p := spread(time.Minute)
		if p < 30*time.Second || p > time.Minute {
			t.Fatal(p)
		}
		seen[p] = true
	}
	if len(seen) < 90 || spread(0) != 0 {
		t.Errorf("%d different pauses", len(seen))
	}
}
