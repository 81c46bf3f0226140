package events

import (
	"fmt"
	"time"

	"k8s.io/client-go/util/flowcontrol"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// Limits of a node's reports. A node that somebody has taken over reports whatever
// they like, as often as they can.
const (
	maxHappening = 16 << 10 // bytes; an honest node sends one and a half KiB at most
	maxHeaders   = 16 << 10 // bytes of gRPC metadata
	window       = 64 << 10 // bytes that a node may send before they are read
	maxEpoch     = 64       // bytes
	maxSkew      = 24 * time.Hour
)

// How fast Events are made for a node: so many that wait when it is found, as
// after an outage, and then so many in a second. The node keeps the others for
// so long. Variables for the tests.
var (
	burst         = 100
	rate  float32 = 1.0 / 3
)

// limit returns the limiter of a node. It stays when the node goes and comes
// back. The caller holds the lock.
func (e *Emitter) limit(node string) flowcontrol.RateLimiter {
	l := e.limits[node]
	if l == nil {
		l = flowcontrol.NewTokenBucketRateLimiter(rate, burst)
		e.limits[node] = l
	}
	return l
}

// own checks that a happening is about something of the node that reports it.
func own(node string, h *roleapi.Happening) error {
	short, id := handle.ShortNode(node), h.GetId()
	switch h.GetKind() {
	case roleapi.Happening_KIND_VOLUME, roleapi.Happening_KIND_SNAPSHOT:
	case roleapi.Happening_KIND_POOL:
		id = handle.ID{Node: short, Pool: id, LV: "any"}.String()
	default:
		return fmt.Errorf("kind %d is none", h.GetKind())
	}
	if i, ok := handle.Parse(id); !ok || i.Node != short {
		return fmt.Errorf("%.200q is not one of this node", h.GetId())
	}
	if len(h.GetEpoch()) > maxEpoch {
		return fmt.Errorf("an epoch of %d bytes", len(h.GetEpoch()))
	}
	return nil
}

// when returns the time of a happening: now, if what the node says is not possible.
func when(h *roleapi.Happening) time.Time {
	now, at := time.Now(), h.GetTime()
	if at.CheckValid() != nil || at.AsTime().After(now.Add(maxSkew)) || at.AsTime().Year() < 2000 {
		return now
	}
	return at.AsTime()
}
