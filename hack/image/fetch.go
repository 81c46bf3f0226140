package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// fetchLimit is how long one call of apt-get may take, so that a mirror that
// accepts connections and never answers does not block a build.
const fetchLimit = 3 * time.Minute

// fetch downloads the packages that dir lacks from the sources of this
// machine's apt. It uses lists of its own and the given architecture, and needs
// no root.
func fetch(arch, dir string) error {
	var missing []string
	for _, p := range packages {
		if _, err := packageFile(dir, p, arch); errors.Is(err, os.ErrNotExist) {
			missing = append(missing, p)
		} else if err != nil {
			return err
		}
	}
	if len(missing) == 0 {
		return nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	state := filepath.Join(dir, "apt")
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(state, d), 0o755); err != nil {
			return err
		}
	}
	defer os.RemoveAll(state)
	apt := func(args ...string) error {
		ctx, cancel := context.WithTimeout(context.Background(), fetchLimit)
		defer cancel()
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-qq",
			"-o", "Dir::State::Lists=" + filepath.Join(state, "lists"), "-o", "Dir::State::Status=/dev/null",
			"-o", "Dir::Cache=" + filepath.Join(state, "cache"),
			"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures::=" + arch,
			"-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none", "-o", "Acquire::Retries=3",
			"-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20",
		}, args...)...)
		cmd.Dir = dir
		cmd.WaitDelay = 5 * time.Second // apt's methods hold the output open
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w: %s", args[0], errors.Join(err, ctx.Err()), out)
		}
		return nil
	}
	if err := apt("update"); err != nil {
		return err
	}
	return apt(append([]string{"download"}, missing...)...)
}

// packageFile returns the path of a package's only file in dir.
func packageFile(dir, name, arch string) (string, error) {
	found, err := filepath.Glob(filepath.Join(dir, name+"_*_"+arch+".deb"))
	switch {
	case err != nil:
		return "", err
	case len(found) == 0:
		return "", fmt.Errorf("%w: package %s for %s in %s", os.ErrNotExist, name, arch, dir)
	case len(found) > 1:
		return "", fmt.Errorf("several versions of a package: %s; delete all but one", strings.Join(found, ", "))
	}
	return found[0], nil
}
