package pool

import (
	"errors"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// errUncopied: a disk did not give or take what was to be copied.
var errUncopied = errors.New("I/O error in the snapshot that the volume reads through, or in the volume's own extents")

// leastWindow is the least that is left behind a bad sector.
const leastWindow = largestRegion

// search decides which part of a fork is hydrated next. Where something cannot be
// copied the window is halved, until all but its least part is; then that is left
// for later and the rest goes on behind it. What was left is tried again when the
// end was reached.
type search struct {
	from size.Sectors // what is missing before it was tried in this pass
	most size.Sectors // of a window as long as the disk fails; 0: no limit
	jump size.Sectors // how far behind the last window it went on
}

// next returns the next window, of at most most. Something must be missing.
func (s *search) next(missing spans, most size.Sectors) span {
	if s.most > 0 {
		most = min(most, s.most)
	}
	for _, part := range missing {
		at := max(part.start, s.from)
		if at >= part.end() {
			continue
		}
		if at > part.start && len(missing) > mostLeft {
			break // there is no room to remember one more
		}
		return span{at, min(most, part.end()-at)}
	}
	s.from, s.jump = 0, 0
	return span{missing[0].start, min(most, missing[0].length)}
}

// failed takes note that a window could not be copied. It says whether a smaller one can be tried at once.
func (s *search) failed(w span) bool {
	if w.length > leastWindow {
		s.most = max(leastWindow, w.length/2/leastWindow*leastWindow)
		return true
	}
	// A whole disk may have failed: each time it goes twice as far.
	s.most, s.jump = leastWindow, max(2*s.jump, leastWindow)
	s.from = w.start + s.jump
	return false
}

// copied takes note that one was.
func (s *search) copied() {
	s.jump = 0
	if s.most *= 2; s.most > idleWindow.Sectors() {
		s.most = 0
	}
}

// calm says whether nothing has failed lately.
func (s *search) calm() bool { return s.from == 0 && s.most == 0 }
