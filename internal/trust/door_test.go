package trust

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
)

// closedWithin reports whether the other side closes a connection in that time.
func closedWithin(t *testing.T, c net.Conn, limit time.Duration) bool {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	_, err := io.Copy(io.Discard, c)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

func connections(t *testing.T, address string, count int) (conns []net.Conn) {
	t.Helper()
	for range count {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns = append(conns, c)
	}
	return conns
}

// TestDoor_silentConnections: connections on which nobody speaks take little
// memory and end, and a controller gets through meanwhile.
func TestDoor_silentConnections(t *testing.T) {
	c := controller(t, fake.NewClientset(), true)
	n := serveNode(t, NodeOptions{Name: "node-a"}, plugin{})
	n.trust(t, c)
	if err := n.enrol(t, c, "node-a", 0); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	conns := connections(t, n.address, 1000)
	if err := probe(t, dial(t, n.address, c.DialOptions("node-a")...)); err != nil {
		t.Errorf("the controller: %v", err)
	}
	if more := runtime.NumGoroutine() - before; more > 4*maxHandshakes {
		t.Errorf("%d goroutines more", more)
	}
	if !closedWithin(t, conns[0], handshakeLimit/2) {
		t.Error("the oldest is not closed for the others")
	}
	if !closedWithin(t, conns[999], 4*handshakeLimit) {
		t.Error("the newest is not closed in time")
	}
}

// TestDoor_connectionsOfControllers: a controller's certificate opens only a
// limited number of connections.
func TestDoor_connectionsOfControllers(t *testing.T) {
	waiting, inside := connections(t, listener(t), maxHandshakes+1), connections(t, listener(t), maxControllers+1)
	d := newDoor(insecure.NewCredentials())
	for _, c := range waiting {
		d.waiting.Add(c)
	}
	open := func(c net.Conn) bool { return c.SetDeadline(time.Time{}) == nil }
	if open(waiting[0]) || !open(waiting[1]) {
		t.Errorf("waiting: open are %t, %t, not the newest", open(waiting[0]), open(waiting[1]))
	}
	var through []net.Conn
	for _, c := range inside {
		conn, _, err := d.ServerHandshake(c)
		if err != nil {
			t.Fatal(err)
		}
		through = append(through, conn)
	}
	if open(inside[0]) || !open(inside[1]) {
		t.Errorf("inside: open are %t, %t, not the newest", open(inside[0]), open(inside[1]))
	}
	if err := through[1].Close(); err != nil {
		t.Fatal(err)
	}
	more := connections(t, listener(t), 1)[0]
	if _, _, err := d.ServerHandshake(more); err != nil || !open(inside[2]) {
		t.Errorf("a closed connection still counts: %v", err)
	}
}

// listener accepts connections and keeps them open.
func listener(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// TestDoor_largeMetadata: a call with too much metadata is refused.
func TestDoor_largeMetadata(t *testing.T) {
	c := controller(t, fake.NewClientset(), true)
	n := serveNode(t, NodeOptions{Name: "node-a"}, plugin{})
	n.trust(t, c)
	if err := n.enrol(t, c, "node-a", 0); err != nil {
		t.Fatal(err)
	}
	client := dial(t, n.address, c.DialOptions("node-a")...)
	ctx := callmeta.For(t.Context(), "node-a", callmeta.Conditions{Reservation: strings.Repeat("x", 2*maxHeaders)})
	if _, err := client.Probe(ctx, nil); err == nil {
		t.Error("it was taken")
	}
	if err := probe(t, client); err != nil {
		t.Error(err)
	}
}
