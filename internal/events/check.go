package events

import (
	"fmt"
	"time"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// Limits of a node's reports. A node that an attacker has taken over may report
// anything, as often as it can.
const (
	maxHappening = 16 << 10 // bytes; an honest node sends one and a half KiB at most
	maxHeaders   = 16 << 10 // bytes of gRPC metadata
	window       = 64 << 10 // bytes that a node may send before the controller reads them
	maxEpoch     = 64       // bytes
	maxSkew      = 24 * time.Hour
)

// How fast the controller creates Events for a node: burst Events immediately, such
// as those that wait after an outage, and then rate Events per second. The node keeps
// the other reports meanwhile. Variables for the tests.
var (
	burst         = 100
	rate  float32 = 1.0 / 3
)

// limit returns the limiter of a node. The limiter stays when the node goes and comes
// back. The caller holds e.mu.
func (e *Emitter) limit(node string) flowcontrol.RateLimiter {
	l := e.limits[node]
	if l == nil {
		l = flowcontrol.NewTokenBucketRateLimiter(rate, burst)
		e.limits[node] = l
	}
	return l
}

// own checks that a report is about a volume, snapshot or pool of the node that sent
// it.
func own(node string, h *roleapi.Happening) error {
	short, id := handle.ShortNode(node), h.GetId()
	switch h.GetKind() {
	case roleapi.Happening_KIND_VOLUME, roleapi.Happening_KIND_SNAPSHOT:
	case roleapi.Happening_KIND_POOL:
		id = handle.ID{Node: short, Pool: id, LV: "any"}.String()
	default:
		return fmt.Errorf("kind %d is unknown", h.GetKind())
	}
	if i, ok := handle.Parse(id); !ok || i.Node != short {
		return fmt.Errorf("%.200q does not belong to this node", h.GetId())
	}
	if len(h.GetEpoch()) > maxEpoch {
		return fmt.Errorf("its epoch has %d bytes, the limit is %d", len(h.GetEpoch()), maxEpoch)
	}
	return nil
}

// when returns the time of a happening, and now if the node's time is impossible.
func when(h *roleapi.Happening) time.Time {
	now, at := time.Now(), h.GetTime()
	if at.CheckValid() != nil || at.AsTime().After(now.Add(maxSkew)) || at.AsTime().Year() < 2000 {
		return now
	}
	return at.AsTime()
}
