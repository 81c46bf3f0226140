package lvm2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// freshDisks are devices that will become physical volumes.
type freshDisks struct {
	devices []*device
	labels  []*label
	areas   []*metadataArea
}

func (f *freshDisks) close() {
	for _, d := range f.devices {
		d.file.Close()
	}
}

// prepare checks the devices and adds a physical volume for each device to vg. It
// writes nothing.
func prepare(paths []string, vg *VG, metadataSize, alignment size.Bytes) (*freshDisks, error) {
	fresh := &freshDisks{}
	if len(paths) == 0 {
		return fresh, fmt.Errorf("no devices are given: %w", ErrInvalid)
	}
	seen := map[identity]string{}
	for _, path := range paths {
		d, err := openFree(path, os.O_RDWR)
		if err != nil {
			return fresh, fmt.Errorf("device %s: %w", path, err)
		}
		fresh.devices = append(fresh.devices, d)
		if other, ok := seen[d.id]; ok {
			return fresh, fmt.Errorf("devices %s and %s are the same: %w", other, path, ErrInvalid)
		}
		seen[d.id] = path
	}
	if err := errors.Join(fresh.checkBlank(vg), fresh.checkBlocks(vg)); err != nil {
		return fresh, err
	}
	for _, d := range fresh.devices {
		if err := fresh.plan(d, vg, metadataSize, alignment); err != nil {
			return fresh, err
		}
	}
	return fresh, nil
}

// plan computes the layout of a physical volume like pvcreate: the label, the
// metadata area, and the extents from the next aligned byte on.
func (f *freshDisks) plan(d *device, vg *VG, metadataSize, alignment size.Bytes) error {
	extent := vg.ExtentSize.Bytes()
	dataStart, err := d.dataStart(extent, metadataSize, alignment)
	if err != nil {
		return fmt.Errorf("device %s: %w", d.path, err)
	}
	count := Extents((d.size - dataStart) / extent)
	if count > maxExtents {
		return fmt.Errorf("device %s has %d extents, and LVM2 allows %d: %w; choose a larger extent size", d.path, count, uint64(maxExtents), ErrInvalid)
	}
	l := &label{
		id:   NewID(),
		size: d.size,
		data: []region{{offset: dataStart}},
		// Set from the start, so that no other program uses the device while the
		// volume group is written.
		used:     true,
		metadata: []region{{metadataStart, dataStart - metadataStart}},
	}
	pv := &PV{
		ID: l.id, Device: d.path, Size: d.size.Sectors(), PEStart: dataStart.Sectors(), PECount: count,
		Status: []string{statusAllocatable}, BlockSize: d.unit, at: d.id, key: vg.newKey(),
	}
	pv.text = pv.encode()
	vg.PVs = append(vg.PVs, pv)
	a := &metadataArea{dev: d, where: l.metadata[0], header: mdaHeader{start: l.metadata[0].offset, size: l.metadata[0].size}}
	a.raw = a.header.encode()
	f.labels, f.areas = append(f.labels, l), append(f.areas, a)
	return nil
}

// dataStart returns the offset of the first extent of a physical volume on d.
func (d *device) dataStart(extent, metadataSize, alignment size.Bytes) (size.Bytes, error) {
	start := (metadataStart + metadataSize).RoundUp(alignment)
	if d.size < start+extent {
		return 0, fmt.Errorf("%w: it has %v and needs %v of metadata and an extent of %v", ErrTooSmall, d.size, start, extent)
	}
	return start, nil
}

// checkBlank rejects devices with content, except physical volumes without a volume
// group that an interruption has left.
func (f *freshDisks) checkBlank(vg *VG) error {
	content := contents(f.devices, vg)
	for _, d := range f.devices {
		if err := content[d]; err != nil {
			return fmt.Errorf("device %s: %w", d.path, err)
		}
	}
	return nil
}

// checkBlocks rejects devices whose logical block size differs from the block size
// of vg or of each other. A logical volume that spans both kinds has the larger
// blocks, and a file system that was made with the smaller blocks cannot be mounted
// on it.
func (f *freshDisks) checkBlocks(vg *VG) error {
	kinds := vg.blockSizes()
	for _, d := range f.devices {
		if err := d.checkBlocks(kinds); err != nil {
			return fmt.Errorf("device %s: %w", d.path, err)
		}
		kinds = append(kinds, d.unit)
	}
	return nil
}

// blockSizes returns the logical block size of each physical volume that is present.
func (vg *VG) blockSizes() (kinds []size.Bytes) {
	for _, pv := range vg.PVs {
		if pv.BlockSize != 0 {
			kinds = append(kinds, pv.BlockSize)
		}
	}
	return kinds
}

func (d *device) checkBlocks(kinds []size.Bytes) error {
	if len(kinds) > 0 && !slices.Contains(kinds, d.unit) {
		return fmt.Errorf("%w: %d bytes, other devices of the volume group have %d", ErrBlockSize, uint64(d.unit), uint64(kinds[0]))
	}
	return nil
}

// unfinished reports whether p was left by an interrupted CreateVG or Extend, or by
// vgcreate or vgextend: its label is marked as used, but no text is committed.
//
// A commit prepares its text on all physical volumes that the text lists, before it
// commits the text anywhere. So a physical volume without a prepared text is in no
// volume group. A physical volume with a prepared text is in no volume group in two
// cases: the text is of vg, which does not list the physical volume; or given has
// all physical volumes of the text, and none has a committed text.
func (p *disk) unfinished(vg *VG, given []*disk) bool {
	if !p.label.used || len(p.areas) == 0 || vg.PVIndex(p.label.id) >= 0 {
		return false
	}
	for _, a := range p.areas {
		h := a.header
		if a.bad || h.committed != (slot{}) {
			return false
		}
		if h.precommit == (slot{}) {
			continue
		}
		prepared, err := a.prepared()
		if err != nil || prepared.ID != vg.ID && !allUncommitted(prepared, given) {
			return false
		}
	}
	return true
}

// prepared returns the volume group of the prepared text.
func (a *metadataArea) prepared() (*VG, error) {
	s := a.header.precommit
	if s.offset < mdaHeaderSize || s.offset >= a.header.size || s.size > a.header.size-mdaHeaderSize {
		return nil, ErrDamaged
	}
	text, err := a.readText(s)
	if err != nil {
		return nil, err
	}
	if checksum(text) != s.crc {
		return nil, ErrDamaged
	}
	return ParseVG(text)
}

func allUncommitted(vg *VG, given []*disk) bool {
	uncommitted := map[ID]bool{}
	for _, p := range given {
		for _, a := range p.areas {
			uncommitted[p.label.id] = !a.bad && a.header.committed == (slot{})
		}
	}
	for _, pv := range vg.PVs {
		if !uncommitted[pv.ID] {
			return false
		}
	}
	return true
}

// checkNameFree returns ErrExists if another volume group on this machine has the
// name. It reads only disks and partitions, because a read of a device-mapper device
// could block forever.
func checkNameFree(ctx context.Context, name string) error {
	entries, err := filepath.Glob("/sys/class/block/*")
	if err != nil {
		return err
	}
	var paths []string
	for _, entry := range entries {
		device := filepath.Base(entry)
		length, err := os.ReadFile(filepath.Join(entry, "size"))
		if err != nil || strings.TrimSpace(string(length)) == "0" || strings.HasPrefix(device, "dm-") {
			continue
		}
		paths = append(paths, filepath.Join("/dev", strings.ReplaceAll(device, "!", "/")))
	}
	found, err := Scan(ctx, paths)
	if err != nil {
		return err
	}
	for _, d := range found {
		if d.VG == name {
			return fmt.Errorf("device %s has a volume group with the name: %w", d.Path, ErrExists)
		}
	}
	return nil
}

// label adds the devices to lvm2's devices file, and then writes their metadata areas
// and labels.
func (h Host) label(ctx context.Context, fresh *freshDisks) error {
	ids := map[string]ID{}
	for i, d := range fresh.devices {
		ids[d.path] = fresh.labels[i].id
	}
	if err := h.addDevices(ctx, ids); err != nil {
		return err
	}
	for i, d := range fresh.devices {
		// The label must be last: it makes the metadata area visible.
		if err := errors.Join(d.write(fresh.areas[i].raw, metadataStart), d.sync()); err != nil {
			return err
		}
		head := alignedBuffer(metadataStart)
		copy(head[labelSector*size.SectorBytes:], fresh.labels[i].encode())
		if err := errors.Join(d.write(head, 0), d.sync()); err != nil {
			return err
		}
	}
	return nil
}
