package pool

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
)

// The kernel passes a request through all stacked devices on one kernel stack. About 40
// devices overflow the stack if the kernel is built with frame pointers. An old snapshot is
// read by at most FlatLevels devices, or, without a flat store, as in a full pool, by one
// device for each newer layer.
const (
	depthFramed = 24  // stacked devices, if the kernel has frame pointers or its configuration is unknown
	depthLean   = 120 // the same for other kernels
)

// deepestChain returns how many stacked devices the running kernel can read through.
func deepestChain() int {
	if runtime.GOARCH == "arm64" {
		return depthFramed // it always has frame pointers
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return depthFramed
	}
	release := unix.ByteSliceToString(name.Release[:])
	for _, path := range []string{"/proc/config.gz", "/boot/config-" + release, "/lib/modules/" + release + "/config", "/lib/modules/" + release + "/build/.config"} {
		if framed, err := framePointers(path); err == nil {
			if framed {
				return depthFramed
			}
			return depthLean
		}
	}
	return depthFramed
}

// framePointers reads a kernel's configuration and reports whether it has frame pointers.
func framePointers(path string) (framed bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var text io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if text, err = gzip.NewReader(f); err != nil {
			return false, err
		}
	}
	whole := false
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		switch lines.Text() {
		case "CONFIG_FRAME_POINTER=y", "CONFIG_UNWINDER_FRAME_POINTER=y":
			framed = true
		case "CONFIG_BLK_DEV_DM=y", "CONFIG_BLK_DEV_DM=m":
			whole = true
		}
	}
	if err := lines.Err(); err != nil {
		return false, err
	}
	if !whole && !framed {
		return false, fmt.Errorf("%s is not the configuration of a kernel with device-mapper", path)
	}
	return framed, nil
}

// readable returns ErrPrecondition for a layer that lies too deep for the kernel. This happens
// only without a flat store: for lack of room, or because a fold needs each layer's device.
func (p *Pool) readable(v *view, o *catalog.Volume, l *catalog.Layer) error {
	if n := v.Depth(o, l); n > p.deepest {
		return fmt.Errorf("snapshot %s/%s: %w: reading it would stack %d devices, but this kernel can read through only %d",
			v.VG.Name, l.LV.Name, ErrPrecondition, n, p.deepest)
	}
	return nil
}

// deepens returns an error if another layer in o's history would exceed the kernel's limit:
// for o, for a volume in use that reads through o, or for a running fold.
func (p *Pool) deepens(v *view, o *catalog.Volume) error {
	if of := p.foldsBelow(v, o, 2); of != nil {
		return fmt.Errorf("volume %s/%s: %w: layers of volume %s are being folded, and the fold reads through nearly as many devices as this kernel can; retry soon, when the fold has ended",
			v.VG.Name, o.LV.Name, ErrUnavailable, of.LV.Name)
	}
	for _, x := range v.Volumes.All() {
		l := v.Layers.Get(x.From())
		if l == nil || x != o && !v.ReadsThrough(x, o) || v.Depth(v.Volumes.Get(l.Of), l)+2 <= p.deepest {
			continue
		}
		info, err := p.find(v.snapDevice(l.LV))
		if err != nil {
			return fmt.Errorf("volume %s/%s: %w: checking whether volume %s, which is as deep as this kernel can read, is in use: %w", v.VG.Name, o.LV.Name, ErrUnavailable, x.LV.Name, err)
		}
		if info == nil && !v.ReadsUnasked(x, l) {
			continue // the snapshot gets a flat store when somebody reads it
		}
		return fmt.Errorf("volume %s/%s: %w: volume %s reads through %d devices, nearly as many as this kernel can; wait until volume %[4]s is hydrated, delete it, or make room for a flat store",
			v.VG.Name, o.LV.Name, ErrPrecondition, x.LV.Name, v.Depth(v.Volumes.Get(l.Of), l))
	}
	return nil
}

// foldsBelow returns the volume whose running fold would exceed the kernel's limit if o's
// history got more layers; nil if there is none.
func (p *Pool) foldsBelow(v *view, o *catalog.Volume, more int) *catalog.Volume {
	f := p.folder.running.Load()
	if f == nil {
		return nil
	}
	of, heir := v.Volumes.Get(f.Volume), v.Layers.Get(f.Heir)
	if of == nil || heir == nil || of != o && !v.ReadsThrough(of, o) || v.Depth(of, heir)+more <= p.deepest {
		return nil
	}
	return of
}

// cutsAtOnce is how many cuts of a volume may wait for each other.
const cutsAtOnce = 2

// makeWay prepares a cut of a volume that is read through many devices: it stops a fold, and
// gives the readers of old snapshots flat stores. The caller must not hold the volume's key.
// If makeWay fails, the cut reports the error.
func (p *Pool) makeWay(ctx context.Context, lv string) {
	v, err := p.latest()
	if err != nil || v.VolumeByLV(lv) == nil {
		return
	}
	o := v.VolumeByLV(lv)
	if of := p.foldsBelow(v, o, 2*cutsAtOnce); of != nil {
		p.folder.stop(ctx, of.LV.ID)
	}
	if p.deepens(v, o) == nil {
		return
	}
	for _, x := range v.Volumes.All() {
		if l := v.Layers.Get(x.From()); l != nil && (x == o || v.ReadsThrough(x, o)) {
			p.folder.stop(ctx, l.Of)
			err := p.flattenRead(ctx, v.Volumes.Get(l.Of).LV.Name)
			if err == nil && x.Forked() {
				err = p.flattenBelow(ctx, x.LV.Name)
			}
			if err != nil {
				p.log.V(2).Info("Old snapshots are read through many devices", "volumeGroup", p.vgName, "why", err)
			}
		}
	}
}
