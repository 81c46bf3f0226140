// Package build compiles the programs of a cluster from the modules that go.mod
// pins. It keeps them in a directory until go.mod changes.
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

// CacheVar names the environment variable with the directory of the cache.
// Without the variable, the cache is in the user's cache directory.
const CacheVar = "DMSNAP_E2E_CACHE"

// Set is a complete set of programs.
type Set struct {
	Dir string // the directory of the programs
	Key string // changes when any program may change

	module string // the directory of go.mod
}

// Path returns the file of a program.
func (s *Set) Path(program string) string { return filepath.Join(s.Dir, program) }

// Programs compiles the programs that are not in the cache yet: those of a
// cluster and, if tests is set, also Kubernetes' own tests. module is the
// directory of go.mod. Programs writes its progress to log.
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

// compile builds in another directory and then renames, so that the programs in
// place are always complete.
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

// CacheFile returns the path of a file in the cache, next to the programs.
func (s *Set) CacheFile(name string) string { return filepath.Join(filepath.Dir(s.Dir), name) }

// Module returns the version of a module that is built, and the directory of
// its files.
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

// Compile builds a package of this module, or of the repository's main module,
// into a file.
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
		return "", fmt.Errorf("no directory for the compiled programs: %[2]w; set %[1]s", CacheVar, err)
	}
	return filepath.Join(dir, "csi-dmsnap", "e2e"), nil
}

// cacheKey returns a digest of everything that affects the programs.
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

// lockDir makes the directory and locks it. It waits until no other process
// builds there.
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
