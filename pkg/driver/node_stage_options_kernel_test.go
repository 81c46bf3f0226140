//go:build kernel

package driver

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/filesystem"
)

// A read-only restore is mounted without its journal, even with options of its
// class that need the journal.
func TestStage_readerWithOptionsOfWriter(t *testing.T) {
	r := newRig(t)
	for _, q := range []struct {
		fs, written string
		options     []string
	}{
		{filesystem.Ext4, "commit=30", []string{
			"data=journal", "data=writeback", "commit=30", "data_err=abort", "journal_checksum", "journal_ioprio=3",
			"nobarrier", "discard", "noatime,data=ordered,nodelalloc", "errors=panic", "lazytime",
		}},
		{filesystem.XFS, "logbsize=64k", []string{"logbufs=8,logbsize=256k", "discard", "allocsize=1m,largeio", "uquota", "gqnoenforce,prjquota", "inode32", "lazytime"}},
		{filesystem.XFS, "uquota,pqnoenforce", []string{"uquota,pqnoenforce", "noatime", "noquota", "gquota"}},
		{filesystem.Btrfs, "commit=30", []string{"commit=30", "compress=zstd", "discard=async", "flushoncommit,notreelog", "space_cache=v2", "nobarrier", "autodefrag"}},
	} {
		write, c := mount(writer, q.fs, q.written), mount(manyReaders, q.fs)
		name := q.fs + "-" + strings.Map(func(c rune) rune {
			if c == '=' || c == ',' {
				return '-'
			}
			return c
		}, q.written)
		volume := r.volume(request(name, max(int64(filesystem.MinimumSize(q.fs))>>20, 32), write))
		r.must("stage", r.stage(volume, "st", write))
		r.write("st", name)
		r.must("unstage", r.unstage(volume, "st")) // before Linux 6.7 only one btrfs with the same fsid can be mounted
		copied := request("shown-"+name, 0, c)
		copied.VolumeContentSource = fromSnapshot(r.snapshot("of-"+name, volume))
		shown := r.volume(copied)
		for _, o := range q.options {
			c := mount(manyReaders, q.fs, o)
			for range 2 {
				r.must(name+" for readers with "+o, r.stage(shown, "reader", c))
			}
			r.read("reader", name)
			r.must("unstage", r.unstage(shown, "reader"))
		}
	}
}

// Mount options are compared as a set, however they are split and ordered.
func TestStage_optionsInAnyOrder(t *testing.T) {
	r := newRig(t)
	plain := mount(writer, filesystem.Ext4)
	volume := r.volume(request("volume", 32, plain))
	for _, flags := range [][]string{{"noatime,ro"}, {"ro", "noatime"}, {"noexec,nosuid", "noatime"}, {"commit=30,nodev"}} {
		c := mount(writer, filesystem.Ext4, flags...)
		for range 2 {
			r.must(fmt.Sprint("stage ", flags), r.stage(volume, "st", c))
			r.must(fmt.Sprint("publish ", flags), r.publish(volume, "st", "target", c, false))
		}
		for _, at := range []string{"st", "target"} {
			m, err := filesystem.MountAt(r.path(at))
			r.must("look", err)
			for _, o := range filesystem.SplitOptions(flags...) {
				if o != "commit=30" && !filesystem.HasOption(m, o) {
					t.Errorf("%q at %s: %s", flags, at, m.Options)
				}
			}
		}
		other := mount(writer, filesystem.Ext4, append(flags, "nodiratime")...)
		r.want("stage with others", r.stage(volume, "st", other), codes.AlreadyExists)
		r.want("publish with others", r.publish(volume, "st", "target", other, false), codes.AlreadyExists)
		r.must("unpublish", r.unpublish(volume, "target"))
		r.must("unstage", r.unstage(volume, "st"))
	}
}

// A volume is not mounted if mount drops its SELinux label, as it does in a
// container without the host's /sys/fs/selinux. The pod would find its files
// under another label.
func TestStage_labelNotInEffect(t *testing.T) {
	r := newRig(t)
	volume := r.volume(request("volume", 32, mount(writer, filesystem.Ext4)))
	for _, o := range []string{`context="system_u:object_r:container_file_t:s0:c1,c2"`, "fscontext=a:b:c", "defcontext=a:b:c", "rootcontext=a:b:c"} {
		labelled := mount(writer, filesystem.Ext4, "noatime", o)
		r.want("stage with "+o, r.stage(volume, "st", labelled), codes.FailedPrecondition)
		if r.mounted("st") {
			t.Fatalf("%s: it is mounted", o)
		}
		r.must("stage", r.stage(volume, "st", mount(writer, filesystem.Ext4)))
		r.want("stage again with "+o, r.stage(volume, "st", labelled), codes.AlreadyExists)
		r.want("publish with "+o, r.publish(volume, "st", "target", labelled, false), codes.FailedPrecondition)
		if r.mounted("target") {
			t.Fatalf("%s: it is published", o)
		}
		r.must("unstage", r.unstage(volume, "st"))
	}
}

// A staging mount and its bind mount have the mount options of the capability,
// and an unknown option fails the stage.
func TestStage_mountFlags(t *testing.T) {
	r := newRig(t)
	c := mount(writer, "ext4")
	volume := r.volume(request("v", 64, c))
	for _, flags := range [][]string{{"noatime", "noexec", "data=ordered"}, {"ro"}} {
		c.GetMount().MountFlags = flags
		for range 2 {
			r.must("stage", r.stage(volume, "st", c))
			r.must("publish", r.publish(volume, "st", "tg", c, false))
		}
		for _, at := range []string{"st", "tg"} {
			m, err := filesystem.MountAt(r.path(at))
			r.must("mount at "+at, err)
			for _, f := range flags[:min(2, len(flags))] {
				if !filesystem.HasOption(m, f) {
					t.Errorf("%s lacks %s: %s", at, f, m.Options)
				}
			}
		}
		r.must("unpublish", r.unpublish(volume, "tg"))
		r.must("unstage", r.unstage(volume, "st"))
	}
	c.GetMount().MountFlags = []string{"no-such-option"}
	r.want("stage with an unknown option", r.stage(volume, "st", c), codes.Internal)
	r.must("unstage", r.unstage(volume, "st"))
	r.must("delete", r.remove(volume))
}
