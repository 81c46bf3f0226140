package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/powercut/history"
)

// beginCheck starts the pool's own check, which also looks at what the survey
// does not. The check may take two looks, a second apart, while the load runs.
func (s *session) beginCheck() {
	s.checks.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), settleLimit)
	s.cancelCheck = cancel
	s.checks.Go(func() {
		defer cancel()
		s.ownCheck(ctx)
	})
}

// endCheck cancels the pool's own check, before the driver is killed.
func (s *session) endCheck() {
	s.cancelCheck()
	s.checks.Wait()
}

func (s *session) ownCheck(ctx context.Context) {
	for deadline := time.Now().Add(steadyLimit); ; time.Sleep(50 * time.Millisecond) {
		v, err := pool.Verify(ctx, s.options.pool(), pool.Options{})
		switch {
		case errors.Is(ctx.Err(), context.Canceled):
			return
		case err != nil:
			fail("the pool's own check: %v", err)
		case len(v.Findings) == 0:
			return
		}
		// The check may have findings for a moment while a store grows.
		if time.Now().After(deadline) {
			fail("the pool's own check has the findings %+v", v.Findings)
		}
	}
}

// probe is how many bytes are read at the beginning of each MiB.
const probe = 2 * history.Block

// checkWiped checks that clean extents hold zeroes where stores and volumes
// begin.
func (s *session) checkWiped(vg *lvm2.VG) {
	b := directBuffer(probe)
	defer unix.Munmap(b)
	for _, r := range wiped(vg) {
		pv := vg.PVs[r.PV]
		f, err := os.OpenFile(pv.Device, os.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			fail("%v", err)
		}
		from := vg.Offset(pv, r.Start).Bytes()
		for at := from; at < from+size.Bytes(r.Count)*vg.ExtentSize.Bytes(); at += size.MiB {
			if _, err := f.ReadAt(b, int64(at)); err != nil {
				fail("reading %s: %v", pv.Device, err)
			}
			if string(b) == string(make([]byte, probe)) {
				continue
			}
			changed := false
			s.settled(func(now *lvm2.VG) { changed = now.Seqno != vg.Seqno })
			if changed {
				break // the metadata has changed meanwhile
			}
			fail("a clean extent is not zero: %s has at %d %q, tags %v", pv.Device, at, b[:16], vg.Tags)
		}
		f.Close()
	}
}

// wiped returns the extents that the group's tag lists as clean, if the tag is
// of this generation.
func wiped(vg *lvm2.VG) (out []lvm2.Range) {
	for _, tag := range vg.Tags {
		text, ours := strings.CutPrefix(tag, "dmsnap:clean=")
		if !ours {
			continue
		}
		parts := strings.Split(text, "/")
		if parts[0] != strconv.FormatUint(vg.Seqno, 10) {
			continue
		}
		for _, part := range parts[1:] {
			var r lvm2.Range
			pv, extents, _ := strings.Cut(part, ".")
			start, count, _ := strings.Cut(extents, "+")
			_, err := fmt.Sscan(pv, &r.PV)
			first, err1 := strconv.ParseUint(start, 36, 32)
			n, err2 := strconv.ParseUint(count, 36, 32)
			if err != nil || err1 != nil || err2 != nil {
				fail("malformed tag %s", tag)
			}
			r.Start, r.Count = lvm2.Extents(first), lvm2.Extents(n)
			out = append(out, r)
		}
	}
	return out
}
