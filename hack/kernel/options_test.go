package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// TestParseSize: sizes with and without a unit are parsed, and mistakes are refused.
func TestParseSize(t *testing.T) {
	for in, want := range map[string]size.Bytes{
		"4096": 4096, "1k": size.KiB, "512K": 512 * size.KiB, "3M": 3 * size.MiB, "64G": 64 * size.GiB, "2T": 2 * size.TiB,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "G", "0", "0G", "-1G", "1.5G", "1GB", "1 G", "99999999T", "x"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %v, want an error", in, got)
		}
	}
}

// TestParseDisks: lists of disks are parsed, and mistakes are refused.
func TestParseDisks(t *testing.T) {
	for in, want := range map[string][]disk{
		"":                   nil,
		"none":               nil,
		"1G":                 {{"", size.GiB}},
		"1M,/a b/c:d.img:2G": {{"", size.MiB}, {"/a b/c:d.img", 2 * size.GiB}},
	} {
		if got, err := parseDisks(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("parseDisks(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"1G,", ",", ":1G", "a.img", "a.img:", "1000", "1G;1G"} {
		if got, err := parseDisks(in); err == nil {
			t.Errorf("parseDisks(%q) = %v, want an error", in, got)
		}
	}
}

// TestParseOptions: flags and environment variables give the options of the runner.
func TestParseOptions(t *testing.T) {
	env := func(list ...string) func(string) string {
		return func(name string) string {
			for _, kv := range list {
				if v, ok := strings.CutPrefix(kv, name+"="); ok {
					return v
				}
			}
			return ""
		}
	}
	o, err := parseOptions([]string{"run", "--", "cmd", "--kernel", "x"}, env())
	if err != nil {
		t.Fatal(err)
	}
	if o.kernel != "auto" || o.memory != 2*size.GiB || len(o.disks) != 3 || o.timeout != 15*time.Minute ||
		!reflect.DeepEqual(o.argv, []string{"cmd", "--kernel", "x"}) || !reflect.DeepEqual(o.modules, defaultModules) {
		t.Errorf("defaults: %+v", o)
	}

	set := env("DMSNAP_KERNEL=uml", "DMSNAP_MEM=2G", "DMSNAP_DISKS=64G", "DMSNAP_MODULES=dm-raid,overlay",
		"DMSNAP_TIMEOUT=3s", "DMSNAP_SHARE=/", "DMSNAP_CPUS=3", "DMSNAP_TAP=tap7")
	o, err = parseOptions([]string{"exec", "/tmp/p.test", "-test.v", "-test.coverprofile=/tmp/w/c.out", "-test.gocoverdir=/tmp/g"}, set)
	if err != nil {
		t.Fatal(err)
	}
	if o.kernel != "uml" || o.memory != 2*size.GiB || !reflect.DeepEqual(o.disks, []disk{{"", 64 * size.GiB}}) ||
		o.timeout != 3*time.Second || o.share != "/" || o.cpus != 3 || o.tap != "tap7" || len(o.argv) != 4 ||
		!reflect.DeepEqual(o.modules[len(defaultModules):], []string{"dm-raid", "overlay"}) ||
		!reflect.DeepEqual(o.outputs, []string{"/tmp/w", "/tmp/g"}) {
		t.Errorf("by environment: %+v", o)
	}

	o, err = parseOptions([]string{"run", "-mem", "3G", "-timeout", "0", "cmd"}, set)
	if err != nil || o.memory != 3*size.GiB || o.timeout != 0 {
		t.Errorf("flags over environment: %+v, %v", o, err)
	}

	for _, args := range [][]string{
		{}, {"run"}, {"exec"}, {"walk", "x"}, {"run", "-mem", "much", "x"}, {"run", "-disks", "1", "x"},
		{"run", "-timeout", "15", "x"}, {"run", "-timeout", "-1s", "x"}, {"run", "-cpus", "0", "x"},
		{"run", "-share", "/no/such/directory", "x"}, {"run", "-share", "/etc/passwd", "x"},
		{"run", "-tap", "tap0,gro=0", "x"}, {"run", "-tap", "longer-than-it-may-be", "x"},
	} {
		if o, err := parseOptions(args, env()); err == nil {
			t.Errorf("parseOptions(%q) = %+v, want an error", args, o)
		}
	}
}

// TestOptions_lvm2: the directory of another lvm2 comes first in the command's PATH,
// and an unknown suite is refused.
func TestOptions_lvm2(t *testing.T) {
	o, err := parseOptions([]string{"run", "-lvm2", "trixie", "true"}, func(string) string { return "" })
	if err != nil || o.lvm2 != "trixie" || len(o.path()) != 0 {
		t.Errorf("%q, %v, %v", o.lvm2, o.path(), err)
	}
	t.Setenv("PATH", "/some/bin")
	o.commands = "/x/sbin"
	if got := environment(o.path()...); !slices.Contains(got, "PATH=/x/sbin:/some/bin") || slices.Contains(got, "PATH=/some/bin") {
		t.Errorf("%v", got)
	}
	if _, err := findLVM2("warty"); err == nil || !strings.Contains(err.Error(), "trixie") {
		t.Errorf("an unknown suite: %v", err)
	}
}
