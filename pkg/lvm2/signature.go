package lvm2

import (
	"fmt"
	"os"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// signatureWindow is the length that Signature reads at each end of a device. All
// known magic numbers lie there.
const signatureWindow = size.MiB

// magic is a byte string at a fixed offset from the start of the device or, if
// negative, from its end.
type magic struct {
	name  string
	at    int64
	bytes string
}

// magics has the offsets and values in the documents of the formats and in the
// kernel's headers.
var magics = []magic{
	{"LVM1 physical volume", 0, "HM\x01\x00"},
	{"LVM1 physical volume", 0, "HM\x02\x00"},
	{"ext2, ext3 or ext4 file system", 1080, "\x53\xef"},
	{"xfs file system", 0, "XFSB"},
	{"xfs log", 0, "\xfe\xed\xba\xbe"},
	{"btrfs file system", 65600, "_BHRfS_M"},
	{"NTFS file system", 3, "NTFS    "},
	{"exFAT file system", 3, "EXFAT   "},
	{"FAT file system", 54, "FAT12   "},
	{"FAT file system", 54, "FAT16   "},
	{"FAT file system", 82, "FAT32   "},
	{"ISO 9660 file system", 32769, "CD001"},
	{"UDF file system", 32769, "BEA01"},
	{"UDF file system", 32769, "NSR0"},
	{"f2fs file system", 1024, "\x10\x20\xf5\xf2"},
	{"erofs file system", 1024, "\xe2\xe1\xf5\xe0"},
	{"squashfs file system", 0, "hsqs"},
	{"cramfs file system", 0, "\x45\x3d\xcd\x28"},
	{"romfs file system", 0, "-rom1fs-"},
	{"JFS file system", 32768, "JFS1"},
	{"reiserfs file system", 65588, "ReIsEr"},
	{"reiserfs file system", 8244, "ReIsEr"},
	{"reiser4 file system", 65536, "ReIsEr4"},
	{"GFS2 file system", 65536, "\x01\x16\x19\x70"},
	{"OCFS2 file system", 1024, "OCFSV2"},
	{"OCFS2 file system", 2048, "OCFSV2"},
	{"OCFS2 file system", 4096, "OCFSV2"},
	{"OCFS2 file system", 8192, "OCFSV2"},
	{"nilfs2 file system", 1030, "\x34\x34"},
	{"HFS+ file system", 1024, "H+"},
	{"HFS+ file system", 1024, "HX"},
	{"HFS file system", 1024, "BD"},
	{"minix file system", 1040, "\x7f\x13"},
	{"minix file system", 1040, "\x8f\x13"},
	{"minix file system", 1040, "\x68\x24"},
	{"minix file system", 1040, "\x78\x24"},
	{"minix file system", 1048, "\x5a\x4d"},
	{"UFS file system", 9564, "\x54\x19\x01\x00"},
	{"UFS file system", 66908, "\x19\x01\x54\x19"},
	{"ReFS file system", 3, "ReFS\x00\x00\x00\x00"},
	{"APFS container", 32, "NXSB"},
	{"LUKS volume", 0, "LUKS\xba\xbe"},
	{"LUKS volume", 16384, "SKUL\xba\xbe"},
	{"BitLocker volume", 3, "-FVE-FS-"},
	{"GPT partition table", 512, "EFI PART"},
	{"GPT partition table", 4096, "EFI PART"},
	{"GPT partition table", -512, "EFI PART"},
	{"GPT partition table", -4096, "EFI PART"},
	{"boot sector or MBR partition table", 510, "\x55\xaa"},
	{"Apple partition table", 512, "PM\x00\x00"},
	{"Sun partition table", 508, "\xda\xbe"},
	{"BSD disk label", 512, "\x57\x45\x56\x82"},
	{"BSD disk label", 64, "\x57\x45\x56\x82"},
	{"SGI disk label", 0, "\x0b\xe5\xa9\x41"},
	{"DASD volume", 8192, "\xe5\xd6\xd3\xf1"},
	{"device-mapper snapshot store", 0, "SnAp"},
	{"dm-integrity device", 0, "integrt\x00"},
	{"dm-verity device", 0, "verity\x00\x00"},
	{"dm-writecache device", 0, "\x21\x93\x48\x23"},
	{"VDO volume", 0, "dmvdo001"},
	{"Stratis pool", 512 + 4, "!Stra0tis\x86\xff\x02^\x41rh"},
	{"dm-thin metadata", 32, "\xba\x52\x9c\x01"},
	{"dm-cache metadata", 32, "\x03\xc4\x18\x00"},
	{"bcache device", 4120, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
	{"bcachefs file system", 4120, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"},
	{"Ceph BlueStore device", 0, "bluestore block device"},
	{"Oracle ASM disk", 32, "ORCLDISK"},
	{"Linux RAID member", 0, "\xfc\x4e\x2b\xa9"},
	{"Linux RAID member", 4096, "\xfc\x4e\x2b\xa9"},
	{"Intel RAID member", -1024, "Intel Raid ISM Cfg Sig. "},
	{"DDF RAID member", -512, "\xde\x11\xde\x11"},
	{"DDF RAID member", -131584, "\xde\x11\xde\x11"},
	{"DRBD device", -4096 + 60, "\x83\x74\x02\x6b"},
	{"DRBD device", -4096 + 60, "\x83\x74\x02\x67"},
}

// Signature returns the kind of content on the device at path: a partition table, a
// file system, a physical volume, a RAID member and others. It returns "" if it
// recognizes no content.
func Signature(path string) (string, error) {
	d, err := openDevice(path, os.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer d.file.Close()
	return d.signature()
}

func (d *device) signature() (string, error) {
	window := min(signatureWindow, d.size)
	head, err := d.read(0, window)
	if err != nil {
		return "", err
	}
	tail, err := d.read(d.size-window, window)
	if err != nil {
		return "", err
	}
	if name := labelSignature(head); name != "" {
		return name, nil
	}
	for _, m := range magics {
		b := head
		at := m.at
		if at < 0 {
			b, at = tail, int64(window)+at
		}
		if at >= 0 && at+int64(len(m.bytes)) <= int64(len(b)) && string(b[at:at+int64(len(m.bytes))]) == m.bytes {
			return m.name, nil
		}
	}
	for _, found := range []string{swapSignature(head), raidSignature(tail, d.size), zfsSignature(head, tail, d.size)} {
		if found != "" {
			return found, nil
		}
	}
	return "", nil
}

// labelSignature finds any LVM2 label, even a damaged label.
func labelSignature(head []byte) string {
	for n := range min(labelSectors, len(head)/size.SectorBytes) {
		if isLabel(head[n*size.SectorBytes:], n) {
			return "LVM2 physical volume"
		}
	}
	return ""
}

// swapSignature looks at the end of the first page, for all page sizes.
func swapSignature(head []byte) string {
	for page := 4096; page <= 65536 && page <= len(head); page *= 2 {
		switch end := head[page-10 : page]; {
		case string(end) == "SWAPSPACE2", string(end) == "SWAP-SPACE":
			return "swap space"
		case string(end[:9]) == "S1SUSPEND", string(end[:9]) == "S2SUSPEND", string(end[:9]) == "ULSUSPEND":
			return "hibernation image"
		}
	}
	return ""
}

// raidSignature finds the superblocks of Linux RAID that lie at a rounded offset near
// the end: versions 0.90 and 1.0.
func raidSignature(tail []byte, length size.Bytes) string {
	start := length - size.Bytes(len(tail))
	for _, at := range []size.Bytes{length&^(64*size.KiB-1) - 64*size.KiB, (length - 8*size.KiB) &^ (4*size.KiB - 1)} {
		if at < start || at+4 > length {
			continue
		}
		b := tail[at-start:]
		if string(b[:4]) == "\xfc\x4e\x2b\xa9" || string(b[:4]) == "\xa9\x2b\x4e\xfc" {
			return "Linux RAID member"
		}
	}
	return ""
}

// zfsSignature looks for an uberblock in the four labels, two at each end of the
// device.
func zfsSignature(head, tail []byte, length size.Bytes) string {
	const label, ring = 256 * size.KiB, 128 * size.KiB
	start := length - size.Bytes(len(tail))
	end := length &^ (label - 1)
	uberblock := func(b []byte) bool {
		for at := 0; at+8 <= len(b); at += 1024 {
			if m := string(b[at : at+8]); m == "\x0c\xb1\xba\x00\x00\x00\x00\x00" || m == "\x00\x00\x00\x00\x00\xba\xb1\x0c" {
				return true
			}
		}
		return false
	}
	for n := range size.Bytes(2) {
		if at := n*label + ring; at+ring <= size.Bytes(len(head)) && uberblock(head[at:at+ring]) {
			return fmt.Sprintf("ZFS pool member (label %d)", n)
		}
		if at := end - (2-n)*label + ring; end >= 2*label && at >= start && uberblock(tail[at-start:at-start+ring]) {
			return fmt.Sprintf("ZFS pool member (label %d)", n+2)
		}
	}
	return ""
}
