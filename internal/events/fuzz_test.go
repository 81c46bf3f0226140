package events

import (
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/reports"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// FuzzHappening: a node that an attacker has taken over reports anything. The report is
// refused, or it is about that node, and its reason, message and time are such as the
// API server takes.
func FuzzHappening(f *testing.F) {
	for _, h := range []*roleapi.Happening{
		{Kind: roleapi.Happening_KIND_VOLUME, Id: "v1:worker-1:fast:pvc-1", Reason: "SnapshotLost", Message: "a message", Epoch: "e"},
		{Kind: roleapi.Happening_KIND_POOL, Id: "fast", Reason: "\x00", Message: "\n\u2028"},
		{Kind: roleapi.Happening_KIND_SNAPSHOT, Id: "v1:worker-2:fast:pvc-1"},
	} {
		b, err := proto.Marshal(h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var h roleapi.Happening
		if len(wire) > maxHappening || proto.Unmarshal(wire, &h) != nil {
			return
		}
		if at := when(&h); at.After(time.Now().Add(maxSkew+time.Minute)) || at.Year() < 2000 {
			t.Errorf("at %v", at)
		}
		reason, message := reports.Listed(h.GetReason(), reports.Bounded(h.GetMessage()))
		message = reports.Bounded(message)
		if len(message) > reports.MaxMessage || !utf8.ValidString(message) || reason == "" || len(reason) > 128 {
			t.Errorf("%q: %q", reason, message)
		}
		for _, r := range message {
			if unicode.IsControl(r) {
				t.Errorf("%q has control characters", message)
			}
		}
		if own("worker-1", &h) != nil {
			return
		}
		if i, ok := handle.Parse(h.GetId()); h.GetKind() != roleapi.Happening_KIND_POOL && (!ok || i.Node != "worker-1") || len(h.GetEpoch()) > maxEpoch {
			t.Errorf("accepted %v", &h)
		}
	})
}
