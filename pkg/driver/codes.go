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

// codeOf lists the gRPC code of every named error of the packages below. The
// first match decides.
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

// toStatus gives an error of a handler its gRPC code: no other place chooses
// codes for the errors of the packages below.
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

// noRoomIsOutOfRange changes the code of an expansion that has no room. The
// resizer and the kubelet read RESOURCE_EXHAUSTED as "may still be running" and
// retry forever. After OUT_OF_RANGE the user can lower the request.
func noRoomIsOutOfRange(err error) error {
	if errors.Is(err, pool.ErrNoSpace) {
		return status.Error(codes.OutOfRange, err.Error())
	}
	return err
}

// failingIsPrecondition changes the code of an expansion whose file system
// fails. With any other code than FAILED_PRECONDITION the kubelet does not
// start the volume's pods.
func failingIsPrecondition(err error) error {
	if errors.Is(err, filesystem.ErrUnreachable) || errors.Is(err, filesystem.ErrReadOnly) {
		return precondition("%v; stop the pods that use it: it grows when it is next staged", err)
	}
	return err
}

// invalid returns an error about the request itself: INVALID_ARGUMENT.
func invalid(format string, args ...any) error {
	return status.Error(codes.InvalidArgument, fmt.Sprintf(format, args...))
}

// precondition returns an error about a state that a user or the caller must
// change before a retry: FAILED_PRECONDITION.
func precondition(format string, args ...any) error {
	return status.Error(codes.FailedPrecondition, fmt.Sprintf(format, args...))
}

// conflict returns an error about a repeated request that differs from the
// first: ALREADY_EXISTS.
func conflict(format string, args ...any) error {
	return status.Error(codes.AlreadyExists, fmt.Sprintf(format, args...))
}

// notFound returns an error about a volume, snapshot or path that does not
// exist on this node: NOT_FOUND.
func notFound(format string, args ...any) error {
	return status.Error(codes.NotFound, fmt.Sprintf(format, args...))
}

// outOfRange returns an error about a size: OUT_OF_RANGE.
func outOfRange(format string, args ...any) error {
	return status.Error(codes.OutOfRange, fmt.Sprintf(format, args...))
}

// exhausted returns an error about a lack of room, which another node may have:
// RESOURCE_EXHAUSTED.
func exhausted(format string, args ...any) error {
	return status.Error(codes.ResourceExhausted, fmt.Sprintf(format, args...))
}

// aborted returns an error about a request that the caller must repeat: ABORTED.
func aborted(format string, args ...any) error {
	return status.Error(codes.Aborted, fmt.Sprintf(format, args...))
}
