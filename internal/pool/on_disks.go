package pool

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// onDisks reads stores directly from the disks, without devices. This is safe for frozen
// layers, because nobody writes to their stores, and the page cache never holds parts of a
// store.
type onDisks struct {
	view  *view
	files map[int]*os.File // by the number of the physical volume
}

func (d *onDisks) close() {
	for _, f := range d.files {
		f.Close()
	}
}

// store returns the store in the first length bytes of a logical volume. It is valid until
// close.
func (d *onDisks) store(lv *lvm2.LV, length size.Bytes) (*cow.Store, error) {
	s := &scattered{extent: d.view.ExtentSize()}
	var err error
	if s.ranges, err = catalog.Physical(lv); err != nil {
		return nil, err
	}
	for _, r := range s.ranges {
		f, err := d.disk(r.PV)
		if err != nil {
			return nil, err
		}
		s.files = append(s.files, f)
		s.starts = append(s.starts, d.view.VG.Offset(d.view.VG.PVs[r.PV], r.Start).Bytes())
	}
	return cow.NewStore(d.view.VG.Name+"/"+lv.Name, s, length), nil
}

func (d *onDisks) disk(k int) (*os.File, error) {
	if f := d.files[k]; f != nil {
		return f, nil
	}
	pv := d.view.VG.PVs[k]
	if err := d.view.Missing(pv); err != nil {
		return nil, err
	}
	f, err := openDisk(pv, os.O_RDONLY|unix.O_DIRECT)
	if err != nil {
		return nil, err
	}
	if d.files == nil {
		d.files = map[int]*os.File{}
	}
	d.files[k] = f
	return f, nil
}

// readFrozen calls read with the store of a frozen layer of v. LVM2 may move the store in the
// meantime, so the result is valid only if the layer has the same extents afterwards
// (SameExtents).
func readFrozen(v *view, l *catalog.Layer, read func(*cow.Store) error) error {
	on := onDisks{view: v}
	defer on.close()
	store, err := on.store(l.LV, v.BytesOf(l.LV))
	if err != nil {
		return err
	}
	return read(store)
}

// scattered reads a logical volume from the disks.
type scattered struct {
	extent size.Bytes
	ranges []lvm2.Range
	files  []*os.File   // disk of each range
	starts []size.Bytes // start of each range on its disk
}

// ReadAt implements io.ReaderAt.
func (d *scattered) ReadAt(b []byte, at int64) (n int, err error) {
	begin := size.Bytes(0)
	for i, r := range d.ranges {
		end := begin + size.Bytes(r.Count)*d.extent
		for n < len(b) && size.Bytes(at)+size.Bytes(n) >= begin && size.Bytes(at)+size.Bytes(n) < end {
			here := size.Bytes(at) + size.Bytes(n)
			part := b[n:min(len(b), n+int(end-here))]
			k, err := d.files[i].ReadAt(part, int64(d.starts[i]+here-begin))
			if n += k; errors.Is(err, io.EOF) { // the disk has shrunk; the store has not ended
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return n, err
			}
		}
		begin = end
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}
