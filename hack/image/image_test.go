package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

var debs = flag.String("debs", "../../out/debs", "`directory` of the Debian packages")

const reference = "example.org/csi-dmsnap:v1"

// binaries is the directory in which the tests of this process keep the
// binaries that they build.
var binaries string

func TestMain(m *testing.M) {
	var err error
	if binaries, err = os.MkdirTemp("", "image-test-"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(binaries)
	os.Exit(code)
}

// inputs returns the options for an architecture, and builds the binary if
// needed.
func inputs(t *testing.T, arch string) options {
	t.Helper()
	o := options{arch: arch, binary: filepath.Join(binaries, arch), debs: *debs, reference: reference}
	if _, err := os.Stat(o.binary); err == nil {
		return o
	}
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", o.binary, "./cmd/csi-dmsnap")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return o
}

// TestImage_programsRun: the programs of the image run with only the image's own
// libraries. Those of another architecture run under QEMU.
func TestImage_programsRun(t *testing.T) {
	for arch, emulator := range map[string]string{"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static"} {
		t.Run(arch, func(t *testing.T) {
			if arch == runtime.GOARCH {
				programsRun(t, arch, "")
				return
			}
			path, err := exec.LookPath(emulator)
			if err != nil {
				t.Skipf("%v: install the Debian package qemu-user-static to run the programs of %s", err, arch)
			}
			programsRun(t, arch, path)
		})
	}
}

// programsRun runs the programs by the emulator, which needs no library; directly if
// it is "".
func programsRun(t *testing.T, arch, emulator string) {
	o := inputs(t, arch)
	o.root = t.TempDir()
	if err := o.run(); err != nil {
		t.Fatal(err)
	}
	// These files stand for /proc as far as the tools read it: nothing is
	// mounted.
	if err := (tree{
		"proc/mounts":      {mode: 0o644},
		"proc/self":        {mode: fs.ModeDir | 0o755},
		"proc/self/mounts": {mode: 0o644},
	}).writeDir(o.root); err != nil {
		t.Fatal(err)
	}
	var prefix []string
	if emulator != "" {
		text, err := os.ReadFile(emulator)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(o.root, "emulator"), text, 0o755); err != nil {
			t.Fatal(err)
		}
		prefix = []string{"/emulator"}
	}
	disk := filepath.Join(o.root, "tmp", "disk")
	for _, c := range []struct {
		command string
		want    string // a part of the output
	}{
		{"csi-dmsnap version", "\n"},
		{"csi-dmsnap node --help", "--kubelet-dir"},
		{"mount --version", "util-linux"},
		{"blkid --version", "util-linux"},
		{"mkfs.ext4 -q -F -m 0 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard /tmp/disk", ""},
		{"blkid -p -o export /tmp/disk", "TYPE=ext4"},
		{"e2fsck -f -n /tmp/disk", "Pass 5"},
		{"resize2fs /tmp/disk 320M", "now"},
		{"mkfs.xfs -q -f -K /tmp/disk", ""},
		{"blkid -p -o export /tmp/disk", "TYPE=xfs"},
		{"xfs_repair -n -f /tmp/disk", "Phase 7"},
		{"xfs_growfs -V", "xfs_growfs version"},
		{"mkfs.btrfs -q -f -K /tmp/disk", ""},
		{"blkid -p -o export /tmp/disk", "TYPE=btrfs"},
		{"btrfs check --readonly /tmp/disk", "no error found"},
		{"btrfs filesystem resize --help", "max"},
	} {
		if strings.HasPrefix(c.command, "mkfs.") {
			if err := errors.Join(os.WriteFile(disk, nil, 0o666), os.Truncate(disk, 512<<20)); err != nil {
				t.Fatal(err)
			}
		}
		out, err := inRoot(t.Context(), o.root, prefix, strings.Fields(c.command)...)
		if err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v, %q, want %q", c.command, err, out, c.want)
		}
	}
	for _, tool := range tools {
		if _, err := os.Stat(filepath.Join(o.root, tool)); err != nil {
			t.Error(err)
		}
	}
}

// inRoot runs a program with root as its root directory, for at most two
// minutes: no program has more than a second's work. The prefix comes before the
// program's path.
func inRoot(ctx context.Context, root string, prefix []string, args ...string) (string, error) {
	path := ""
	for _, dir := range []string{"/usr/sbin/", "/usr/bin/"} {
		if _, err := os.Stat(filepath.Join(root, dir, args[0])); err == nil {
			path = dir + args[0]
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	args = append(append(slices.Clone(prefix), path), args[1:]...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = "/", []string{"LC_ALL=C"}, &syscall.SysProcAttr{Chroot: root}
	cmd.WaitDelay = time.Second
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	return string(out), errors.Join(err, ctx.Err())
}

// TestImage_archive: two builds of the same input are equal, the archive is small, and
// another implementation reads it.
func TestImage_archive(t *testing.T) {
	o := inputs(t, "amd64")
	var archives [2][]byte
	for i := range archives {
		o.archive = filepath.Join(t.TempDir(), "image.tar")
		if err := o.run(); err != nil {
			t.Fatal(err)
		}
		var err error
		if archives[i], err = os.ReadFile(o.archive); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two builds of the same input differ")
	}
	const limit = 40e6
	if n := len(archives[0]); n > limit {
		t.Errorf("the archive has %d bytes, want at most %.0f", n, limit)
	}
	// Another implementation must be able to read the archive: this one reads
	// manifest.json.
	img, err := tarball.ImageFromPath(o.archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Config.Entrypoint; len(got) != 1 || got[0] != "/usr/bin/csi-dmsnap" {
		t.Errorf("entry point %v", got)
	}
	if got := config.Config.Labels["org.opencontainers.image.version"]; got != "v1" {
		t.Errorf("version %q", got)
	}
	for name, want := range map[string]string{
		"index.json": `"io.containerd.image.name":"example.org/csi-dmsnap:v1"`,
		"oci-layout": `"1.0.0"`,
	} {
		if text := member(t, archives[0], name); !strings.Contains(text, want) {
			t.Errorf("%s: %s, want %s", name, text, want)
		}
	}
}

// member returns the content of a file in a tar archive.
func member(t *testing.T, archive []byte, name string) string {
	t.Helper()
	in := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := in.Next()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if h.Name == name {
			content, err := io.ReadAll(in)
			if err != nil {
				t.Fatal(err)
			}
			return string(content)
		}
	}
}

// TestImage_arm64: every program in an image for arm64 is for this architecture and
// finds all its libraries.
func TestImage_arm64(t *testing.T) {
	o := inputs(t, "arm64")
	all, program, err := o.layers()
	if err != nil {
		t.Fatal(err)
	}
	all[programPath] = program[programPath]
	programs := 0
	for name, f := range all {
		if f.mode&fs.ModeSetuid != 0 {
			t.Errorf("%s is setuid", name)
		}
		e, err := elf.NewFile(bytes.NewReader(f.content))
		if err != nil {
			continue
		}
		programs++
		if e.Machine != elf.EM_AARCH64 {
			t.Errorf("%s is for %v", name, e.Machine)
		}
	}
	if programs < len(tools) {
		t.Errorf("only %d programs", programs)
	}
	if _, err := programTree("amd64", o.binary); err == nil || !strings.Contains(err.Error(), "AARCH64") {
		t.Errorf("a binary for another machine: %v", err)
	}
}
