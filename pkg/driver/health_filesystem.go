package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/moby/sys/mountinfo"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// stagedFilesystems returns the mounts of whole file systems below the kubelet
// directory, by their devices; of one that is mounted several times the first that
// can be written.
func (d *Driver) stagedFilesystems() (map[string]*mountinfo.Info, error) {
	mounts, err := filesystem.Mounts()
	if err != nil {
		return nil, err
	}
	by := map[string]*mountinfo.Info{}
	for _, m := range mounts {
		if !filesystem.Supported(m.FSType) || m.Root != "/" || !d.inside(m.Mountpoint) {
			continue
		}
		if known := by[m.Source]; known == nil || filesystem.HasOption(known, "ro") {
			by[m.Source] = m
		}
	}
	return by, nil
}

// conditions returns what is wrong with a volume, with its last stage, and with its
// file system if that is among the staged ones.
func (d *Driver) conditions(ctx context.Context, p *pool.Pool, lv string, staged map[string]*mountinfo.Info) ([]pool.Condition, error) {
	out, err := p.Health(ctx, lv)
	if err == nil {
		out = append(out, d.useHealth(ctx, p, lv, staged)...)
	}
	return out, err
}

// useHealth returns why a volume could not be staged, and what is wrong with its
// file system.
func (d *Driver) useHealth(ctx context.Context, p *pool.Pool, lv string, staged map[string]*mountinfo.Info) []pool.Condition {
	out := d.stageHealth(d.id(p, lv))
	if m := staged[p.DevicePath(lv)]; m != nil {
		out = append(out, d.filesystemHealth(ctx, p, lv, m)...)
	}
	return out
}

// needsPeople are errors of a stage that no other try ends.
var needsPeople = []error{
	filesystem.ErrDamaged, filesystem.ErrContent, filesystem.ErrUnclean, filesystem.ErrNotInEffect, filesystem.ErrDuplicate,
}

// noteStage keeps for a volume's health that it could not be staged, until it is. The
// kubelet asks again, so another process soon knows it too.
func (d *Driver) noteStage(volume string, err error) {
	if err == nil {
		d.notStaged.Delete(volume)
	} else if slices.ContainsFunc(needsPeople, func(e error) bool { return errors.Is(err, e) }) {
		d.notStaged.Store(volume, err)
	}
}

// stageHealth returns why a volume could not be staged.
func (d *Driver) stageHealth(volume string) []pool.Condition {
	why, failed := d.notStaged.Load(volume)
	if !failed {
		return nil
	}
	c := pool.Condition{Severity: pool.Inaccessible, Reason: "NotStaged", Message: fmt.Sprintf("the volume could not be staged: %v", why)}
	if errors.Is(why.(error), filesystem.ErrDamaged) {
		c.Reason = "FilesystemErrors"
	}
	return []pool.Condition{c}
}

// useConcerns lists what is wrong with the file systems of a pool, and which volumes
// could not be staged.
func (d *Driver) useConcerns(ctx context.Context, p *pool.Pool, staged map[string]*mountinfo.Info) []pool.Concern {
	volumes, err := p.Volumes(ctx)
	if err != nil {
		return nil // the pool's health says it
	}
	var out []pool.Concern
	for _, v := range volumes {
		for _, c := range d.useHealth(ctx, p, v.LV, staged) {
			out = append(out, pool.Concern{Subject: pool.OfVolume, LV: v.LV, Condition: c})
		}
	}
	return out
}

// filesystemHealth returns what the kernel tells of a staged file system, and
// whether it could not be grown.
func (d *Driver) filesystemHealth(ctx context.Context, p *pool.Pool, lv string, m *mountinfo.Info) []pool.Condition {
	s, err := filesystem.StateOf(m)
	if err != nil {
		return nil // it was unmounted meanwhile
	}
	var out []pool.Condition
	add := func(severity pool.Severity, reason, format string, args ...any) {
		out = append(out, pool.Condition{Severity: severity, Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
	if s.Down {
		add(pool.Inaccessible, "FilesystemShutDown", "xfs has shut the file system down after an error, so nothing can be read or written; stop the pods that use it, and the next stage recovers it; the kernel's log has the cause")
	}
	if err := filesystem.Reachable(m); !s.Down && errors.Is(err, filesystem.ErrUnreachable) {
		add(pool.Inaccessible, "FilesystemUnreachable", "%v; stop the pods that use it, and the next stage mounts it again", err)
	}
	if s.ReadOnly {
		add(pool.Inaccessible, "FilesystemReadOnly", "the kernel has made the %s file system read-only after an error; stop the pods that use it, and the next stage mounts it writable", m.FSType)
	}
	if s.Errors > 0 {
		add(pool.Degraded, "FilesystemErrors", "ext4 has errors on record (%d); %s", s.Errors, d.howRepaired(ctx, p, lv, m))
	}
	if why := d.whyNotGrown(ctx, p, lv, m, s); why != "" {
		add(pool.Degraded, "NotGrown", "the file system is smaller than its volume: %s; growth is retried when the volume is next staged or expanded", why)
	}
	return out
}

// howRepaired says what repairs a staged ext4: e2fsck runs only before it is mounted to
// be written.
func (d *Driver) howRepaired(ctx context.Context, p *pool.Pool, lv string, m *mountinfo.Info) string {
	v, err := p.Volume(ctx, lv)
	switch {
	case err == nil && v.Foreign:
		return "csi-dmsnap does not check volumes that it did not create; stop the pods that use it, and run e2fsck"
	case err == nil && v.ReadOnly:
		return "a read-only restore is never repaired; restore the snapshot to a writable volume, and e2fsck repairs that volume when it is staged"
	case filesystem.HasOption(m, "ro"):
		return "it is mounted read-only; stage it writable, and e2fsck repairs it"
	}
	return "stop the pods that use it, and e2fsck repairs it at the next stage"
}

// whyNotGrown says why a staged file system could not be grown; "" if it was, or
// nothing tells that it had to be. That it failed is noted in this process; of an
// ext4 with errors, and of what is mounted read-only, its superblock tells.
func (d *Driver) whyNotGrown(ctx context.Context, p *pool.Pool, lv string, m *mountinfo.Info, s filesystem.State) string {
	if err, failed := d.notGrown.Load(d.id(p, lv)); failed {
		return fmt.Sprint(err)
	}
	readOnly := filesystem.HasOption(m, "ro")
	if s.Errors == 0 && !readOnly {
		return ""
	}
	v, err := p.Volume(ctx, lv)
	if err != nil || v.Foreign || v.ReadOnly {
		return ""
	}
	if short, err := (filesystem.Device{Path: p.DevicePath(lv), Type: m.FSType}).NeedsGrow(); err != nil || !short {
		return ""
	}
	if readOnly {
		return "it is mounted read-only"
	}
	return "the kernel does not grow a file system with errors on record"
}
