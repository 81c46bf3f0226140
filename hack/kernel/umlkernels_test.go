package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestKernels_boot: the cached kernels boot, and so does the kernel in DMSNAP_KERNEL,
// which the runner fetches if needed.
func TestKernels_boot(t *testing.T) {
	base, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range umlKernels {
		if k.suite == "" || !isDir(filepath.Join(base, name)) && os.Getenv("DMSNAP_KERNEL") != name {
			continue
		}
		t.Run(name, func(t *testing.T) {
			got := finish(t, command(t, name, "run", "--disks", "64M", "--", "sh", "-c", `
				uname -r >&2
				dmsetup targets | grep -c -E '^(snapshot|snapshot-origin|mirror|delay) '
				mkfs.ext4 -q $DMSNAP_TEST_DISKS && mount $DMSNAP_TEST_DISKS /mnt && ls /mnt
				dmsetup create z --table '0 8 zero' && dmsetup table z`))
			release := strings.TrimSpace(got.stderr)
			if want := "4\nlost+found\n0 8 zero \n"; got.code != 0 || got.stdout != want {
				t.Errorf("got %v, want %q", got, want)
			}
			if !strings.HasPrefix(k.version, strings.Join(strings.Split(release, ".")[:2], ".")) {
				t.Errorf("the kernel's release is %s, but its package is %s", release, k.version)
			}
		})
	}
}

// TestKernels_choose: each kernel is found by its name, and the error for another name
// lists all names.
func TestKernels_choose(t *testing.T) {
	for name := range umlKernels {
		if got, err := choose(name); got != name || err != nil {
			t.Errorf("choose(%q) = %q, %v", name, got, err)
		}
		if k := umlKernels[name]; k.name != name {
			t.Errorf("the kernel %s has the name %s", name, k.name)
		}
	}
	if _, err := choose("uml-5.10"); err == nil || !strings.Contains(err.Error(), "uml, uml-6.12, uml-7.2, uml-smp, host, qemu, qemu-arm64 or auto") {
		t.Errorf("error for an unknown kernel: %v, want the names of all kernels", err)
	}
}

// TestKernels_pickVersion: the wanted version of a package is chosen, or the newest
// one if the archive no longer has it.
func TestKernels_pickVersion(t *testing.T) {
	const madison = `user-mode-linux | 7.3um1+b1 | http://mirror.example/debian sid/main amd64 Packages
user-mode-linux |     7.2um1 | http://mirror.example/debian sid/main amd64 Packages
user-mode-linux |     7.2um1 | http://mirror.example/debian sid/main Sources
user-mode-linux-doc | 9 | http://mirror.example/debian sid/main amd64 Packages
`
	for wanted, want := range map[string]string{"7.2um1": "7.2um1", "7.1um1": "7.3um1+b1", "": "7.3um1+b1"} {
		if got, err := pickVersion(umlPackage, wanted, madison); got != want || err != nil {
			t.Errorf("pickVersion(%q) = %q, %v; want %q", wanted, got, err, want)
		}
	}
	for _, madison := range []string{"", "N: Unable to locate package\n", "user-mode-linux-doc | 9 | http://x sid/main amd64 Packages\n"} {
		if got, err := pickVersion(umlPackage, "7.2um1", madison); err == nil || !strings.Contains(err.Error(), umlPackage) {
			t.Errorf("pickVersion in %q = %q, %v; want an error that names the package", madison, got, err)
		}
	}
}

// TestKernels_mirrorOf: the mirror is the first Debian archive that the host uses.
func TestKernels_mirrorOf(t *testing.T) {
	for in, want := range map[string]string{
		"": "",
		"https://download.example/linux/\nhttp://mirror.example/debian-security/\n":   "",
		"http://mirror.example/debian-security/\nhttp://mirror.example/pub/debian/\n": "http://mirror.example/pub/debian",
	} {
		if got, err := mirrorOf(in); got != want || (err == nil) != (want != "") {
			t.Errorf("mirrorOf(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

// TestKernels_cached: a kernel is made once and then found in the cache; a failed or
// interrupted attempt leaves nothing that is used.
func TestKernels_cached(t *testing.T) {
	base := filepath.Join(t.TempDir(), "cache")
	failure := errors.New("no network")
	fills := 0
	fill := func(fresh, dir string) error {
		fills++
		if dir != filepath.Join(base, "k") {
			t.Errorf("the directory will be %s", dir)
		}
		if left, err := os.ReadDir(fresh); err != nil || len(left) > 0 {
			t.Errorf("the fresh directory has %v, %v", left, err)
		}
		if err := os.WriteFile(filepath.Join(fresh, "half"), nil, 0o600); err != nil {
			return err
		}
		return failure
	}
	if _, err := cached(base, "k", fill); !errors.Is(err, failure) {
		t.Errorf("cached if fill fails: %v", err)
	}
	// A half-made kernel of an interrupted process is not used.
	if err := os.MkdirAll(filepath.Join(base, "k.new", "half"), 0o755); err != nil {
		t.Fatal(err)
	}
	failure = nil
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			dir, err := cached(base, "k", fill)
			if err != nil || dir != filepath.Join(base, "k") {
				t.Errorf("cached: %q, %v", dir, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "half")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if fills != 2 {
		t.Errorf("made %d times, want once after the failure", fills)
	}
	if _, err := os.Stat(filepath.Join(base, "k.new")); err == nil {
		t.Error("the fresh directory is still there")
	}
}

// TestKernels_processors: the command line of a kernel has the number of processors,
// up to the number that its configuration allows.
func TestKernels_processors(t *testing.T) {
	smp := umlKernels[umlSMP]
	if got, err := umlKernels["uml"].words(2); len(got) > 0 || err != nil {
		t.Errorf("words of a kernel with one processor: %q, %v", got, err)
	}
	if got, err := smp.words(3); !strings.HasPrefix(strings.Join(got, " "), "ncpus=3 seccomp=on ") || err != nil {
		t.Errorf("words for three processors: %q, %v", got, err)
	}
	if got, err := smp.words(5); err == nil || !strings.Contains(err.Error(), "at most 4") {
		t.Errorf("words for five processors: %q, %v", got, err)
	}
	if want := fmt.Sprintf("CONFIG_NR_CPUS=%d\n", smp.maxCPUs); !strings.Contains(smpConfig, want) {
		t.Errorf("the configuration lacks %q", want)
	}
}

// TestKernels_pickSource: the wanted source package is chosen, or the newest one if
// the archive no longer has it.
func TestKernels_pickSource(t *testing.T) {
	const wanted = "linux-source-7.3"
	for names, want := range map[string]string{
		"": wanted,
		"linux-source-6.19\nlinux-source-7.3\nlinux-source-7.10\n":                    wanted,
		"linux-source-7.9\nlinux-source-7.10\nlinux-source-6.19\nlinux-source-rt-8\n": "linux-source-7.10",
		"linux-source\nlinux-source-next\n":                                           wanted,
	} {
		if got := pickSource(wanted, names); got != want {
			t.Errorf("pickSource in %q = %s, want %s", names, got, want)
		}
	}
}

// TestKernels_missingOptions: options that a kernel's configuration lacks are
// reported.
func TestKernels_missingOptions(t *testing.T) {
	const config = "# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_NR_CPUS=4\n"
	const wanted = "# A comment\n\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\nCONFIG_NR_CPUS=4\n"
	if got := missingOptions(wanted, config); strings.Join(got, " ") != "CONFIG_A=y CONFIG_C=y" {
		t.Errorf("missing options: %q", got)
	}
	if got := missingOptions(smpConfig, smpConfig); len(got) > 0 {
		t.Errorf("options missing in the same configuration: %q", got)
	}
}

// TestKernels_amx: hasAMX finds in the processor flags whether the host has
// AMX, with which older kernels need a library.
func TestKernels_amx(t *testing.T) {
	const without = "processor\t: 0\nflags\t\t: fpu avx512f amx_tile_not\n\nprocessor\t: 1\nflags\t\t: fpu avx512f\n"
	if hasAMX(without) || !hasAMX(without+"flags\t\t: fpu amx_bf16 avx512_fp16 amx_tile amx_int8\n") {
		t.Error("hasAMX does not recognize AMX by the flags of a processor")
	}
}
