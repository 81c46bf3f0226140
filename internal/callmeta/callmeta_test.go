package callmeta

import (
	"context"
	"testing"

	"google.golang.org/grpc/metadata"
)

// received is ctx as the server sees it.
func received(ctx context.Context) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	return metadata.NewIncomingContext(context.Background(), md)
}

// TestConditions_roundTrip: conditions and the node's name survive the
// metadata, and an ordinary request has none.
func TestConditions_roundTrip(t *testing.T) {
	for _, want := range []Conditions{{}, {OnlyExisting: true}, {Reservation: "a/1"}, {OnlyExisting: true, Reservation: "a/2"}, {Ephemeral: true}} {
		ctx := received(For(t.Context(), "node-1.example", want))
		if got, node := Of(ctx), Node(ctx); got != want || node != "node-1.example" {
			t.Errorf("%+v: got %+v of node %q", want, got, node)
		}
	}
	if got, node := Of(t.Context()), Node(t.Context()); got != (Conditions{}) || node != "" {
		t.Errorf("an ordinary request has %+v of node %q", got, node)
	}
}

// TestFor_replacesMetadata: metadata of the controller's caller does not reach
// the node.
func TestFor_replacesMetadata(t *testing.T) {
	ctx := metadata.AppendToOutgoingContext(t.Context(), reservationKey, "stolen/1", NodeKey, "other")
	ctx = received(For(ctx, "n", Conditions{}))
	if got, node := Of(ctx), Node(ctx); got.Reservation != "" || node != "n" {
		t.Errorf("got %+v of node %q", got, node)
	}
}

// TestFlag_values: a boolean parameter is "true" or "false" or missing, and
// anything else is an error.
func TestFlag_values(t *testing.T) {
	for key, of := range map[string]func(map[string]string) (bool, error){ParameterTransient: Transient, ParameterModeChange: ModeChange} {
		for value, want := range map[string]bool{"true": true, "false": false, "": false} {
			if got, err := of(map[string]string{key: value}); err != nil || got != want {
				t.Errorf("%s %q: %v, %v", key, value, got, err)
			}
		}
		if _, err := of(map[string]string{key: "yes"}); err == nil {
			t.Errorf("%s: yes is taken", key)
		}
	}
}
