package main

import (
	"context"
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

// ownCheck asks the pool's own check, which looks at what the survey does not.
func (s *session) ownCheck() {
	for deadline := time.Now().Add(steadyLimit); ; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), settleLimit)
		v, err := pool.Verify(ctx, s.options.pool(), pool.Options{})
		cancel()
		if err != nil {
			fail("the pool's own check: %v", err)
		}
		if len(v.Findings) == 0 {
			return
		}
		// For a moment it may find what a store that grows makes it find.
		if time.Now().After(deadline) {
			fail("the pool's own check finds %+v", v.Findings)
		}
	}
}

// probe is how much of the beginning of each MiB is looked at.
const probe = 2 * history.Block

// checkWiped sees to it that the free extents that count as wiped hold zeroes,
// where stores and volumes begin.
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
				break // a store has grown meanwhile
			}
			fail("%s has at %d %q, in an extent that counts as wiped: %v", pv.Device, at, b[:16], vg.Tags)
		}
		f.Close()
	}
}

// wiped returns the extents that the group's tags name as wiped, if they do for
// this generation.
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
				fail("tag %s", tag)
			}
			r.Start, r.Count = lvm2.Extents(first), lvm2.Extents(n)
			out = append(out, r)
		}
	}
	return out
}
