package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// Every named error gets its gRPC code, and its message is kept.
func TestToStatus_everyError(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("create volume v1: %w", err) }
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{wrap(pool.ErrNotFound), codes.NotFound},
		{wrap(pool.ErrConflict), codes.AlreadyExists},
		{wrap(pool.ErrNoSpace), codes.ResourceExhausted},
		{wrap(pool.ErrOutOfRange), codes.OutOfRange},
		{wrap(pool.ErrInvalid), codes.InvalidArgument},
		{wrap(pool.ErrInUse), codes.FailedPrecondition},
		{wrap(pool.ErrPrecondition), codes.FailedPrecondition},
		{wrap(pool.ErrLost), codes.FailedPrecondition},
		{wrap(pool.ErrUnavailable), codes.Unavailable},
		{wrap(&pool.PendingError{What: "copying"}), codes.Aborted},
		{wrap(filesystem.ErrContent), codes.FailedPrecondition},
		{wrap(filesystem.ErrDuplicate), codes.FailedPrecondition},
		{wrap(filesystem.ErrBusy), codes.FailedPrecondition},
		{wrap(filesystem.ErrUnreachable), codes.Internal},
		{wrap(fmt.Errorf("%w: %w", pool.ErrPrecondition, filesystem.ErrUnreachable)), codes.FailedPrecondition},
		{pathError("/path", &fs.PathError{Op: "lstat", Path: "/path", Err: unix.ESTALE}), codes.Internal},
		{pathError("/path", &fs.PathError{Op: "lstat", Path: "/path", Err: unix.ENOTDIR}), codes.InvalidArgument},
		{wrap(filesystem.ErrDamaged), codes.FailedPrecondition},
		{wrap(filesystem.ErrNotGrown), codes.FailedPrecondition},
		{wrap(filesystem.ErrNotInEffect), codes.FailedPrecondition},
		{wrap(context.Canceled), codes.Canceled},
		{wrap(context.DeadlineExceeded), codes.DeadlineExceeded},
		{wrap(errNotOurs), codes.NotFound},
		{wrap(errors.New("write /dev/sda: input/output error")), codes.Internal},
		{invalid("x"), codes.InvalidArgument},
		{precondition("x"), codes.FailedPrecondition},
		{conflict("x"), codes.AlreadyExists},
		{notFound("x"), codes.NotFound},
		{outOfRange("x"), codes.OutOfRange},
		{exhausted("x"), codes.ResourceExhausted},
		{aborted("x"), codes.Aborted},
		{wrap(invalid("x")), codes.InvalidArgument},
		{noRoomIsOutOfRange(wrap(pool.ErrNoSpace)), codes.OutOfRange},
		{noRoomIsOutOfRange(wrap(pool.ErrInUse)), codes.FailedPrecondition},
		{failingIsPrecondition(wrap(filesystem.ErrReadOnly)), codes.FailedPrecondition},
		{failingIsPrecondition(wrap(filesystem.ErrUnreachable)), codes.FailedPrecondition},
	} {
		got := toStatus(c.err)
		if status.Code(got) != c.want {
			t.Errorf("%v: %v, want %v", c.err, status.Code(got), c.want)
		}
		if _, raw := status.FromError(c.err); !raw && status.Convert(got).Message() != c.err.Error() {
			t.Errorf("message %q, want %q", status.Convert(got).Message(), c.err)
		}
	}
	if toStatus(nil) != nil || noRoomIsOutOfRange(nil) != nil {
		t.Error("no error became one")
	}
	if m := status.Convert(toStatus(wrap(invalid("bad size")))).Message(); !strings.Contains(m, "create volume v1") || !strings.Contains(m, "bad size") {
		t.Errorf("message %q lost a part", m)
	}
}
