package filesystem

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// State is the state of a mounted file system, as the kernel reports it.
type State struct {
	Errors   uint64 // number of errors that ext4 has found since its last check
	Down     bool   // xfs has shut down: nothing can be read or written
	ReadOnly bool   // the kernel has made a writable mount read-only
}

// StateOf returns the state of the file system of m. It avoids reading from the
// disk, which may not answer. Only for an ext4 with errors it reads blocks of the
// device, which the kernel has in memory.
func StateOf(m *mountinfo.Info) (s State, err error) {
	if m.FSType == XFS {
		var st unix.Stat_t
		if s.Down = errors.Is(unix.Stat(m.Mountpoint, &st), unix.EIO); s.Down {
			return s, nil
		}
	}
	if m.FSType == Ext4 {
		if s.Errors, err = ext4Errors(m); err != nil {
			return s, err
		}
	}
	s.ReadOnly = madeReadOnly(m)
	// Most kernels before 6.15 do not show that an ext4 is read-only after an error.
	if m.FSType == Ext4 && s.Errors > 0 && !s.ReadOnly && !HasOption(m, "ro") {
		if aborted, err := journalAborted(m.Source); err == nil { // after an error here, the caller still gets s.Errors
			s.ReadOnly = aborted
		}
	}
	return s, nil
}

// madeReadOnly reports whether the kernel has made a writable mount read-only.
func madeReadOnly(m *mountinfo.Info) bool {
	return !HasOption(m, "ro") && slices.ContainsFunc(strings.Split(m.VFSOptions, ","), func(o string) bool {
		return o == "ro" || o == "emergency_ro" // ext4 since Linux 6.15
	})
}

// ext4Errors returns the number of errors that an ext4 has on record.
func ext4Errors(m *mountinfo.Info) (uint64, error) {
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", m.Major, m.Minor))
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(device), "errors_count"))
	if errors.Is(err, fs.ErrNotExist) { // the file system was unmounted meanwhile
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}
