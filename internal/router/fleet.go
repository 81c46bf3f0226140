package router

import (
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// Node is a node that runs the node role, or may have run it.
type Node struct {
	Name      string   // full
	Instance  string   // of the process that answers there; a new process needs a new connection
	Addresses []string // host:port of the pod, in the order in which they are tried; none while the pod is not ready
	// NotReady is the time since which Kubernetes considers the pod not ready;
	// zero if the pod is ready, or if there is no pod.
	NotReady time.Time
	// Silent is a time since which no pod there was ready, by the clocks of
	// Kubernetes' control plane; zero if a pod is ready, or if the time is unknown.
	Silent time.Time
	// NoPods is the reason why the node takes no new pods, PickyPods the reason why
	// it takes only pods that tolerate a taint. Each is "" if there is no such reason.
	NoPods, PickyPods string
}

// fleet has the nodes that the router knows, and its connections to them. It is
// safe for concurrent use.
type fleet struct {
	credentials func(node string) credentials.TransportCredentials
	now         func() time.Time

	mu      sync.Mutex
	members map[string]*member // by the node's short name; nil before the first set
	sorted  []*member          // the same, by short name; a set replaces the whole slice
	usable  []*member          // the ready members of sorted, in the same order; a set replaces the whole slice
	since   time.Time          // the time of the first set
	closed  bool
}

// member is a node of the fleet. A member does not change: a set makes new ones.
type member struct {
	Node
	short string
	link  *link     // nil while the node is not ready
	down  time.Time // when this process first saw it not ready; zero if it is ready
	left  bool      // this process saw it ready until down
}

// picky returns 1 for a node that takes only pods that tolerate a taint, else 0.
func (m *member) picky() int {
	if m.PickyPods != "" {
		return 1
	}
	return 0
}

func newFleet(credentials func(string) credentials.TransportCredentials, now func() time.Time) *fleet {
	return &fleet{credentials: credentials, now: now}
}

// set replaces the nodes. It keeps the connections to nodes where the same process
// still answers at the same addresses.
func (f *fleet) set(nodes []Node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	now := f.now()
	if f.members == nil {
		f.since = now
	}
	next := make(map[string]*member, len(nodes))
	kept := map[*link]bool{}
	for _, n := range nodes {
		short := handle.ShortNode(n.Name)
		if other, taken := next[short]; taken {
			klog.ErrorS(nil, "Two nodes have the same short name; ignoring the second", "node", other.Name, "second", n.Name, "short", short)
			continue
		}
		m := &member{Node: n, short: short}
		before := f.members[short]
		if before != nil && before.Name == n.Name {
			m.down, m.left = before.down, before.left
			if before.Instance == n.Instance && slices.Equal(before.Addresses, n.Addresses) {
				m.link = before.link
				kept[m.link] = true
			}
		}
		switch {
		case len(n.Addresses) > 0:
			m.down = time.Time{}
			if m.link == nil {
				m.link = f.dial(n)
			}
		case m.down.IsZero():
			m.down, m.left = now, before != nil && before.Name == n.Name
		}
		next[short] = m
	}
	for _, m := range f.members {
		if m.link != nil && !kept[m.link] {
			m.link.retire()
		}
	}
	f.members, f.sorted, f.usable = next, make([]*member, 0, len(next)), nil
	for _, short := range slices.Sorted(maps.Keys(next)) {
		f.sorted = append(f.sorted, next[short])
		if next[short].link != nil {
			f.usable = append(f.usable, next[short])
		}
	}
}

func (f *fleet) close() {
	f.set(nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
}

// known reports whether set was called.
func (f *fleet) known() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members != nil
}

// all returns the nodes, sorted by short name. All callers get the same slice and
// must not change it: with thousands of nodes, a copy for each call is most of what
// the call costs.
func (f *fleet) all() []*member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sorted
}

// find returns the node with that short name; nil if it is not known.
func (f *fleet) find(short string) *member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members[short]
}

// ready returns the nodes that are ready, sorted by short name. The caller must not
// change the slice.
func (f *fleet) ready() []*member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.usable
}

// silent returns a time since which no controller can have sent the node a
// request; zero if the time is unknown. It is Silent, the time of Kubernetes'
// control plane, or an earlier time at which this process saw that the pod was not
// ready or gone. NotReady may come from the node's own clock, so it only makes
// that later. If this process saw the node answer after Silent, Silent may be
// about another pod, and the end of that time counts instead. While the node's only
// pod terminates or has no address yet, what this process saw does not count.
func (m *member) silent() time.Time {
	if m.link != nil {
		return time.Time{}
	}
	told, seen := m.Silent, m.down
	if m.left && !told.IsZero() && told.Before(m.down) {
		told = m.down
	}
	switch {
	case m.NotReady.After(seen):
		seen = m.NotReady
	case m.NotReady.IsZero() && m.Instance != "": // the node's only pod is terminating, or has no address yet
		return told
	}
	if !told.IsZero() && told.Before(seen) {
		return told
	}
	return seen
}

// missing returns the earliest time, of Kubernetes or of this process, since which
// the node's driver was not ready. It returns zero if the driver is ready, or if
// the nodes are not known yet.
func (f *fleet) missing(short string) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m, ok := f.members[short]; ok {
		since := m.down
		for _, t := range []time.Time{m.NotReady, m.Silent} {
			if !t.IsZero() && t.Before(since) {
				since = t
			}
		}
		return since
	}
	return f.since
}

// use returns a node with its connection. The caller calls release when it no
// longer needs the connection. Errors: UNAVAILABLE, which names the node, if the
// node is not ready.
func (f *fleet) use(short string) (m *member, release func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x, known := f.members[short]
	switch {
	case f.members == nil:
		return nil, nil, unavailable("node %s: the nodes are not known yet", short)
	case !known:
		return nil, nil, unavailable("node %s: the driver has no pod there", short)
	case x.link == nil:
		return nil, nil, unavailable("node %s: the driver has not been ready there since %s", x.Name, x.down.UTC().Format(time.RFC3339))
	}
	x.link.hold()
	return x, x.link.release, nil
}
