package worker

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

const (
	theirSize  = 3 * extent // of a logical volume of LVM2's
	theirStore = 4 * extent // has room for all of it, because lvm2 lets no store grow here
	theirMost  = 2          // snapshots
)

// onTheirs reports whether the operation works on a logical volume of LVM2's.
func onTheirs(op history.Op) bool {
	return op == history.LVM2Snapshot || op == history.Adopt || op == history.Import
}

// targetTheirs picks the object of an operation on logical volumes of LVM2's.
// There is one such volume at a time, because lvm2's commands are slow.
func targetTheirs(m *history.Model, e *history.Event, volumes int, pick func(func(o *history.Object) bool) *history.Object) bool {
	theirs, snapshots := 0, 0
	for _, o := range m.Objects {
		switch {
		case o.Theirs && o.Snapshot:
			snapshots++
		case o.Theirs:
			theirs++
		}
	}
	if e.Op == history.LVM2Create {
		e.Size = theirSize
		return theirs == 0 && volumes < mostVolumes+mostShowing
	}
	o := pick(func(o *history.Object) bool {
		return !o.Snapshot && (e.Op == history.Adopt || o.Active == history.Active && snapshots < theirMost)
	})
	if o == nil {
		return false
	}
	e.Size = o.Size
	switch {
	case e.Op == history.LVM2Snapshot:
		e.From = o.ID
		return true
	case snapshots == 0:
		e.Op = history.Import
	}
	e.ID = o.ID
	return true
}

// nameTheirs gives what lvm2 is about to make its id and name. It claims a new
// logical volume.
func (s *session) nameTheirs(m *history.Model, e *history.Event) {
	e.ID = m.Next()
	e.Name = fmt.Sprintf("lvm2-%d", e.ID)
	if e.Op == history.LVM2Create {
		s.mu.Lock()
		s.busy[e.ID] = true
		s.mu.Unlock()
	}
}

// snapshotsByCommand begins to write to a new logical volume of LVM2's, and has
// lvm2 take snapshots of it meanwhile.
func (s *session) snapshotsByCommand(id uint64) (out outcome) {
	defer s.release([]uint64{id})
	s.startWriter(id)
	for n := s.random.n(theirMost + 1); n > 0 && out == done && !s.killing.Load(); n-- {
		time.Sleep(time.Duration(s.random.n(100)) * time.Millisecond)
		_, out = s.call(history.Event{Op: history.LVM2Snapshot, From: id, Size: theirSize}, func(m *history.Model, e *history.Event) bool {
			s.nameTheirs(m, e)
			return true
		})
	}
	return out
}

// byCommand performs an operation by lvm2's command.
func (s *session) byCommand(e history.Event) (r Reply) {
	args := []string{"-q", "-y", "-Wn", "-L", fmt.Sprintf("%dk", theirSize/size.KiB), "-n", e.Name, vgName}
	if e.Op == history.LVM2Snapshot {
		args = []string{"-q", "-y", "-s", "-c", fmt.Sprintf("%dk", 4<<(2*s.random.n(3))), "-L", fmt.Sprintf("%dk", theirStore/size.KiB),
			"-n", e.Name, vgName + "/" + s.lv(e.From)}
	}
	out, err := exec.Command("lvcreate", args...).CombinedOutput()
	switch {
	case err == nil:
		r.LV, r.Size = e.Name, e.Size
	case strings.Contains(strings.ToLower(string(out)), "insufficient"):
		r.Error, r.NoSpace = strings.TrimSpace(string(out)), true
	default:
		fail("lvcreate %v: %v\n%s", args, err, out)
	}
	return r
}

// removeHalfMade removes what an interrupted command of lvm2's may have left, as
// an administrator would, before any driver starts.
func (s *session) removeHalfMade() {
	for _, id := range s.objects(func(o *history.Object) bool { return o.Theirs && !o.Certain }) {
		name := vgName + "/" + s.object(id).Name
		if out, err := exec.Command("lvremove", "-q", "-f", "-y", name).CombinedOutput(); err != nil && !strings.Contains(string(out), "Failed to find") {
			fail("lvremove %s: %v\n%s", name, err, out)
		}
		s.log.End(history.Event{Kind: history.Found, ID: id, Gone: true})
	}
}

// foreign returns the names of the logical volumes that are LVM2's own.
func (s *session) foreign() (names []string) {
	for _, id := range s.objects(func(o *history.Object) bool { return o.Theirs }) {
		names = append(names, s.object(id).Name)
	}
	return names
}

// readTheirs compares the content of the active logical volumes of LVM2's, and
// of LVM2's snapshots.
func (s *session) readTheirs() {
	for _, id := range s.objects(func(o *history.Object) bool { return o.Theirs }) {
		switch _, err := os.Stat(s.path(id)); {
		case err == nil:
			s.compare(id, id)
		case !errors.Is(err, os.ErrNotExist):
			fail("%v", err)
		}
	}
}

// adoptAll makes all logical volumes of LVM2's volumes of the pool.
func (s *session) adoptAll() {
	for _, id := range s.objects(func(o *history.Object) bool { return o.Theirs && !o.Snapshot }) {
		e := history.Event{Op: history.Adopt, ID: id, Size: s.object(id).Size}
		if len(s.objects(func(o *history.Object) bool { return o.Theirs && o.Snapshot && o.Of == id })) == 0 {
			e.Op = history.Import
		}
		s.must(e)
	}
}
