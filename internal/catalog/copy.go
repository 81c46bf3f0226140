package catalog

import (
	"fmt"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// CopyState is the progress of a copy from another pool, as in the volume's tag.
type CopyState struct {
	Loan lvm2.ID      // loan in the other pool
	Done size.Sectors // copied, from the beginning
}

// String returns the state as its tag has it.
func (c CopyState) String() string { return fmt.Sprintf("%s/%d", c.Loan, uint64(c.Done)) }
