package driver

import (
	"cmp"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

const defaultFSType = filesystem.Ext4

// usage is the use of a volume that one or several volume capabilities request.
type usage struct {
	mode         pool.Mode
	fsType       string   // "" if no capability names a file system
	mountFlags   []string // set only by parseUsage, for a single capability
	readOnly     bool     // nobody writes to the volume
	multiNode    bool     // readers on several nodes use the volume
	singleWriter bool     // the volume is published at one target path at a time
}

// parseUsage checks one capability and returns the use that it requests.
// Errors: INVALID_ARGUMENT.
func parseUsage(c *csi.VolumeCapability) (usage, error) {
	var u usage
	switch {
	case c == nil:
		return u, invalid("no volume capability is given")
	case c.GetBlock() != nil:
		u.mode = pool.Block
	case c.GetMount() != nil:
		u.mode = pool.Filesystem
		u.fsType = c.GetMount().GetFsType()
		u.mountFlags = filesystem.SplitOptions(c.GetMount().GetMountFlags()...)
	default:
		return u, invalid("the volume capability has no access type; it must be mount or block")
	}
	if u.fsType != "" && !filesystem.Supported(u.fsType) {
		return u, invalid("file system %q is not supported; use ext4, xfs or btrfs", u.fsType)
	}
	switch mode := c.GetAccessMode().GetMode(); mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER:
		u.singleWriter = true
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:
		u.readOnly = true
	case csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:
		u.readOnly, u.multiNode = true, true
	case csi.VolumeCapability_AccessMode_UNKNOWN:
		return u, invalid("the volume capability has no access mode")
	default:
		return u, invalid("access mode %s is not supported; a volume can be written only on its own node", mode)
	}
	return u, nil
}

// parseUsages checks the capabilities of one volume and combines them. All must
// have the same access type and file system. The combined use is read-only only
// if all capabilities are. Errors: INVALID_ARGUMENT.
func parseUsages(list []*csi.VolumeCapability) (usage, error) {
	if len(list) == 0 {
		return usage{}, invalid("no volume capabilities are given")
	}
	all := usage{readOnly: true}
	for _, c := range list {
		u, err := parseUsage(c)
		if err != nil {
			return usage{}, err
		}
		if cmp.Or(all.mode, u.mode) != u.mode {
			return usage{}, invalid("one volume cannot be both a file system and a block device")
		}
		if u.fsType != "" && cmp.Or(all.fsType, u.fsType) != u.fsType {
			return usage{}, invalid("one volume cannot have both %s and %s", all.fsType, u.fsType)
		}
		all.mode, all.fsType = u.mode, cmp.Or(u.fsType, all.fsType)
		all.readOnly = all.readOnly && u.readOnly
		all.multiNode = all.multiNode || u.multiNode
		all.singleWriter = all.singleWriter || u.singleWriter
	}
	return all, nil
}

// as returns the volume v with the mode and file system of this use, if v is
// LVM2's own logical volume: such a volume can be used in either mode.
func (u usage) as(v pool.Volume) pool.Volume {
	if v.Foreign {
		v.Mode, v.FSType = u.mode, u.fsType
	}
	return v
}

// mismatch explains why a volume does not support this use; "" if it does.
func (u usage) mismatch(v pool.Volume) string {
	v = u.as(v)
	switch {
	case u.mode == pool.Block && !v.AsBlock():
		return "it cannot be a block device: " + pool.NeverWiped
	case u.fsType != "" && v.FSType != "" && u.fsType != v.FSType:
		return "the volume has " + v.FSType + ", not " + u.fsType
	case v.ReadOnly && !u.readOnly:
		return "the volume was made for readers only"
	case u.multiNode && !v.Copied && !v.Shared:
		return "MULTI_NODE_READER_ONLY needs a volume made from a snapshot or volume, or made for readers and writers"
	}
	return ""
}

// mountReadOnly reports whether the volume must be mounted read-only, even if
// the request does not ask for it.
func (u usage) mountReadOnly(v pool.Volume) bool {
	return u.readOnly || v.ReadOnly || slices.Contains(u.mountFlags, "ro")
}
