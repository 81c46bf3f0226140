package dm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Table maps the sectors of a device, from sector 0 and without gaps.
type Table []Segment

// Segment maps Length sectors of a device, beginning at Start, to a target.
type Segment struct {
	Start, Length size.Sectors
	Target        Target
}

// String prints s in the format of dmsetup: "0 2097152 linear 8:19 384". Target
// must not be nil.
func (s Segment) String() string {
	line := fmt.Sprintf("%d %d %s", s.Start, s.Length, s.Target.Type())
	if params := s.Target.Params(); params != "" {
		line += " " + params
	}
	return line
}

// String prints t in the format of "dmsetup table", one segment per line, without
// a newline at the end.
func (t Table) String() string {
	lines := make([]string, len(t))
	for i, s := range t {
		lines[i] = s.String()
	}
	return strings.Join(lines, "\n")
}

// ParseTable parses the format of String and skips empty lines. It does not check
// that the kernel would accept the table.
func ParseTable(text string) (Table, error) {
	var t Table
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) < 3 {
			return nil, fmt.Errorf("table line %q is not of the form: start length target parameters", strings.TrimSpace(line))
		}
		start, err1 := strconv.ParseUint(words[0], 10, 64)
		length, err2 := strconv.ParseUint(words[1], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("table line %q: %w", strings.TrimSpace(line), err)
		}
		target, err := ParseTarget(words[2], strings.Join(words[3:], " "))
		if err != nil {
			return nil, err
		}
		t = append(t, Segment{size.Sectors(start), size.Sectors(length), target})
	}
	return t, nil
}

// Length returns the length of a device with the table.
func (t Table) Length() size.Sectors {
	if len(t) == 0 {
		return 0
	}
	last := t[len(t)-1]
	return last.Start + last.Length
}

// Equal reports whether both tables map the same sectors to the same targets with
// the same parameters.
func (t Table) Equal(u Table) bool {
	if len(t) != len(u) {
		return false
	}
	for i := range t {
		if t[i].String() != u[i].String() {
			return false
		}
	}
	return true
}

// check rejects tables that the kernel would refuse with an explanation only in
// its log.
func (t Table) check() error {
	if len(t) == 0 {
		return errors.New("table is empty")
	}
	var end size.Sectors
	for _, s := range t {
		switch {
		case s.Target == nil:
			return fmt.Errorf("segment at %d has no target", s.Start)
		case s.Length == 0:
			return fmt.Errorf("segment at %d is empty", s.Start)
		case s.Start != end:
			return fmt.Errorf("segment at %d does not begin at %d, where the previous segment ends", s.Start, end)
		case s.Start+s.Length < s.Start:
			return fmt.Errorf("segment at %d is too long", s.Start)
		}
		if err := checkTypeName(s.Target.Type()); err != nil {
			return err
		}
		end = s.Start + s.Length
	}
	return nil
}
