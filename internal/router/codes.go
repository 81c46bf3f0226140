package router

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errorf returns an error of the router itself, with a gRPC code.
func errorf(c codes.Code, format string, args ...any) error {
	return status.Error(c, fmt.Sprintf(format, args...))
}

func invalid(format string, args ...any) error {
	return errorf(codes.InvalidArgument, format, args...)
}

func notFound(format string, args ...any) error {
	return errorf(codes.NotFound, format, args...)
}

func unavailable(format string, args ...any) error {
	return errorf(codes.Unavailable, format, args...)
}

func aborted(format string, args ...any) error {
	return errorf(codes.Aborted, format, args...)
}

// toStatus returns err with a gRPC code; INTERNAL if err has no other code.
func toStatus(err error) error {
	switch s, ok := status.FromError(err); {
	case err == nil, ok:
		return s.Err()
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Internal, err.Error())
}
