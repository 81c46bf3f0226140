package dm

import (
	"fmt"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Mirror copies the first leg to the other legs when it starts, and keeps the
// legs equal (drivers/md/dm-raid1.c). The log type is core: the kernel remembers
// only in memory which regions are equal. A mirror with another log, or with its
// log forced in sync, is Unknown.
type Mirror struct {
	Region       size.Sectors // unit of copying: a power of two, not greater than the length
	NoSync       bool         // the legs are already equal
	Legs         []Area
	HandleErrors bool // stop using a leg after an error; without it, a region that cannot be read counts as copied
	KeepLog      bool // stop I/O when the log fails
}

const (
	handleErrors = "handle_errors"
	keepLog      = "keep_log"
)

// Type returns "mirror".
func (Mirror) Type() string { return "mirror" }

// Params returns the log, the legs and the features.
func (m Mirror) Params() string {
	log := fmt.Sprintf("core 1 %d", m.Region)
	if m.NoSync {
		log = fmt.Sprintf("core 2 %d nosync", m.Region)
	}
	var features []string
	if m.HandleErrors {
		features = append(features, handleErrors)
	}
	if m.KeepLog {
		features = append(features, keepLog)
	}
	p := fmt.Sprintf("%s %d%s", log, len(m.Legs), areas(m.Legs))
	if len(features) > 0 {
		p += fmt.Sprintf(" %d %s", len(features), strings.Join(features, " "))
	}
	return p
}

// hasCoreLog reports whether the words are the parameters of a mirror that Mirror
// can express.
func (a *args) hasCoreLog() bool {
	w := a.words
	return len(w) >= 3 && w[0] == "core" && (w[1] == "1" || len(w) >= 4 && w[1] == "2" && w[3] == "nosync")
}

// mirror reads the parameters of a mirror for which hasCoreLog holds.
func (a *args) mirror() Mirror {
	var m Mirror
	a.next() // core
	m.NoSync = a.next() == "2"
	m.Region = a.sectors()
	if m.NoSync {
		a.next() // nosync
	}
	m.Legs = a.areas(a.count())
	for _, f := range a.features() {
		switch f {
		case handleErrors:
			m.HandleErrors = true
		case keepLog:
			m.KeepLog = true
		default:
			if a.err == nil {
				a.err = fmt.Errorf("unknown feature %q", f)
			}
		}
	}
	return m
}
