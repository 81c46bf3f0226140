package pool

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// Module is a part of the kernel that most kernels have as a loadable module.
type Module struct {
	Name    string // name for modprobe
	Part    string // the needed part: a device-mapper target, or a file system
	Missing bool   // the kernel does not have it, and could not load it
	without string // what needs it, for the message
}

// String says what is missing and what to do. The kernel loads modules
// automatically, so a missing module is either not installed or barred from
// modprobe.
func (m Module) String() string {
	return fmt.Sprintf("the kernel has no %s and could not load it: %s; run modprobe %s on the node, and have it loaded at boot; some distributions have it in a separate package (linux-modules-extra, kernel-modules-extra)",
		m.Part, m.without, m.Name)
}

type target struct {
	name, module, without string
	always                bool // a pool cannot be opened without it
}

// targets are the device-mapper targets that the engine uses.
var targets = []target{
	{"linear", "dm-mod", "volumes need it", true},
	{"error", "dm-mod", "without it, lost parts cannot be marked as lost", false},
	{"snapshot", "dm-snapshot", "snapshots need it", true},
	{"snapshot-origin", "dm-snapshot", "snapshots need it", true},
	{targetMirror, "dm-mirror", "without it, restored, cloned and rolled back volumes can be used, but are not copied and keep the snapshots that they read through", false},
}

const targetMirror = "mirror"

// errModule says that a kernel module is missing.
var errModule = errors.New("a kernel module is missing")

// missPause is the pause before the kernel is asked again for a missing target,
// because each question runs modprobe.
const missPause = 2 * time.Second

// hasTarget makes the kernel load a target if necessary. It returns errModule, with
// the remedy, if the kernel cannot load it.
func (p *Pool) hasTarget(name string) (Module, error) {
	i := slices.IndexFunc(targets, func(t target) bool { return t.name == name })
	m := Module{Name: targets[i].module, Part: "device-mapper target " + name, without: targets[i].without}
	missed, asked := p.facts.missed.get(name)
	m.Missing = asked && time.Since(missed) < missPause
	if !m.Missing {
		_, err := p.dm.TargetVersion(name)
		if m.Missing = errors.Is(err, dm.ErrNotFound); !m.Missing {
			return m, err
		}
		p.facts.missed.put(name, time.Now())
	}
	return m, fmt.Errorf("%w: %s", errModule, m)
}

// needsTargets returns an error if the kernel lacks a target without which the pool
// cannot be opened. It logs the other missing targets.
func (p *Pool) needsTargets() error {
	for _, t := range targets {
		m, err := p.hasTarget(t.name)
		switch {
		case err == nil:
		case t.always && m.Missing:
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case !m.Missing:
			return err
		default:
			p.log.Error(nil, "A kernel module is missing", "module", m.Name, "why", m.String())
		}
	}
	return nil
}

// modules returns the parts of the kernel that the engine and the volumes of v
// need.
func (p *Pool) modules(v *view) ([]Module, error) {
	var out []Module
	for _, t := range targets {
		m, err := p.hasTarget(t.name)
		if err != nil && !m.Missing {
			return nil, err
		}
		out = append(out, m)
	}
	used := map[string]bool{}
	for _, o := range v.Volumes.All() {
		if o.FS != "" && !o.Deleted {
			used[o.FS] = true
		}
	}
	for _, fs := range slices.Sorted(maps.Keys(used)) {
		has, err := hasFilesystem(fs)
		if err != nil {
			return nil, err
		}
		out = append(out, Module{Name: fs, Part: "file system " + fs, Missing: !has, without: "volumes with this file system cannot be mounted"})
	}
	return out, nil
}

// Modules returns the parts of the kernel that the pool needs, and whether each is
// missing.
func (p *Pool) Modules() ([]Module, error) {
	v, err := p.latest()
	if err != nil {
		return nil, err
	}
	return p.modules(v)
}

// moduleConditions returns a condition for each missing module.
func (p *Pool) moduleConditions(v *view) (out []Condition) {
	all, err := p.modules(v)
	if err != nil {
		return []Condition{{Degraded, "ModuleMissing", fmt.Sprintf("cannot tell which modules the kernel has: %v", err)}}
	}
	for _, m := range all {
		if m.Missing {
			out = append(out, Condition{Degraded, "ModuleMissing", m.String()})
		}
	}
	return out
}

// hasFilesystem reports whether the kernel can mount a type of file system. It
// makes the kernel load the module if necessary.
func hasFilesystem(fs string) (bool, error) {
	f, err := os.Open("/proc/filesystems")
	if err != nil {
		return false, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if words := strings.Fields(lines.Text()); len(words) > 0 && words[len(words)-1] == fs {
			return true, nil
		}
	}
	fd, err := unix.Fsopen(fs, unix.FSOPEN_CLOEXEC)
	switch {
	case err == nil:
		return true, unix.Close(fd)
	case errors.Is(err, unix.ENODEV):
		return false, nil
	}
	return false, fmt.Errorf("checking whether the kernel has file system %s: %w", fs, os.NewSyscallError("fsopen", err))
}
