package catalog

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// notePrefix begins the tag that records a command of an operator. The tag is only for people:
// unlike a tag with tagPrefix, a note that is not understood changes nothing.
const notePrefix = "dmsnap-note:"

// maxNote is the largest text of a note in bytes, so that the encoded text fits a tag.
const maxNote = 300

// Deed is the last command of an operator that changed a volume.
type Deed struct {
	LV     string    `json:"-"`      // the volume's logical volume
	Reason string    `json:"reason"` // CamelCase, for programs
	At     time.Time `json:"at"`
	What   string    `json:"what"` // who did what
}

// Note records the command of an operator in lv's tags. by names the caller; if it is "", Note
// does nothing. The note is part of the commit of the command, so no deed is without a note.
func Note(lv *lvm2.LV, by, reason, format string, args ...any) {
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

// DeedOf returns the deed in the note of a logical volume; nil if there is no valid note.
func DeedOf(lv *lvm2.LV) *Deed {
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
