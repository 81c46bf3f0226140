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

// freshDisks are devices that are about to become physical volumes.
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

// prepare checks the devices and enters a physical volume for each into vg. It
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

// plan lays out a physical volume as pvcreate does: label, metadata area, and
// the extents from the next aligned byte on.
func (f *freshDisks) plan(d *device, vg *VG, metadataSize, alignment size.Bytes) error {
	extent := vg.ExtentSize.Bytes()
	dataStart, err := d.dataStart(extent, metadataSize, alignment)
	if err != nil {
		return fmt.Errorf("device %s: %w", d.path, err)
	}
	count := Extents((d.size - dataStart) / extent)
	if count > maxExtents {
		return fmt.Errorf("device %s has %d extents, LVM2 counts to %d: choose a larger extent size: %w", d.path, count, uint64(maxExtents), ErrInvalid)
	}
	l := &label{
		id:   NewID(),
		size: d.size,
		data: []region{{offset: dataStart}},
		// Set at once: nobody else may take the device for free while its volume
		// group is written.
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

// dataStart is where the extents of a physical volume on d begin.
func (d *device) dataStart(extent, metadataSize, alignment size.Bytes) (size.Bytes, error) {
	start := (metadataStart + metadataSize).RoundUp(alignment)
	if d.size < start+extent {
		return 0, fmt.Errorf("%w: it has %v, less than %v of metadata and an extent of %v", ErrTooSmall, d.size, start, extent)
	}
	return start, nil
}

// checkBlank accepts devices without content, and those that an interruption
// left as physical volumes that are in no volume group.
func (f *freshDisks) checkBlank(vg *VG) error {
	content := contents(f.devices, vg)
	for _, d := range f.devices {
		if err := content[d]; err != nil {
			return fmt.Errorf("device %s: %w", d.path, err)
		}
	}
	return nil
}

// checkBlocks refuses devices with other logical blocks than those of vg, or than
// each other: a logical volume that spans both has the larger ones, with which a
// file system from the smaller cannot be used.
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

// blockSizes lists the logical block sizes of the physical volumes, as often as they are.
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
		return fmt.Errorf("%w: %d bytes, others of the volume group have %d", ErrBlockSize, uint64(d.unit), uint64(kinds[0]))
	}
	return nil
}

// unfinished recognises what CreateVG and Extend, or their like in lvm2, leave
// when they are interrupted: a label marked as used, and nothing committed.
// Before anything is committed anywhere, the text is prepared on all physical
// volumes that it lists. So one without a prepared text is in no volume group,
// and one with it is in none if the text is of this volume group, which does not
// list it, or if everything that the text lists is here and uncommitted.
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

// prepared returns the volume group that a commit was about to write.
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

// checkNameFree refuses a name that a volume group elsewhere on this machine
// has. It looks at disks and partitions; reading device-mapper devices could
// wait for ever.
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
			return fmt.Errorf("it is on %s: %w", d.Path, ErrExists)
		}
	}
	return nil
}

// label makes the devices physical volumes.
func (h Host) label(ctx context.Context, fresh *freshDisks) error {
	ids := map[string]ID{}
	for i, d := range fresh.devices {
		ids[d.path] = fresh.labels[i].id
	}
	if err := h.addDevices(ctx, ids); err != nil {
		return err
	}
	for i, d := range fresh.devices {
		// The label goes last: it makes the rest visible.
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
