// Package build compiles the programs that a cluster consists of from the
// modules that go.mod pins, into a directory that is kept until go.mod changes.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CacheVar names the environment variable that moves the cache; without it
// the cache is in the user's cache directory.
const CacheVar = "DMSNAP_E2E_CACHE"

// Set is a complete set of programs.
type Set struct {
	Dir string // the directory that the programs are in
	Key string // differs when any program may differ

	module string // the directory of go.mod
}

// Path returns the file of a program.
func (s *Set) Path(program string) string { return filepath.Join(s.Dir, program) }

// Programs compiles what is not in the cache yet: what a cluster needs, and
// for tests also Kubernetes' own. The directory module is the one of go.mod;
// what is going on is written to log.
func Programs(ctx context.Context, module string, tests bool, log io.Writer) (*Set, error) {
	base, err := cacheDir()
	if err != nil {
		return nil, err
	}
	key, err := cacheKey(module)
	if err != nil {
		return nil, err
	}
	set := &Set{Dir: filepath.Join(base, key, "bin"), Key: key, module: module}
	lock, err := lockDir(set.Dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	for _, p := range programs {
		if p.Test && !tests || set.has(p) {
			continue
		}
		start := time.Now()
		fmt.Fprintf(log, "building %s\n", strings.Join(p.names(), " "))
		if err := set.compile(ctx, p); err != nil {
			return nil, err
		}
		fmt.Fprintf(log, "built in %v\n", time.Since(start).Round(time.Second))
	}
	return set, nil
}

func (s *Set) has(p program) bool {
	for _, name := range p.names() {
		if _, err := os.Stat(s.Path(name)); err != nil {
			return false
		}
	}
	return true
}

// compile builds aside, so that what is in place is complete.
func (s *Set) compile(ctx context.Context, p program) error {
	dir, err := os.MkdirTemp(filepath.Dir(s.Dir), "new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := p.compile(ctx, s.module, dir); err != nil {
		return err
	}
	for _, name := range p.names() {
		if err := os.Rename(filepath.Join(dir, name), s.Path(name)); err != nil {
			return err
		}
	}
	return nil
}

// CacheFile returns the path of a file that is kept beside the programs.
func (s *Set) CacheFile(name string) string { return filepath.Join(filepath.Dir(s.Dir), name) }

// Module says which version of a module is built and where its files are.
func (s *Set) Module(ctx context.Context, path string) (version, dir string, err error) {
	out, err := run(ctx, s.module, "go", "list", "-m", "-json", path)
	if err != nil {
		return "", "", err
	}
	var m struct{ Version, Dir string }
	if err := json.Unmarshal(out, &m); err != nil {
		return "", "", fmt.Errorf("go list -m %s: %w", path, err)
	}
	return m.Version, m.Dir, nil
}

// Compile builds a package of this module or of the one above into a file.
func (s *Set) Compile(ctx context.Context, pkg, file string) error {
	_, err := run(ctx, s.module, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", file, pkg)
	return err
}

func cacheDir() (string, error) {
	if dir := os.Getenv(CacheVar); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for the compiled cluster, set %s: %w", CacheVar, err)
	}
	return filepath.Join(dir, "csi-dmsnap", "e2e"), nil
}

// cacheKey digests what decides how the programs come out.
func cacheKey(module string) (string, error) {
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", err
		}
		sum.Write(data)
	}
	fmt.Fprint(sum, programs, runtime.Version())
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// lockDir makes the directory and locks it, waiting for whoever builds in it.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return f, nil
}

func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}
