package module

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func tree(t *testing.T, files map[string]string) (*Tree, string) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m, dir
}

const dep = `k/dm-mod.ko:
k/dm-bufio.ko.xz: k/dm-mod.ko
k/dm-snapshot.ko: k/dm-bufio.ko.xz k/dm-mod.ko
k/a.ko: k/b.ko
k/b.ko: k/a.ko
k/c.ko: k/gone.ko
`

// TestModules_dependenciesFirst: a module comes after the modules that it depends on,
// each once, and a built-in module is left out.
func TestModules_dependenciesFirst(t *testing.T) {
	m, dir := tree(t, map[string]string{"modules.dep": dep, "modules.builtin": "kernel/drivers/block/loop.ko\n"})
	for _, c := range []struct{ names, want []string }{
		{[]string{"dm-snapshot"}, []string{"k/dm-mod.ko", "k/dm-bufio.ko.xz", "k/dm-snapshot.ko"}},
		{[]string{"dm_bufio", "dm-mod", "dm-snapshot"}, []string{"k/dm-mod.ko", "k/dm-bufio.ko.xz", "k/dm-snapshot.ko"}},
		{[]string{"loop"}, nil},
		{nil, nil},
	} {
		got, err := m.Order(c.names...)
		for i := range got {
			got[i] = strings.TrimPrefix(got[i], dir+"/")
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("Order(%q) = %q, %v; want %q", c.names, got, err, c.want)
		}
	}
	for _, name := range []string{"a", "c", "dm-nothing"} {
		if got, err := m.Order(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("Order(%q) = %q, %v; want an error that names it", name, got, err)
		}
	}
}

// TestModules_byAlias: a module is loaded by an alias with or without a pattern, and
// an error names the module.
func TestModules_byAlias(t *testing.T) {
	m, _ := tree(t, map[string]string{
		"modules.dep":     dep,
		"modules.builtin": "kernel/fs/xfs/xfs.ko\n",
		"modules.alias":   "alias fs-xfs xfs\nalias devname:mapper/control dm_nothing\nalias char-major-10-* xfs\n",
	})
	// Loading a built-in module does nothing. For the others, the error must
	// name the module.
	for _, alias := range []string{"xfs", "fs-xfs", "char-major-10-236"} {
		if err := m.LoadAlias(alias); err != nil {
			t.Errorf("LoadAlias(%q): %v", alias, err)
		}
	}
	for alias, want := range map[string]string{"devname:mapper/control": "dm_nothing", "fs-none": "fs-none"} {
		if err := m.LoadAlias(alias); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("LoadAlias(%q): %v, want an error about %s", alias, err, want)
		}
	}
}

// TestModules_scanAsDepmod: the dependencies and aliases read from the modules equal
// the files that depmod makes.
func TestModules_scanAsDepmod(t *testing.T) {
	found, _ := filepath.Glob("/usr/lib/uml/modules/*/modules.dep")
	if len(found) == 0 {
		t.Skip("the package user-mode-linux is not installed; run hack/deps.sh")
	}
	full, err := Open(filepath.Dir(found[0]))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"dm-snapshot", "dm-mirror", "dm-thin-pool", "dm-raid"}
	want, err := full.Order(names...)
	if err != nil {
		t.Fatal(err)
	}
	bare := t.TempDir()
	for _, file := range want {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(bare, filepath.Base(file)), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Open(bare)
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Order(names...)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("read from the modules: %q\nfrom depmod: %q", got, want)
	}
	place := map[string]int{}
	for i, file := range got {
		place[filepath.Base(file)] = i + 1
	}
	for name, needs := range full.depends {
		at := place[filepath.Base(full.files[name])]
		for _, n := range needs {
			if at > 0 && place[filepath.Base(full.files[n])] >= at {
				t.Errorf("%s is loaded before %s, which it needs", name, n)
			}
		}
	}
}
