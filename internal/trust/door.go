package trust

import (
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/csi-dmsnap/csi-dmsnap/internal/sockets"
)

// Limits of a node's port. Anybody can open connections, but only a controller
// gets through the handshake.
const (
	handshakeLimit = 5 * time.Second
	maxHandshakes  = 128      // at the same time: one more ends the oldest
	maxControllers = 64       // connections after the handshake
	maxCalls       = 256      // at the same time, on one connection
	maxHeaders     = 16 << 10 // bytes of a call's metadata
)

// door is a server's credentials that limit the number of connections, before the
// handshake and after it.
type door struct {
	credentials.TransportCredentials
	waiting, inside *sockets.Newest
}

func newDoor(c credentials.TransportCredentials) door {
	return door{c, sockets.NewNewest(maxHandshakes), sockets.NewNewest(maxControllers)}
}

// ServerHandshake implements credentials.TransportCredentials. gRPC calls it for
// each new connection, in a goroutine of its own.
func (d door) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	d.waiting.Add(raw)
	defer d.waiting.Remove(raw)
	conn, info, err := d.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	d.inside.Add(raw)
	return &insider{Conn: conn, leave: sync.OnceFunc(func() { d.inside.Remove(raw) })}, info, nil
}

// Clone implements credentials.TransportCredentials. gRPC calls it for each server;
// the limits hold for all servers together.
func (d door) Clone() credentials.TransportCredentials {
	d.TransportCredentials = d.TransportCredentials.Clone()
	return d
}

// insider is a connection after the handshake.
type insider struct {
	net.Conn
	leave func()
}

func (i *insider) Close() error {
	i.leave()
	return i.Conn.Close()
}

// limits returns the server options that limit the resources of a peer.
func limits() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ConnectionTimeout(handshakeLimit),
		grpc.MaxConcurrentStreams(maxCalls),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: connectionGrace,
			Time: 3 * keepaliveTime, Timeout: keepaliveTime,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
	}
}
