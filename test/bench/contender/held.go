package contender

import (
	"fmt"
	"os"
	"regexp"
	"time"
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
