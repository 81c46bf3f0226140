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
// directory, by device. Of a file system that is mounted several times, it
// returns a writable mount if there is one.
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

// conditions returns what is wrong with a volume, with its last stage, and with
// its file system if that is staged. Errors: pool.ErrNotFound.
func (d *Driver) conditions(ctx context.Context, p *pool.Pool, lv string, staged map[string]*mountinfo.Info) ([]pool.Condition, error) {
	out, err := p.Health(ctx, lv)
	if err == nil {
		out = append(out, d.useHealth(ctx, p, lv, staged)...)
	}
	return out, err
}

// useHealth returns why a volume could not be staged, and what is wrong with its
// staged file system.
func (d *Driver) useHealth(ctx context.Context, p *pool.Pool, lv string, staged map[string]*mountinfo.Info) []pool.Condition {
	out := d.stageHealth(d.id(p, lv))
	if m := staged[p.DevicePath(lv)]; m != nil {
		out = append(out, d.filesystemHealth(ctx, p, lv, m)...)
	}
	return out
}

// needsOperator lists the errors of a stage that a retry cannot end.
var needsOperator = []error{
	filesystem.ErrDamaged, filesystem.ErrContent, filesystem.ErrUnclean, filesystem.ErrNotInEffect, filesystem.ErrDuplicate,
}

// noteStage records the result of a stage for the volume's health. The record
// lasts until a stage succeeds, or until this process ends: the kubelet retries,
// so the next process soon has it again.
func (d *Driver) noteStage(volume string, err error) {
	if err == nil {
		d.notStaged.Delete(volume)
	} else if slices.ContainsFunc(needsOperator, func(e error) bool { return errors.Is(err, e) }) {
		d.notStaged.Store(volume, err)
	}
}

// stageHealth returns why a volume could not be staged; nothing if the last
// stage succeeded.
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

// useConcerns returns what is wrong with the file systems of a pool's volumes,
// and why volumes could not be staged.
func (d *Driver) useConcerns(ctx context.Context, p *pool.Pool, staged map[string]*mountinfo.Info) []pool.Concern {
	volumes, err := p.Volumes(ctx)
	if err != nil {
		return nil // the pool's own health has the reason
	}
	var out []pool.Concern
	for _, v := range volumes {
		for _, c := range d.useHealth(ctx, p, v.LV, staged) {
			out = append(out, pool.Concern{Subject: pool.OfVolume, LV: v.LV, Condition: c})
		}
	}
	return out
}

// filesystemHealth returns the faults of a staged file system that the kernel
// knows, and why it could not be grown.
func (d *Driver) filesystemHealth(ctx context.Context, p *pool.Pool, lv string, m *mountinfo.Info) []pool.Condition {
	s, err := filesystem.StateOf(m)
	if err != nil {
		return nil // the file system was unmounted meanwhile
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
		add(pool.Degraded, "FilesystemErrors", "ext4 has errors on record (%d); %s", s.Errors, d.repairAdvice(ctx, p, lv, m))
	}
	if why := d.whyNotGrown(ctx, p, lv, m, s); why != "" {
		add(pool.Degraded, "NotGrown", "the file system is smaller than its volume: %s; growth is retried when the volume is next staged or expanded", why)
	}
	return out
}

// repairAdvice explains how a staged ext4 is repaired: the driver runs e2fsck
// only before it mounts the file system writable.
func (d *Driver) repairAdvice(ctx context.Context, p *pool.Pool, lv string, m *mountinfo.Info) string {
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

// whyNotGrown explains why a staged file system is smaller than its device; ""
// if no reason is known. This process records failed attempts to grow. Without
// such a record, errors on record and a read-only mount are possible reasons, and
// the superblock shows whether the file system is smaller than its device.
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
