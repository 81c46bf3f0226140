package pool

import (
	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
)

// The reasons of deeds.
const (
	ReasonRolledBack = "RolledBack"
	ReasonAdopted    = "Adopted"
	ReasonImported   = "Imported"
)

// Deeds returns the deeds of the existing volumes.
func (p *Pool) Deeds() ([]Deed, error) {
	v, err := p.latest()
	if err != nil {
		return nil, err
	}
	var out []Deed
	for _, o := range v.Named.All() {
		if d := catalog.DeedOf(o.LV); d != nil {
			out = append(out, *d)
		}
	}
	return out, nil
}
