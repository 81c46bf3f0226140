package worker

import (
	"context"
	"os"
	"os/exec"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/audit"
	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

// byLVM2 has lvm2 activate what an interruption left, before any driver has
// seen it. The volumes and their newest snapshots must have the right bytes.
func (s *session) byLVM2() {
	if len(s.objects(func(o *history.Object) bool { return o.Certain })) == 0 {
		return // there may not even be a volume group
	}
	s.lvm("vgchange", "-q", "-ay", vgName)
	ctx, cancel := context.WithTimeout(context.Background(), settleLimit)
	defer cancel()
	seen, err := pool.Inspect(ctx, s.options.pool(), pool.Options{})
	if err != nil {
		fail("inspecting the pool that lvm2 has activated: %v", err)
	}
	store, err := lvm2.OpenVG(ctx, lvm2.Host{}, vgName, strings.Split(s.options.disks, ","))
	if err != nil {
		fail("reading the volume group that lvm2 has activated: %v", err)
	}
	defer store.Close()
	vg, err := store.Read(ctx)
	if err != nil {
		fail("reading the volume group that lvm2 has activated: %v", err)
	}
	wiped := func(lv string) bool { return audit.Tags(vg.LV(lv))["unknown"] == "" }
	lvs := map[string]string{} // by name, of the objects that can be compared
	for _, v := range seen.Volumes {
		if v.State != pool.StateReady || v.Shows != "" {
			continue // lvm2 does not activate it
		}
		if wiped(v.LV) {
			lvs[v.Name] = v.LV
		}
		for _, l := range v.Layers {
			if l.State == pool.StateLive && l.Name != "" && wiped(l.LV) {
				lvs[l.Name] = l.LV
			}
		}
	}
	compared := 0
	for _, id := range s.objects(func(o *history.Object) bool { return o.Certain && o.Wanted == 0 }) {
		o := s.object(id)
		lv, there := lvs[o.Name]
		if !there {
			continue
		}
		path := "/dev/mapper/" + lvm2.DMName(vgName, lv, "")
		length := o.Size
		if o.Snapshot { // LVM2 makes its device as long as the origin is now
			length = max(length, deviceSize(path))
		}
		blocks := readAll(path, length)
		s.log.View(func(m *history.Model) { _, err = m.Objects[id].Compare(blocks) })
		if err != nil {
			fail("wrong bytes of %q (%s, object %d), which lvm2 has activated: %v", o.Name, lv, id, err)
		}
		compared++
	}
	s.lvm("vgchange", "-q", "-an", vgName)
	s.log.End(history.Event{Kind: history.Theirs, Count: compared})
}

func (s *session) lvm(command ...string) {
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		fail("%v: %v\n%s", command, err, out)
	}
}

func deviceSize(path string) size.Bytes {
	f, err := os.Open(path)
	if err != nil {
		fail("opening a device that lvm2 has activated: %v", err)
	}
	defer f.Close()
	end, err := f.Seek(0, 2)
	if err != nil {
		fail("%s: %v", path, err)
	}
	return size.Bytes(end)
}
