package pool

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// A snapshot is read through a device for each layer from its own to the live one.
// A request passes all of them on the kernel's stack, which a chain of some 40
// overflows where the kernel is built with frame pointers.
const (
	depthFramed = 24  // layers of a chain that is read, where the kernel has frame pointers or does not tell
	depthLean   = 120 // the same elsewhere
)

// deepestChain is how many layers the running kernel can read through.
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

// framePointers reads from a kernel's configuration whether it has them.
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

// depth is how many layers l of o is read through, its own included, with those
// that o reads through itself as long as it is a fork.
func (v *view) depth(o *volume, l *layer) int {
	n := len(o.path(l))
	if below := v.layers[o.copyOf]; below != nil {
		n += 1 + v.depth(v.volumes[below.of], below)
	}
	return n
}

// readable refuses a layer that lies too deep for the kernel.
func (p *Pool) readable(v *view, o *volume, l *layer) error {
	if n := v.depth(o, l); n > p.deepest {
		return fmt.Errorf("snapshot %s/%s: %w: it reads through %d layers, this kernel can read through %d: delete newer snapshots of volume %s, their layers are joined in the background",
			v.vg.Name, l.lv.Name, ErrPrecondition, n, p.deepest, o.known())
	}
	return nil
}

// deepens refuses to add a layer to o's history while o, or a volume that would
// read through it, reads through as many as the kernel can.
func (p *Pool) deepens(v *view, o *volume) error {
	if l := v.layers[o.copyOf]; l != nil && v.depth(v.volumes[l.of], l)+2 > p.deepest {
		return fmt.Errorf("volume %s/%s: %w: it reads through as many layers as this kernel can: wait until it is hydrated", v.vg.Name, o.lv.Name, ErrPrecondition)
	}
	for _, x := range v.volumes {
		l := v.layers[x.from()]
		if l == nil || !v.readsThrough(x, o) || v.depth(v.volumes[l.of], l) < p.deepest {
			continue
		}
		return fmt.Errorf("volume %s/%s: %w: volume %s reads through %d of its layers, as many as this kernel can: wait until that is hydrated, or delete it, or newer snapshots",
			v.vg.Name, o.lv.Name, ErrPrecondition, x.lv.Name, p.deepest)
	}
	return nil
}

// readsThrough says whether x reads through o's history.
func (v *view) readsThrough(x, o *volume) bool {
	for x.from() != "" {
		l := v.layers[x.from()]
		if l == nil {
			return false
		}
		if x = v.volumes[l.of]; x == o {
			return true
		}
	}
	return false
}

// deep says whether a snapshot of o, or what a volume reads, lies too deep.
func (p *Pool) deep(v *view, o *volume) bool {
	return len(o.layers) > 0 && v.depth(o, o.layers[0]) > p.deepest
}

// depthHealth says which snapshots of o cannot be read.
func (p *Pool) depthHealth(v *view, o *volume) []Condition {
	n, newest := 0, (*layer)(nil)
	for _, l := range v.snapshotsOf(o) {
		if p.readable(v, v.volumes[l.of], l) != nil {
			n, newest = n+1, l
		}
	}
	if n == 0 {
		return nil
	}
	return []Condition{{Degraded, "SnapshotsTooDeep", fmt.Sprintf(
		"%d snapshots up to %s cannot be restored: more than %d layers lie between them and the volume, which this kernel cannot read through; delete newer ones, their layers are joined in the background",
		n, newest.name, p.deepest)}}
}
