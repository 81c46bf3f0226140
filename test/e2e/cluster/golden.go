package cluster

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/build"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/images"
	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/machine"
)

// golden returns the file of the system disk that has all images. Unpacking
// images is slow on a test kernel, so they are unpacked once, and the disk is
// copied for each node.
func golden(ctx context.Context, set *build.Set, runner, self string, log io.Writer) (string, error) {
	archives, key, err := images.Archives(ctx, set, log)
	if err != nil {
		return "", err
	}
	disk := set.CacheFile("system-" + key + ".img")
	if _, err := os.Stat(disk); err == nil {
		return disk, nil
	}
	fmt.Fprintln(log, "unpacking the images into the nodes' initial disk")
	dir, err := os.MkdirTemp(filepath.Dir(disk), "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	unfinished := filepath.Join(dir, "system.img")
	if err := machine.Format(ctx, unfinished); err != nil {
		return "", err
	}
	logFile := filepath.Join(dir, "log")
	p, err := machine.Start(machine.Spec{
		Name: "golden", Runner: runner, Memory: "2G", System: unfinished, Share: dir, Log: logFile,
		Command: append([]string{self, "import", set.Dir}, archives...),
	})
	if err != nil {
		return "", err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		machine.Cut(p)
		return "", ctx.Err()
	}
	if !p.Success() {
		text, _ := os.ReadFile(logFile)
		return "", fmt.Errorf("unpacking the images: %w\n%s", p.Err(), text)
	}
	return disk, os.Rename(unfinished, disk)
}
