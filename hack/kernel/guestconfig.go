package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/hack/kernel/guest"
)

// guestConfig returns the part of the guest's configuration that all kernels
// share. It also puts the first process, which is this same program, into dir. For
// another architecture than the host's, suffix is the end of the program's name.
func guestConfig(opts options, dir *runDir, disks []string, suffix string) (guest.Config, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return guest.Config{}, err
	}
	set := []string{
		"DMSNAP_TEST_DISKS=" + strings.Join(disks, ","),
		"DM_DISABLE_UDEV=1",
	}
	if opts.share != "" {
		set = append(set, "DMSNAP_SHARE="+opts.share)
	}
	set = append(set, opts.path()...)
	self, err := os.Executable()
	if err != nil {
		return guest.Config{}, err
	}
	self += suffix
	if _, err := os.Stat(self); err != nil {
		return guest.Config{}, fmt.Errorf("%w: hack/testkernel builds it", err)
	}
	init := dir.file("init")
	// A hard link, where possible, still names this program after the next
	// build has replaced the file.
	if os.Link(self, init) != nil {
		if err := os.Symlink(self, init); err != nil {
			return guest.Config{}, err
		}
	}
	return guest.Config{
		Argv:     opts.argv,
		Env:      environment(set...),
		Dir:      cwd,
		Modules:  opts.modules,
		Modprobe: init,
		Sync:     slices.ContainsFunc(opts.disks, func(d disk) bool { return d.path != "" }),
	}, nil
}

// shares returns the directories of the host that the guest may write to.
func shares(opts options) []string {
	if opts.share == "" {
		return opts.outputs
	}
	return append(opts.outputs, opts.share)
}

func writeJSON(file string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}
