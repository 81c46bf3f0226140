package events

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// TestEmitter_forgedReports: a report about another node makes no Event, and an
// Event has only reasons that the controller knows.
func TestEmitter_forgedReports(t *testing.T) {
	o, l := cluster(), reports.NewLog()
	address, _ := serve(t, l, "")
	tell := func(kind roleapi.Happening_Kind, id, reason string) {
		l.Add(t.Context(), reports.Happening{Kind: kind, ID: id, Reason: reason, Message: "delete\nthe claim", Warning: true})
	}
	tell(roleapi.Happening_KIND_VOLUME, volume, "ForkLost")
	tell(roleapi.Happening_KIND_SNAPSHOT, snapshot, "SnapshotLost")
	tell(roleapi.Happening_KIND_VOLUME, "anything", "ForkLost")
	tell(roleapi.Happening_KIND_POOL, "fast:"+volume, "PoolFull")
	tell(roleapi.Happening_KIND_POOL, strings.Repeat("p", 100), "PoolFull")
	tell(roleapi.Happening_KIND_UNSPECIFIED, "v1:evil:fast:x", "PoolFull")
	tell(roleapi.Happening_Kind(7), "v1:evil:fast:x", "PoolFull")
	tell(roleapi.Happening_KIND_POOL, "fast", strings.Repeat("R", 5000))
	emitter(t, o, Node{Name: "evil", Instance: "1", Addresses: []string{address}})
	expect(t, o, "Node /evil Warning OtherCondition: pool fast: "+strings.Repeat("R", 1010)+"...")
	tell(roleapi.Happening_KIND_POOL, "fast", "PoolFull")
	expect(t, o, "Node /evil Warning OtherCondition: pool fast: "+strings.Repeat("R", 1010)+"...", "Node /evil Warning PoolFull: pool fast: delete the claim")
}

// TestEmitter_flood: a node that reports without end gets only so many Events,
// even if it breaks the stream or restarts, and delays no other node.
func TestEmitter_flood(t *testing.T) {
	o, noise, l := cluster(), reports.NewLog(), reports.NewLog()
	flood, stop := serve(t, noise, "")
	honest, _ := serve(t, l, "")
	for range 3 * burst {
		noise.Add(t.Context(), reports.Happening{Kind: roleapi.Happening_KIND_POOL, ID: "fast", Reason: "PoolFull"})
	}
	l.Add(t.Context(), low)
	began := time.Now()
	e := emitter(t, o, Node{Name: "evil", Instance: "1", Addresses: []string{flood}}, Node{Name: "n", Addresses: []string{honest}})
	count := func() (evil int) {
		for _, v := range events(t, o) {
			if strings.Contains(v, "/evil ") {
				evil++
			}
		}
		return evil
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("not in time:", what)
			}
		}
	}
	eventually("the honest node's event", func() bool { return slices.Contains(events(t, o), lowEvent) })
	eventually("the flood's first events", func() bool { return count() >= burst })
	stop()
	again, _ := serve(t, noise, "")
	e.SetNodes(nil)
	e.SetNodes([]Node{{Name: "evil", Instance: "2", Addresses: []string{again}}})
	time.Sleep(300 * time.Millisecond)
	if n, most := count(), burst+int(time.Since(began).Seconds()*float64(rate))+1; n > most {
		t.Errorf("%d events, at most %d are due", n, most)
	}
}

// TestEmitter_largeReport: a message that is too large ends the stream and is
// not kept.
func TestEmitter_largeReport(t *testing.T) {
	o, l := cluster(), reports.NewLog()
	address, _ := serve(t, l, "")
	l.Add(t.Context(), reports.Happening{Kind: roleapi.Happening_KIND_POOL, ID: "fast", Reason: strings.Repeat("R", 1<<20)})
	e := emitter(t, o)
	got, err := e.stream(t.Context(), "evil", address, e.limit("evil"), &reminder{})
	if got || err == nil || !strings.Contains(err.Error(), "larger than max") {
		t.Errorf("%t, %v", got, err)
	}
	if got := events(t, o); len(got) != 0 {
		t.Errorf("%.300q", got)
	}
}

// TestWhen_impossibleTime: an impossible time is replaced, because the API
// server would always refuse the Event.
func TestWhen_impossibleTime(t *testing.T) {
	now := time.Now()
	for _, at := range []*timestamppb.Timestamp{nil, {Seconds: 1 << 62}, {Nanos: -1}, timestamppb.New(now.AddDate(5000, 0, 0)), timestamppb.New(now.AddDate(-50, 0, 0))} {
		if got := when(&roleapi.Happening{Time: at}); got.Sub(now).Abs() > time.Minute {
			t.Errorf("%v becomes %v", at, got)
		}
		if _, err := (metav1.NewTime(when(&roleapi.Happening{Time: at}))).MarshalJSON(); err != nil {
			t.Error(err)
		}
	}
	if got := when(&roleapi.Happening{Time: timestamppb.New(now.Add(-time.Hour))}); !got.Equal(now.Add(-time.Hour)) {
		t.Errorf("an honest time becomes %v", got)
	}
}
