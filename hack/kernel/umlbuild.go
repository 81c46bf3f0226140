package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

//go:embed recipe/smp.config
var smpConfig string

// build builds the kernel from Debian's source. It takes about 40 minutes on
// two processors and 3 GB of disk space, of which 17 MB remain in use.
func (k umlKernel) build(fresh, dir string) error {
	for _, tool := range []string{"gcc", "make", "flex", "bison", "bc", "xz", "strip"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w: run hack/deps.sh --kernels", err)
		}
	}
	work := filepath.Join(fresh, "work")
	fmt.Fprintf(os.Stderr, "testkernel: building the kernel %s, once; this takes most of an hour, see %s/*.log\n", k.name, work)
	tree, err := k.unpackSource(work)
	if err != nil {
		return err
	}
	if err := configure(tree); err != nil {
		return err
	}
	if err := follow(tree, work+"/build.log", "make", "ARCH=um", "-j"+strconv.Itoa(runtime.NumCPU())); err != nil {
		return err
	}
	if err := keepBuilt(tree, fresh); err != nil {
		return err
	}
	return os.RemoveAll(work)
}

// unpackSource returns the directory below work that has the source.
func (k umlKernel) unpackSource(work string) (string, error) {
	a, err := newApt(k.suite, "amd64", work)
	if err != nil {
		return "", err
	}
	names, err := output(work, "apt-cache", append(a.options, "pkgnames", "linux-source-")...)
	if err != nil {
		return "", err
	}
	source, wanted := pickSource(k.source, names), k.version
	if source != k.source {
		wanted = ""
		fmt.Fprintf(os.Stderr, "testkernel: %s is no longer in the suite %s; using %s\n", k.source, k.suite, source)
	}
	packed := filepath.Join(work, "packed")
	if err := a.unpack(source, wanted, packed); err != nil {
		return "", err
	}
	archive := filepath.Join(packed, "usr/src", source+".tar.xz")
	if _, err := output(work, "tar", "-xf", archive); err != nil {
		return "", err
	}
	return filepath.Join(work, source), os.RemoveAll(packed)
}

// pickSource returns the wanted package if names, which has one package a line,
// has it. Else it returns the package of the newest kernel, or the wanted one
// if there is none.
func pickSource(wanted, names string) string {
	var newest string
	var version []int
	for _, name := range strings.Fields(names) {
		if name == wanted {
			return wanted
		}
		v, err := parseRelease(strings.TrimPrefix(name, "linux-source-"))
		if err == nil && slices.Compare(v, version) > 0 {
			newest, version = name, v
		}
	}
	if newest == "" {
		return wanted
	}
	return newest
}

// parseRelease parses numbers with dots between them.
func parseRelease(s string) ([]int, error) {
	var numbers []int
	for part := range strings.SplitSeq(s, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// configure makes the configuration of the source in tree.
func configure(tree string) error {
	if err := follow(tree, tree+".config.log", "make", "ARCH=um", "x86_64_defconfig"); err != nil {
		return err
	}
	file := filepath.Join(tree, ".config")
	defaults, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	// If an option has several lines, the last one counts.
	if err := os.WriteFile(file, append(defaults, smpConfig...), 0o644); err != nil {
		return err
	}
	if err := follow(tree, tree+".config.log", "make", "ARCH=um", "olddefconfig"); err != nil {
		return err
	}
	config, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if missing := missingOptions(smpConfig, string(config)); len(missing) > 0 {
		return fmt.Errorf("the kernel in %s cannot have %s", tree, strings.Join(missing, ", "))
	}
	return nil
}

// missingOptions returns the lines of wanted that the configuration lacks.
func missingOptions(wanted, config string) []string {
	have := map[string]bool{}
	for line := range strings.Lines(config) {
		have[strings.TrimSpace(line)] = true
	}
	var missing []string
	for line := range strings.Lines(wanted) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") && !have[line] {
			missing = append(missing, line)
		}
	}
	return missing
}

// keepBuilt copies the needed files of the built tree to the directory fresh.
func keepBuilt(tree, fresh string) error {
	release, err := os.ReadFile(filepath.Join(tree, "include/config/kernel.release"))
	if err != nil {
		return err
	}
	files := cachedFiles(fresh)
	// The kernel is four times as large with debugging symbols.
	if _, err := output(tree, "strip", "--strip-debug", "-o", files.kernel, "linux"); err != nil {
		return err
	}
	modules := filepath.Join(files.modules, strings.TrimSpace(string(release)))
	if err := os.MkdirAll(modules, 0o755); err != nil {
		return err
	}
	for _, list := range []string{"modules.builtin", "modules.builtin.modinfo"} {
		data, err := os.ReadFile(filepath.Join(tree, list))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(modules, list), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// follow runs a command and appends its output to the log. If the command
// fails, the error has the end of the log. The kernel ends the command if this
// process ends. The command's make takes no part in a make that runs this
// process.
func follow(dir, log, name string, args ...string) error {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "MAKE") || strings.HasPrefix(kv, "MFLAGS=")
	})
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log)
		const last = 2000
		text = text[max(0, len(text)-last):]
		return fmt.Errorf("%s %s: %w:\n%s", name, strings.Join(args, " "), err, bytes.TrimSpace(text))
	}
	return nil
}
