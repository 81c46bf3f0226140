package pool

import (
	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// view is one generation of the group's metadata as the engine has it: the decoded
// metadata, and the lease of the act. It never changes after it is published.
type view struct {
	*catalog.View
	lease *lease // of the act to which the view was passed; nil outside of acts
}

// newView decodes vg. Logical volumes that prev decoded already are not decoded
// again; prev may be nil.
func newView(vg *lvm2.VG, prev *view) *view {
	if prev == nil {
		return &view{View: catalog.NewView(vg, nil)}
	}
	return &view{View: catalog.NewView(vg, prev.View)}
}

// edit is what a change may alter: the metadata, and the disks below them. If an edit
// fails, its alterations of the metadata are dropped.
type edit struct {
	*catalog.Edit
	written []*lvm2.PV // physical volumes whose writes must reach the disk before the metadata
	noAct   bool       // the edit found that the change's act has nothing to do
}

// view returns the metadata with the links from before the edit.
func (t *edit) view() *view { return &view{View: t.View} }
