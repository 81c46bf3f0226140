package driver

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

func block(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

func mount(mode csi.VolumeCapability_AccessMode_Mode, fs string, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fs, MountFlags: flags}},
	}
}

const (
	writer       = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	singleWriter = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	multiWriter  = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	reader       = csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
	manyReaders  = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
)

// Capabilities are combined into one use. A list that is empty, contradictory
// or not supported is INVALID_ARGUMENT.
func TestParseUsages_combined(t *testing.T) {
	for name, c := range map[string]struct {
		list []*csi.VolumeCapability
		want usage
		ok   bool
	}{
		"writer":         {[]*csi.VolumeCapability{mount(writer, "xfs")}, usage{mode: pool.Filesystem, fsType: "xfs"}, true},
		"default fs":     {[]*csi.VolumeCapability{mount(multiWriter, "")}, usage{mode: pool.Filesystem}, true},
		"single writer":  {[]*csi.VolumeCapability{mount(singleWriter, "btrfs")}, usage{mode: pool.Filesystem, fsType: "btrfs", singleWriter: true}, true},
		"block":          {[]*csi.VolumeCapability{block(writer)}, usage{mode: pool.Block}, true},
		"reader":         {[]*csi.VolumeCapability{mount(reader, "ext4")}, usage{mode: pool.Filesystem, fsType: "ext4", readOnly: true}, true},
		"readers":        {[]*csi.VolumeCapability{block(manyReaders)}, usage{mode: pool.Block, readOnly: true, multiNode: true}, true},
		"reader, writer": {[]*csi.VolumeCapability{block(manyReaders), block(writer)}, usage{mode: pool.Block, multiNode: true}, true},
		"fs in one":      {[]*csi.VolumeCapability{mount(writer, "xfs"), mount(reader, "")}, usage{mode: pool.Filesystem, fsType: "xfs"}, true},

		"none":           {},
		"nil":            {list: []*csi.VolumeCapability{nil}},
		"no access type": {list: []*csi.VolumeCapability{{AccessMode: &csi.VolumeCapability_AccessMode{Mode: writer}}}},
		"no access mode": {list: []*csi.VolumeCapability{block(csi.VolumeCapability_AccessMode_UNKNOWN)}},
		"single, multi":  {list: []*csi.VolumeCapability{block(csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER)}},
		"multi, multi":   {list: []*csi.VolumeCapability{block(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)}},
		"vfat":           {list: []*csi.VolumeCapability{mount(writer, "vfat")}},
		"both types":     {list: []*csi.VolumeCapability{block(writer), mount(writer, "")}},
		"two fs":         {list: []*csi.VolumeCapability{mount(writer, "xfs"), mount(writer, "ext4")}},
		"bad second":     {list: []*csi.VolumeCapability{block(writer), nil}},
	} {
		got, err := parseUsages(c.list)
		switch {
		case c.ok && err != nil:
			t.Errorf("%s: %v", name, err)
		case !c.ok && status.Code(err) != codes.InvalidArgument:
			t.Errorf("%s: error %v, want INVALID_ARGUMENT", name, err)
		case c.ok && (got.mode != c.want.mode || got.fsType != c.want.fsType || got.readOnly != c.want.readOnly ||
			got.multiNode != c.want.multiNode || got.singleWriter != c.want.singleWriter):
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// mismatch names the reason exactly when the volume does not support the use.
func TestUsage_mismatch(t *testing.T) {
	plain := pool.Volume{Mode: pool.Filesystem, FSType: "ext4", Formatted: true}
	copied := pool.Volume{Mode: pool.Filesystem, FSType: "ext4", Formatted: true, Copied: true}
	frozen := pool.Volume{Mode: pool.Filesystem, FSType: "ext4", Formatted: true, Copied: true, ReadOnly: true}
	raw := pool.Volume{Mode: pool.Block}
	unwiped := pool.Volume{Mode: pool.Filesystem, FSType: "ext4", Formatted: true, Unwiped: 1}
	for _, c := range []struct {
		v    pool.Volume
		cap  *csi.VolumeCapability
		want string // part of the answer
	}{
		{plain, mount(writer, ""), ""},
		{plain, mount(singleWriter, "ext4"), ""},
		{plain, mount(reader, "ext4"), ""},
		{plain, mount(writer, "xfs"), "ext4"},
		{plain, block(writer), ""},
		{unwiped, block(writer), "never wiped"},
		{unwiped, mount(writer, ""), ""},
		{plain, mount(manyReaders, ""), "MULTI_NODE_READER_ONLY"},
		{copied, mount(manyReaders, ""), ""},
		{copied, mount(writer, ""), ""},
		{frozen, mount(manyReaders, ""), ""},
		{frozen, mount(reader, ""), ""},
		{frozen, mount(writer, ""), "readers"},
		{raw, block(multiWriter), ""},
		{raw, mount(writer, "ext4"), ""},
	} {
		u, err := parseUsage(c.cap)
		if err != nil {
			t.Fatal(err)
		}
		if got := u.mismatch(c.v); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%+v, %v: %q, want %q", c.v, c.cap, got, c.want)
		}
	}
}
