package pool

import (
	"errors"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// errUncopied says that a disk failed to read or write a part to be copied.
var errUncopied = errors.New("I/O error in the snapshot that the volume reads through, or in the volume's own extents")

// leastWindow is the smallest part that is skipped because of a bad sector.
const leastWindow = largestRegion

// search decides which part of a fork is hydrated next. After a failure the window
// is halved, down to leastWindow. If even that fails, the part is skipped and
// hydration continues after it. Skipped parts are retried after the end was
// reached.
type search struct {
	from size.Sectors // start of the rest of this pass: the missing parts before it were tried
	most size.Sectors // largest window while the disk fails; 0: no limit
	jump size.Sectors // distance from the last failed window to the next one
}

// next returns the next window, at most most long. missing must not be empty.
func (s *search) next(missing catalog.Spans, most size.Sectors) catalog.Span {
	if s.most > 0 {
		most = min(most, s.most)
	}
	for _, part := range missing {
		at := max(part.Start, s.from)
		if at >= part.End() {
			continue
		}
		if at > part.Start && len(missing) > catalog.MostLeft {
			break // the tag has no room for one more skipped part
		}
		return catalog.Span{Start: at, Length: min(most, part.End()-at)}
	}
	s.from, s.jump = 0, 0
	return catalog.Span{Start: missing[0].Start, Length: min(most, missing[0].Length)}
}

// failed records that a window could not be copied. It reports whether a smaller
// window can be tried immediately.
func (s *search) failed(w catalog.Span) bool {
	if w.Length > leastWindow {
		s.most = max(leastWindow, w.Length/2/leastWindow*leastWindow)
		return true
	}
	// The whole disk may have failed, so the distance doubles with each failure.
	s.most, s.jump = leastWindow, max(2*s.jump, leastWindow)
	s.from = w.Start + s.jump
	return false
}

// copied records that a window was copied.
func (s *search) copied() {
	s.jump = 0
	if s.most *= 2; s.most > idleWindow.Sectors() {
		s.most = 0
	}
}

// calm reports whether nothing has failed lately.
func (s *search) calm() bool { return s.from == 0 && s.most == 0 }
