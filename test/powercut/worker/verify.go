package worker

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/audit"
	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

const (
	sample           = 2 // snapshots that are read back after each interruption
	checkedSnapshots = 3 // if the program only checks
)

// verify checks that the pool agrees with the history. Active volumes are read
// while copying and wiping end. verify reads back at most n snapshots.
func (s *session) verify(n int) {
	s.beginCheck()
	read := map[uint64]bool{}
	for _, id := range s.objects(func(o *history.Object) bool {
		return !o.Snapshot && !o.Theirs && o.Certain && o.Wanted == 0 && o.Active == history.Active
	}) {
		s.compare(id, id)
		read[id] = true
	}
	s.match(s.survey())
	s.readVolumes(read)
	s.readTheirs()
	snapshots := s.objects(func(o *history.Object) bool { return o.Snapshot && !o.Theirs })
	for range n {
		if len(snapshots) > 0 {
			i := s.random.n(len(snapshots))
			s.readSnapshot(snapshots[i])
			snapshots = slices.Delete(snapshots, i, i+1)
		}
	}
	if s.options.check {
		s.checks.Wait()
	}
	s.log.End(history.Event{Kind: history.Checked})
}

// finish verifies everything, deletes everything, and checks that nothing is
// left.
func (s *session) finish() {
	s.adoptAll()
	for _, id := range s.objects(func(o *history.Object) bool { return !o.Snapshot }) {
		s.stopWriter(id)
		s.must(history.Event{Op: history.Delete, ID: id})
	}
	// The snapshots outlive their volumes. Each dropped snapshot makes room.
	left := s.objects(func(*history.Object) bool { return true })
	for len(left) > 0 {
		var full []uint64
		for _, id := range left {
			if !s.readSnapshot(id) {
				full = append(full, id)
				continue
			}
			s.must(history.Event{Op: history.Drop, ID: id})
		}
		if len(full) == len(left) { // there is no room to restore any: drop one without a look
			s.must(history.Event{Op: history.Drop, ID: full[0]})
			full = full[1:]
		}
		left = full
	}
	s.endCheck()
	s.beginCheck()
	s.checks.Wait()
	if err := s.survey().Empty(); err != nil {
		fail("%v", err)
	}
	s.log.End(history.Event{Kind: history.Checked})
}

// must performs an operation that the pool has no reason to refuse.
func (s *session) must(e history.Event) {
	if _, out := s.call(e, nil); out != done {
		fail("%s of %d was not done", e.Op, e.ID)
	}
}

// objects returns the ids of the objects for which fits returns true, in order.
func (s *session) objects(fits func(o *history.Object) bool) (ids []uint64) {
	s.log.View(func(m *history.Model) {
		for _, id := range slices.Sorted(maps.Keys(m.Objects)) {
			if fits(m.Objects[id]) {
				ids = append(ids, id)
			}
		}
	})
	return ids
}

// object returns a copy of an object without the bytes of its content.
func (s *session) object(id uint64) (o history.Object) {
	s.log.View(func(m *history.Model) {
		o = *m.Objects[id]
		o.Content = history.Content{Formatted: o.Content.Formatted}
	})
	return o
}

// match compares the pool's list with the model, and records the outcome of
// interrupted operations.
func (s *session) match(v *audit.Audit) {
	volumes, snapshots := map[string]pool.Volume{}, map[string]pool.Snapshot{}
	for _, x := range v.Volumes {
		volumes[x.Name] = x
	}
	for _, x := range v.Snapshots {
		snapshots[x.Name] = x
	}
	var again []uint64
	for _, id := range s.objects(func(*history.Object) bool { return true }) {
		o := s.object(id)
		e := history.Event{Kind: history.Found, ID: id}
		var lv string
		if _, there := volumes[o.Name]; o.Theirs && !there && snapshots[o.Name].LV == "" {
			e.Gone, lv, e.Size, e.Active = v.VG.LV(o.Name) == nil, o.Name, o.Size, !o.Snapshot && v.Active(o.Name)
		} else if e.Ours = o.Theirs; e.Ours && !o.Adopting {
			fail("%+v was LVM2's own and is the pool's", o)
		} else if o.Snapshot {
			x, there := snapshots[o.Name]
			if e.Gone = !there; there {
				s.matchSnapshot(o, x)
				delete(snapshots, o.Name)
			}
			lv, e.Size = x.LV, x.Size
		} else {
			x, there := volumes[o.Name]
			if e.Gone = !there; there {
				s.matchVolume(o, x)
				delete(volumes, o.Name)
				e.Active = v.Active(x.LV)
			}
			lv, e.Size = x.LV, x.Size
		}
		if e.Gone && o.Certain {
			fail("an acknowledged object is gone: %+v", o)
		}
		if e.Gone || !o.Certain || o.Wanted != 0 || o.Active == history.MaybeActive || o.Adopting {
			s.log.End(e)
			if e.Active && o.Active == history.MaybeActive {
				again = append(again, id)
			}
		} else if e.Active != (o.Active == history.Active) && !(o.Transient && e.Active) { // the driver keeps transient ones active
			fail("volume %q (%s) is active: %t, want %t", o.Name, lv, e.Active, !e.Active)
		}
		s.mu.Lock()
		if s.lvs[id] = lv; e.Gone {
			delete(s.lvs, id)
		}
		s.mu.Unlock()
	}
	for _, id := range s.objects(func(o *history.Object) bool { return o.Snapshot }) {
		s.log.View(func(m *history.Model) {
			if o, of := m.Objects[id], m.Objects[m.Objects[id].Of]; of != nil && o.Theirs && !of.Theirs {
				fail("volume %q was adopted without its snapshot %q", of.Name, o.Name)
			}
		})
	}
	for _, id := range again {
		// A device alone does not mean that the activation is complete: the
		// caller of an interrupted Activate retries it.
		s.must(history.Event{Op: history.Activate, ID: id})
	}
	if len(volumes) > 0 || len(snapshots) > 0 {
		fail("the pool has volumes and snapshots that were not requested: %+v %+v", volumes, snapshots)
	}
}

func (s *session) matchVolume(o history.Object, x pool.Volume) {
	if x.Size != o.Size && (o.Wanted == 0 || x.Size != o.Wanted) {
		fail("volume %q (%s) has %v, want %v", o.Name, x.LV, x.Size, o.Size)
	}
	formatted := o.FS && o.Content.Formatted && (o.Or == nil || o.Or.Formatted)
	if fs := x.Mode == pool.Filesystem; fs != o.FS || x.ReadOnly != o.ReadOnly || x.Transient != o.Transient || formatted && !x.Formatted {
		fail("volume %q has lost properties: it is %+v, want %+v", o.Name, x, o)
	}
}

func (s *session) matchSnapshot(o history.Object, x pool.Snapshot) {
	if x.Size != o.Size || x.Lost {
		fail("snapshot %q is %+v, want %v", o.Name, x, o.Size)
	}
	if of := s.lv(o.Of); of != "" && of != x.Volume {
		fail("snapshot %q is of volume %s, want %s", o.Name, x.Volume, of)
	}
}

// readVolumes compares the content of all volumes that were not read yet. It
// leaves some of the inactive volumes active.
func (s *session) readVolumes(read map[uint64]bool) {
	for _, id := range s.objects(func(o *history.Object) bool { return !o.Snapshot && !o.Theirs && !read[o.ID] }) {
		active := s.object(id).Active == history.Active
		if !active {
			s.must(history.Event{Op: history.Activate, ID: id})
		}
		s.compare(id, id)
		if !active && s.random.n(2) == 0 {
			s.must(history.Event{Op: history.Deactivate, ID: id})
		}
	}
}

// readSnapshot restores a snapshot and compares the content. It returns false
// if there is no room for the restored volume.
func (s *session) readSnapshot(id uint64) bool {
	o := s.object(id)
	transient := o.FS && s.random.n(3) > 0 // a copy of every snapshot would take longer
	e, out := s.call(history.Event{Op: history.Restore, From: id, Size: o.Size, FS: o.FS, Transient: transient}, func(m *history.Model, e *history.Event) bool {
		e.ID = m.Next()
		e.Name = fmt.Sprintf("check-%d", e.ID)
		return true
	})
	if out != done {
		return false
	}
	s.must(history.Event{Op: history.Activate, ID: e.ID})
	s.compare(e.ID, id)
	s.must(history.Event{Op: history.Deactivate, ID: e.ID})
	s.must(history.Event{Op: history.Delete, ID: e.ID})
	return true
}

// compare reads the active volume and compares it with the content of the
// object like: the volume itself, or the snapshot that the volume was made
// from.
func (s *session) compare(id, like uint64) {
	s.mu.Lock()
	w := s.writers[id]
	s.mu.Unlock()
	if w != nil {
		w.pause()
		defer w.mu.Unlock()
	}
	o := s.object(id)
	seen := readAll(s.path(id), o.Size)
	var err error
	var other bool
	var resolved [][2]uint64
	s.log.View(func(m *history.Model) {
		o := m.Objects[like]
		c := &o.Content
		if other, err = o.Compare(seen); other {
			c = o.Or
		}
		resolved = c.Resolve(seen)
	})
	if err != nil {
		fail("wrong bytes: volume %q (%s, object %d), which must equal object %d (%+v): %v", o.Name, s.lv(id), id, like, s.object(like), err)
	}
	s.log.End(history.Event{Kind: history.Read, ID: like, Blocks: resolved, Other: other})
}

// path returns the path of an active volume's device.
func (s *session) path(id uint64) string { return "/dev/mapper/" + lvm2.DMName(vgName, s.lv(id), "") }

// readAll reads a device, which must have the given size in bytes.
func readAll(path string, length size.Bytes) *history.Observation {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		fail("opening an active volume: %v", err)
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err != nil || size.Bytes(end) != length {
		fail("%s has %d bytes (%v), want %v", path, end, err, length)
	}
	b := directBuffer(size.MiB)
	defer unix.Munmap(b)
	seen := &history.Observation{}
	for at := size.Bytes(0); at < length; at += size.MiB {
		read := make(chan error, 1)
		go func() {
			_, err := f.ReadAt(b, int64(at))
			read <- err
		}()
		select {
		case err = <-read:
		case <-time.After(pauseLimit):
			hung("reading %s at %d did not end", path, at)
		}
		if err != nil {
			fail("reading %s: %v", path, err)
		}
		seen.Add(b)
	}
	return seen
}
