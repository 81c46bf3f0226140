package contender

import (
	"fmt"
	"os"
	"regexp"
	"time"

	"golang.org/x/sys/unix"
)

// Window is one period in which the driver held a volume for a cut, by the
// driver's clock.
type Window struct {
	Total time.Duration
	Parts []Part // the device-mapper calls, in order
}

// Part is a part of a Window.
type Part struct {
	Name string
	Took time.Duration
}

// The driver logs at each cut how long it held the volume. It also holds
// volumes for other changes of their tables, with cut=false.
var (
	heldLine = regexp.MustCompile(`"Volume was held"(.*) for="([^"]+)"(?: parts="\[([^\]]*)\])?`)
	notCut   = regexp.MustCompile(` cut=false`)
	heldPart = regexp.MustCompile(`([a-z][a-z-]*) ([0-9.]+(?:ns|µs|ms|s))`)
)

// Held returns the windows of all cuts so far.
func (p *process) Held() ([]Window, error) {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return nil, err
	}
	return windows(text)
}

func windows(log []byte) (all []Window, err error) {
	for _, m := range heldLine.FindAllSubmatch(log, -1) {
		if notCut.Match(m[1]) {
			continue
		}
		var w Window
		if w.Total, err = time.ParseDuration(string(m[2])); err != nil {
			return nil, fmt.Errorf("the driver's log: %q: %w", m[0], err)
		}
		for _, part := range heldPart.FindAllSubmatch(m[3], -1) {
			took, err := time.ParseDuration(string(part[2]))
			if err != nil {
				return nil, fmt.Errorf("the driver's log: %q: %w", m[0], err)
			}
			w.Parts = append(w.Parts, Part{string(part[1]), took})
		}
		all = append(all, w)
	}
	return all, nil
}

// The ioctls FIFREEZE and FITHAW freeze and thaw a mounted file system.
const (
	fsFreeze = 0xc0045877
	fsThaw   = 0xc0045878
)

// BareFreeze freezes the file system that is mounted at dir, thaws it immediately, and
// returns how long that took.
func BareFreeze(dir string) (w Window, err error) {
	root, err := os.Open(dir)
	if err != nil {
		return w, err
	}
	defer root.Close()
	for _, p := range []struct {
		name    string
		request uint
	}{{"freeze", fsFreeze}, {"thaw", fsThaw}} {
		began := time.Now()
		if err := unix.IoctlSetInt(int(root.Fd()), p.request, 0); err != nil {
			return w, fmt.Errorf("%s %s: %w", p.name, dir, err)
		}
		took := time.Since(began)
		w.Parts, w.Total = append(w.Parts, Part{p.name, took}), w.Total+took
	}
	return w, nil
}
