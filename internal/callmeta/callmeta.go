// Package callmeta has the gRPC metadata that the controller role adds to a CSI request
// for the node role. The API between the roles stays CSI, and a request without this
// metadata is an ordinary CSI request.
package callmeta

import (
	"context"

	"google.golang.org/grpc/metadata"
)

const (
	// NodeKey is for the full name of the node for which a request is meant.
	NodeKey = "dmsnap-node"
	// PartialKey is in the trailer of an unfiltered list, once for each node that did
	// not answer, with the node's full name.
	PartialKey = "dmsnap-partial"

	onlyExistingKey = "dmsnap-only-existing"
	reservationKey  = "dmsnap-reservation"
	ephemeralKey    = "dmsnap-ephemeral"
)

// Conditions limit what a node may do for a CreateVolume or CreateSnapshot request.
type Conditions struct {
	// OnlyExisting makes the node create nothing. It answers with the volume or snapshot
	// that already has the request's name, or with NOT_FOUND.
	OnlyExisting bool
	// Reservation reserves the request's volume name; it has the form "<who>/<which>".
	// With OnlyExisting the node takes the reservation if it does not have the name.
	// Without OnlyExisting the node creates the volume only if this is the last
	// reservation that it took for the name. See Reservations.
	Reservation string
	// Ephemeral is true if the volume's claim ends with the pod that owns it. The node
	// makes transient volumes only for such claims.
	Ephemeral bool
}

// For returns a context for a call to the node with that full name.
func For(ctx context.Context, node string, c Conditions) context.Context {
	pairs := []string{NodeKey, node}
	if c.OnlyExisting {
		pairs = append(pairs, onlyExistingKey, "true")
	}
	if c.Reservation != "" {
		pairs = append(pairs, reservationKey, c.Reservation)
	}
	if c.Ephemeral {
		pairs = append(pairs, ephemeralKey, "true")
	}
	return metadata.NewOutgoingContext(ctx, metadata.Pairs(pairs...))
}

// Of returns the conditions of a request, from the context in which a server handles it.
func Of(ctx context.Context) Conditions {
	md, _ := metadata.FromIncomingContext(ctx)
	return Conditions{
		OnlyExisting: last(md.Get(onlyExistingKey)) == "true",
		Reservation:  last(md.Get(reservationKey)),
		Ephemeral:    last(md.Get(ephemeralKey)) == "true",
	}
}

// Node returns the full name of the node for which a request is meant, from the context
// in which a server handles it; "" if the request names no node.
func Node(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	return last(md.Get(NodeKey))
}

func last(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}
