// Package machine runs the nodes of the cluster. They are test kernels, as
// hack/testkernel boots them, with disks that survive a power cut.
package machine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/process"
)

// Sizes of the disks, whose files are sparse.
const (
	SystemDiskBytes = 20 << 30
	PoolDiskBytes   = 16 << 30
)

// modules are the modules that a node needs in addition to those of every test
// kernel. They are loaded early, because containers may not load modules.
const modules = "overlay,veth"

// Spec describes a machine.
type Spec struct {
	Name    string
	Runner  string   // the testkernel program
	Memory  string   // in the form of the runner's flag
	System  string   // file of the disk for images and pods
	Pool    string   // file of the disk for the pool; may be empty
	Tap     string   // network device; may be empty
	Share   string   // directory that the machine may write to
	Log     string   // file for everything that the machine prints
	Command []string // runs in the machine; the machine ends when it ends
}

// Start boots the machine. The machine ends when this process does.
func Start(s Spec) (*process.Process, error) {
	disks := s.System + ":" + strconv.Itoa(SystemDiskBytes)
	if s.Pool != "" {
		disks += "," + s.Pool + ":" + strconv.Itoa(PoolDiskBytes)
	}
	argv := []string{
		s.Runner, "run", "-kernel", "uml", "-mem", s.Memory, "-disks", disks, "-modules", modules,
		"-timeout", "0", "-share", s.Share, "-v",
	}
	if s.Tap != "" {
		argv = append(argv, "-tap", s.Tap)
	}
	argv = append(append(argv, "--"), s.Command...)
	// The runner finds room for its own files and for the guest's memory.
	return process.Start("machine "+s.Name, process.Spec{Argv: argv, Log: s.Log})
}

// Cut kills the machine, as a power cut would.
func Cut(p *process.Process) { p.End(20 * time.Second) }

// Format makes an empty file system for a system disk.
func Format(ctx context.Context, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(SystemDiskBytes); err != nil {
		return err
	}
	return command(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", file)
}

// Copy copies a sparse file.
func Copy(ctx context.Context, from, to string) error {
	return command(ctx, "cp", "--sparse=always", "--reflink=auto", from, to)
}

// Runner builds the testkernel program of the repository and returns its path.
func Runner(ctx context.Context, root string) (string, error) {
	if err := command(ctx, filepath.Join(root, "hack", "testkernel"), "-help"); err != nil {
		return "", err
	}
	return filepath.Join(root, "bin", "testkernel"), nil
}

func command(ctx context.Context, argv ...string) error {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}
