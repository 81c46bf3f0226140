//go:build kernel

package dm

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// TestError_reasonAndErrno: a failed call returns an *Error with the reason and
// the errno, and changes nothing.
func TestError_reasonAndErrno(t *testing.T) {
	c := open(t)
	d := mapped(t, c, "t-a", "0 2048 zero")
	mapped(t, c, "t-user", fmt.Sprintf("0 2048 linear %v 0", d))
	_, created := c.Create("t-a", "")
	_, noInfo := c.Info("t-none")
	_, noUUID := c.InfoByUUID("none")
	_, noDevice := c.InfoByDevice(Device{240, 1234})
	_, noTable := c.Table("t-none")
	_, noStatus := c.Status("t-none")
	_, noDeps := c.Deps("t-none")
	_, noMessage := c.Message("t-none", 0, "@stats_list")
	for i, f := range []struct {
		err, want error
		errno     unix.Errno
	}{
		{c.Remove("t-a", 0), ErrBusy, unix.EBUSY},
		{created, ErrExists, unix.EBUSY},
		{c.Rename("t-a", "t-user", 0), ErrExists, unix.EBUSY},
		{c.Rename("t-none", "t-new", 0), ErrNotFound, unix.ENXIO},
		{c.Remove("t-none", 0), ErrNotFound, unix.ENXIO},
		{c.Resume("t-none", 0), ErrNotFound, unix.ENXIO},
		{c.Suspend(t.Context(), "t-none", SuspendOptions{}), ErrNotFound, unix.ENXIO},
		{c.Clear("t-none"), ErrNotFound, unix.ENXIO},
		{c.SetUUID("t-none", "u"), ErrNotFound, unix.ENXIO},
		{noInfo, ErrNotFound, unix.ENXIO},
		{noUUID, ErrNotFound, unix.ENXIO},
		{noDevice, ErrNotFound, unix.ENXIO},
		{noTable, ErrNotFound, unix.ENXIO},
		{noStatus, ErrNotFound, unix.ENXIO},
		{noDeps, ErrNotFound, unix.ENXIO},
		{noMessage, ErrNotFound, unix.ENXIO},
		{c.Load("t-none", parse(t, "0 8 zero"), false), errTable, unix.ENXIO},
		{c.Load("t-a", parse(t, "0 8 nonsense"), false), errTable, unix.EINVAL},
		{c.Load("t-a", parse(t, "0 8 linear 240:1234 0"), false), errTable, unix.ENXIO},
	} {
		var e *Error
		if !errors.As(f.err, &e) || !errors.Is(f.err, f.want) || !errors.Is(f.err, f.errno) {
			t.Errorf("case %d: error %v is not %v with %v", i, f.err, f.want, f.errno)
		}
	}
	if info, err := c.Info("t-a"); err != nil || info.DeferredRemove || info.Loaded {
		t.Errorf("the failed calls have changed the device: %+v, %v", info, err)
	}
}
