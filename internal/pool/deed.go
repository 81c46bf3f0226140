package pool

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// notePrefix begins the tag that tells people what somebody did with a volume by a
// command. It says nothing about what the volume is: unlike a tag with tagPrefix one
// that is not understood changes nothing.
const notePrefix = "dmsnap-note:"

// maxNote is how many bytes of a note's text are kept: encoded it must fit a tag.
const maxNote = 300

// Deed is the last thing that somebody did with a volume by a command.
type Deed struct {
	LV     string    `json:"-"`      // the volume's logical volume
	Reason string    `json:"reason"` // CamelCase, for programs
	At     time.Time `json:"at"`
	What   string    `json:"what"` // who did what
}

// The deeds that are on record.
const (
	ReasonRolledBack = "RolledBack"
	ReasonAdopted    = "Adopted"
	ReasonImported   = "Imported"
)

// note writes down on lv that by, the caller of a command, did something, if it said
// who it is. The note comes with the commit that does it: no deed is without.
func note(lv *lvm2.LV, by, reason, format string, args ...any) {
	if by == "" {
		return
	}
	out := make([]string, 0, len(lv.Tags)+1)
	for _, t := range lv.Tags {
		if !strings.HasPrefix(t, notePrefix) {
			out = append(out, t)
		}
	}
	text := by + " " + fmt.Sprintf(format, args...)
	if len(text) > maxNote {
		text = strings.ToValidUTF8(text[:maxNote], "")
	}
	lv.Tags = append(out, notePrefix+reason+"/"+strconv.FormatInt(time.Now().Unix(), 10)+"/"+encodeTag(text))
}

// deedOf returns what the note of a logical volume says, nil if it has none that
// makes sense.
func deedOf(lv *lvm2.LV) *Deed {
	for _, t := range lv.Tags {
		rest, is := strings.CutPrefix(t, notePrefix)
		part := strings.SplitN(rest, "/", 3)
		if !is || len(part) != 3 {
			continue
		}
		at, err := strconv.ParseInt(part[1], 10, 64)
		if err != nil {
			continue
		}
		if what, err := decodeTag(part[2]); err == nil {
			return &Deed{LV: lv.Name, Reason: part[0], At: time.Unix(at, 0).UTC(), What: what}
		}
	}
	return nil
}

// Deeds returns what was done by commands with the volumes that there are.
func (p *Pool) Deeds() ([]Deed, error) {
	v, err := p.latest()
	if err != nil {
		return nil, err
	}
	var out []Deed
	for _, o := range v.named {
		if d := deedOf(o.lv); d != nil {
			out = append(out, *d)
		}
	}
	return out, nil
}
