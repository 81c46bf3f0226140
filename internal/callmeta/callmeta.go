// Package callmeta has what the controller role adds to a CSI request for
// the node role, as gRPC metadata: the same CSI API stays between them, and a
// request without any of it is an ordinary one.
package callmeta

import (
	"context"

	"google.golang.org/grpc/metadata"
)

const (
	// NodeKey is the full name of the node that a request is meant for.
	NodeKey = "dmsnap-node"
	// PartialKey is in the trailer of an unfiltered list: the full name of a
	// node that did not answer, once for each such node.
	PartialKey = "dmsnap-partial"

	onlyExistingKey = "dmsnap-only-existing"
	reservationKey  = "dmsnap-reservation"
	ephemeralKey    = "dmsnap-ephemeral"
)

// Conditions are what a node must heed before it carries out a CreateVolume or
// CreateSnapshot request.
type Conditions struct {
	// OnlyExisting: answer with what already has the request's name, as an
	// idempotent call does, or NOT_FOUND. Nothing is created.
	OnlyExisting bool
	// Reservation of the request's volume name, "<who>/<which>". With
	// OnlyExisting it is taken if the name is not found here; without, nothing
	// is created unless it is the last that was taken. See Reservations.
	Reservation string
	// Ephemeral: the claim that the volume is for ends with the pod that owns it.
	// Only for such a claim the node makes a transient volume.
	Ephemeral bool
}

// For returns a context for a call to a node.
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

// Of returns the conditions of a request that a server received.
func Of(ctx context.Context) Conditions {
	md, _ := metadata.FromIncomingContext(ctx)
	return Conditions{
		OnlyExisting: last(md.Get(onlyExistingKey)) == "true",
		Reservation:  last(md.Get(reservationKey)),
		Ephemeral:    last(md.Get(ephemeralKey)) == "true",
	}
}

// Node returns the full name of the node that a request which a server
// received is meant for; "" if it does not say.
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
