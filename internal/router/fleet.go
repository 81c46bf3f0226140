package router

import (
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// Node is a node that runs the node role, or may have run it.
type Node struct {
	Name      string   // full
	Instance  string   // of the process that answers there: another one is another connection
	Addresses []string // host:port of the pod if it is ready, the first that answers is used; none while it is not
	// NotReady is since when Kubernetes has the pod for not ready; zero if it
	// is ready, or if there is no pod.
	NotReady time.Time
	// Silent is a time since when no pod there was ready, by the clocks of
	// Kubernetes' control plane; zero if one is, or if nothing tells.
	Silent time.Time
	// NoPods is why the node takes no new pods, PickyPods why it takes only
	// pods that tolerate a taint; "" if that is not so.
	NoPods, PickyPods string
}

// fleet is what the router knows of the nodes, and its connections to them.
type fleet struct {
	credentials func(node string) credentials.TransportCredentials
	now         func() time.Time

	mu      sync.Mutex
	members map[string]*member // by the node's short name; nil before the first set
	since   time.Time          // of the first set
	closed  bool
}

// member is a node of the fleet.
type member struct {
	Node
	short string
	link  *link     // nil while the node is not ready
	down  time.Time // since when it is not ready, as far as this process saw; zero if it is
	left  bool      // it was ready until then, as this process saw
}

// picky is 1 for a node that takes only pods that tolerate a taint, else 0.
func (m member) picky() int {
	if m.PickyPods != "" {
		return 1
	}
	return 0
}

func newFleet(credentials func(string) credentials.TransportCredentials, now func() time.Time) *fleet {
	return &fleet{credentials: credentials, now: now}
}

// set replaces the nodes. Connections stay where the same process still answers
// at the same addresses.
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
	for _, n := range nodes {
		short := handle.ShortNode(n.Name)
		if other, taken := next[short]; taken {
			klog.ErrorS(nil, "Two nodes have the same short name, the second is left out", "node", other.Name, "second", n.Name, "short", short)
			continue
		}
		m := &member{Node: n, short: short}
		before := f.members[short]
		if before != nil && before.Name == n.Name {
			m.down, m.left = before.down, before.left
			if before.Instance == n.Instance && slices.Equal(before.Addresses, n.Addresses) {
				m.link, before.link = before.link, nil
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
		if m.link != nil {
			m.link.retire()
		}
	}
	f.members = next
}

func (f *fleet) close() {
	f.set(nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
}

// known tells whether the nodes are known at all.
func (f *fleet) known() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members != nil
}

// all returns the nodes, sorted by short name.
func (f *fleet) all() []member {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]member, 0, len(f.members))
	for _, m := range f.members {
		list = append(list, *m)
	}
	slices.SortFunc(list, func(a, b member) int { return strings.Compare(a.short, b.short) })
	return list
}

// ready returns the nodes that are ready, sorted by short name.
func (f *fleet) ready() []member {
	return slices.DeleteFunc(f.all(), func(m member) bool { return m.link == nil })
}

// silent returns a time since when no controller can have sent the node a
// request; zero if nothing tells. It is the control plane's date, or an earlier
// one that this process saw: of the pod, whose own date counts only from then on
// because the node's clock told it; or that there is none. No date counts that is
// older than what this process saw answer: it may be of another pod.
func (m member) silent() time.Time {
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
	case m.NotReady.IsZero() && m.Instance != "": // its only pod is about to end, or has no address yet
		return told
	}
	if !told.IsZero() && told.Before(seen) {
		return told
	}
	return seen
}

// missing returns since when no driver of that node was ready, as Kubernetes or
// this process saw it; zero if one is, or if the nodes are not known yet.
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

// use returns the connection to a node and a function that ends its use.
// UNAVAILABLE, naming the node, if it is not ready.
func (f *fleet) use(short string) (m member, release func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x, known := f.members[short]
	switch {
	case f.members == nil:
		return member{}, nil, unavailable("node %s: it is not known yet which nodes there are", short)
	case !known:
		return member{}, nil, unavailable("node %s: no pod of the driver is there", short)
	case x.link == nil:
		return member{}, nil, unavailable("node %s: the driver is not ready there since %s", x.Name, x.down.UTC().Format(time.RFC3339))
	}
	x.link.hold()
	return *x, x.link.release, nil
}
