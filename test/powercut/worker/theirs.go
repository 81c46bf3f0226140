package worker

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

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
		if !there && o.Theirs && !o.Adopting {
			lv, there = o.Name, true
		}
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

// lvmConfig limits lvm2 to the machine's disks. It would look at each of the
// thousand nodes in /dev otherwise.
const lvmConfig = "/etc/lvm/lvm.conf"

// onlyDisks has lvm2 scan a directory with the nodes of the disks alone.
func onlyDisks(disks []string) error {
	dir, err := os.MkdirTemp("/run", "disks-")
	if err != nil {
		return err
	}
	for _, disk := range disks {
		var st unix.Stat_t
		if err = unix.Stat(disk, &st); err == nil {
			err = unix.Mknod(filepath.Join(dir, filepath.Base(disk)), st.Mode, int(st.Rdev))
		}
		if err != nil {
			return fmt.Errorf("making a node for %s: %w", disk, err)
		}
	}
	text, err := os.ReadFile(lvmConfig) // hack/testkernel made it for this machine only
	if err != nil {
		return err
	}
	scan := fmt.Sprintf("devices {\n\tscan = [ %q ]\n", dir)
	return os.WriteFile(lvmConfig, []byte(strings.Replace(string(text), "devices {\n", scan, 1)), 0o644)
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
