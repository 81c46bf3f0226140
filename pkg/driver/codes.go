package driver

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// codeOf has the gRPC code of every error that the packages below know by
// name; the first that matches counts.
var codeOf = []struct {
	err  error
	code codes.Code
}{
	{errNotOurs, codes.NotFound},
	{callmeta.ErrReserved, codes.Aborted},
	{pool.ErrNotFound, codes.NotFound},
	{pool.ErrConflict, codes.AlreadyExists},
	{pool.ErrNoSpace, codes.ResourceExhausted},
	{pool.ErrOutOfRange, codes.OutOfRange},
	{pool.ErrInvalid, codes.InvalidArgument},
	{pool.ErrInUse, codes.FailedPrecondition},
	{pool.ErrPrecondition, codes.FailedPrecondition},
	{pool.ErrLost, codes.FailedPrecondition},
	{pool.ErrUnavailable, codes.Unavailable},
	{pool.ErrFreeze, codes.Aborted},
	{filesystem.ErrContent, codes.FailedPrecondition},
	{filesystem.ErrDuplicate, codes.FailedPrecondition},
	{filesystem.ErrUnclean, codes.FailedPrecondition},
	{filesystem.ErrBusy, codes.FailedPrecondition},
	{filesystem.ErrNotInEffect, codes.FailedPrecondition},
	{filesystem.ErrDamaged, codes.FailedPrecondition},
	{filesystem.ErrNotGrown, codes.FailedPrecondition}, // with any other code the kubelet starts no pod
	{filesystem.ErrUnreachable, codes.Internal},
	{filesystem.ErrReadOnly, codes.Internal},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
}

// toStatus turns any error of a handler into one with a gRPC code. It is the
// only place that decides which.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	var pending *pool.PendingError
	if errors.As(err, &pending) {
		return status.Error(codes.Aborted, err.Error())
	}
	for _, c := range codeOf {
		if errors.Is(err, c.err) {
			return status.Error(c.code, err.Error())
		}
	}
	return status.Error(codes.Internal, err.Error())
}

// noRoomIsOutOfRange is for expansion: the resizer and the kubelet take
// RESOURCE_EXHAUSTED for "may still be going on" and ask for ever, OUT_OF_RANGE
// lets the user lower the request.
func noRoomIsOutOfRange(err error) error {
	if errors.Is(err, pool.ErrNoSpace) {
		return status.Error(codes.OutOfRange, err.Error())
	}
	return err
}

// failingIsPrecondition is for expansion: of a file system that fails the kubelet
// starts its pod only after FAILED_PRECONDITION.
func failingIsPrecondition(err error) error {
	if errors.Is(err, filesystem.ErrUnreachable) || errors.Is(err, filesystem.ErrReadOnly) {
		return precondition("%v; stop the pods that use it: it grows when it is next staged", err)
	}
	return err
}

// invalid is an error about the request itself.
func invalid(format string, args ...any) error {
	return status.Error(codes.InvalidArgument, fmt.Sprintf(format, args...))
}

// precondition is an error about a state that somebody else must change.
func precondition(format string, args ...any) error {
	return status.Error(codes.FailedPrecondition, fmt.Sprintf(format, args...))
}

// conflict is an error about a repeated request that differs from the first.
func conflict(format string, args ...any) error {
	return status.Error(codes.AlreadyExists, fmt.Sprintf(format, args...))
}

// notFound is an error about a volume, snapshot or path that is not here.
func notFound(format string, args ...any) error {
	return status.Error(codes.NotFound, fmt.Sprintf(format, args...))
}

// outOfRange is an error about a size.
func outOfRange(format string, args ...any) error {
	return status.Error(codes.OutOfRange, fmt.Sprintf(format, args...))
}

// exhausted is an error about room that another node may have.
func exhausted(format string, args ...any) error {
	return status.Error(codes.ResourceExhausted, fmt.Sprintf(format, args...))
}

// aborted is an error about an operation that must be asked for again.
func aborted(format string, args ...any) error {
	return status.Error(codes.Aborted, fmt.Sprintf(format, args...))
}
