package events

import (
	"strings"
	"testing"
	"time"
)

// TestWatchLabels_missingLabel: a ready node without its label makes one Event
// after a while, and a node that gets its label in time makes none.
func TestWatchLabels_missingLabel(t *testing.T) {
	labelPause = 300 * time.Millisecond
	o := cluster()
	node := func(name, instance, wrong string) Node {
		return Node{Name: name, Instance: instance, Addresses: []string{"127.0.0.1:1"}, Unlabelled: wrong}
	}
	e := emitter(t, o, node("n1", "1", "the node has no label x"), node("n2", "1", "the node has no label x"), Node{Name: "n3", Unlabelled: "not ready"})
	e.SetNodes([]Node{node("n1", "1", "the node has no label x"), node("n2", "1", "")})
	for end := time.Now().Add(20 * time.Second); len(events(t, o)) == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no event")
		}
	}
	e.SetNodes([]Node{node("n1", "1", "the node has no label x"), node("n2", "1", "")})
	time.Sleep(2 * labelPause)
	got := events(t, o)
	if len(got) != 1 || !strings.HasPrefix(got[0], "Node /n1 Warning TopologyLabelMissing: the node has no label x, so ") {
		t.Errorf("%q", got)
	}
}
