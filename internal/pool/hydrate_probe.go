package pool

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/directio"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

const probePiece = size.MiB // read by one request

// probe reads the next window from the fork's device, where a mirror would read it, if
// a copy has failed lately or parts were skipped. After its first error, a mirror fails
// everybody's reads of its uncopied regions, even of sound sectors. With the probe a
// mirror meets an error once, and not again at each retry.
func (h *hydrator) probe(ctx context.Context, lv string, s *search, length size.Sectors, pass func()) (w *window, err error) {
	if s.calm() && h.whole(lv) {
		return nil, nil
	}
	var file *os.File
	err = h.exclusive(ctx, lv, &change{what: "check that the rest of volume " + lv + " can be read", act: func(ctx context.Context, v *view) error {
		p := h.pool
		o, missing, err := h.missing(v, lv)
		if err != nil {
			return err
		}
		w = &window{Span: s.next(missing, length)}
		if err := p.forkUp(ctx, v, o); err != nil {
			return err
		}
		fork, err := p.found(v.forkDevice(o.LV))
		if err != nil {
			return err
		}
		path, err := p.dm.EnsureNode(ctx, fork.Name, fork.Device)
		if err != nil {
			return err
		}
		file, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
		return err
	}})
	if err != nil {
		return w, err
	}
	defer file.Close()
	buf, free, err := directio.Buffer(probePiece)
	if err != nil {
		return w, err
	}
	defer free()
	late := time.AfterFunc(stallLimit, pass) // a disk may not answer
	defer late.Stop()
	for at := w.Start; at < w.End(); at += probePiece.Sectors() {
		if ctx.Err() != nil {
			return w, ctx.Err()
		}
		n := min(probePiece, (w.End() - at).Bytes())
		if _, err := file.ReadAt(buf[:n], int64(at.Bytes())); err != nil {
			return w, fmt.Errorf("%w: %w", errUncopied, err)
		}
		late.Reset(stallLimit)
	}
	return w, nil
}
