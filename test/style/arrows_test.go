package style

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/csi-dmsnap/csi-dmsnap/"

// arrows lists the packages of the product from the bottom to the top, each with
// the packages of the product that it may import. A package imports only what
// stands above it here: so imports point downwards, and there is no cycle. The
// libraries are good for other programs: below pkg/ nothing but driver knows
// the engine, Kubernetes or CSI.
var arrows = []struct {
	name string
	may  string
}{
	{"pkg/size", ""},
	{"internal/point", ""},
	{"internal/index", ""},
	{"internal/directio", "pkg/size"},
	{"pkg/dm", "internal/point pkg/size"},
	{"pkg/lvm2", "internal/index internal/point pkg/size"},
	{"pkg/lvm2/lvm2test", "pkg/lvm2"},
	{"pkg/cow", "internal/directio internal/point pkg/size"},
	{"internal/catalog/catalogtest", "pkg/lvm2"},
	{"internal/catalog", "internal/index pkg/cow pkg/lvm2 pkg/size"},
	{"internal/filesystem", "pkg/size"},
	{"internal/pool", "internal/catalog internal/directio internal/filesystem internal/point pkg/cow pkg/dm pkg/lvm2 pkg/size"},
	{"internal/handle", ""},
	{"internal/sockets", ""},
	{"internal/callmeta", ""},
	{"internal/roleapi", ""},
	{"internal/reports", "internal/roleapi"},
	{"pkg/driver", "internal/callmeta internal/filesystem internal/handle internal/pool internal/reports internal/roleapi internal/sockets pkg/size"},
	{"internal/registration", "internal/sockets"},
	{"internal/telemetry", "internal/sockets"},
	{"internal/election", ""},
	{"internal/cluster", "internal/handle"},
	{"internal/events", "internal/handle internal/reports internal/roleapi"},
	{"internal/trust", "internal/callmeta internal/cluster internal/handle internal/roleapi internal/sockets"},
	{"internal/router", "internal/callmeta internal/handle internal/roleapi internal/sockets"},
}

// foreign lists the modules of others that only some packages may import, each
// with these packages.
var foreign = []struct {
	path string
	may  string
}{
	{"google.golang.org/grpc", "cmd/csi-dmsnap internal/callmeta internal/events internal/registration internal/reports internal/roleapi internal/router internal/telemetry internal/trust pkg/driver"},
	{"github.com/container-storage-interface/spec", "cmd/csi-dmsnap internal/events internal/router internal/telemetry pkg/driver"},
	{"k8s.io/client-go", "cmd/csi-dmsnap internal/cluster internal/election internal/events internal/trust"},
	{"k8s.io/component-base", "cmd/csi-dmsnap"},
}

// imports returns the imports of each package's product files, by the path of
// its folder.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, root := range []string{"pkg", "internal", "cmd"} {
		err := filepath.WalkDir("../../"+root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			name := filepath.ToSlash(filepath.Dir(path))[len("../../"):]
			if all[name] == nil {
				all[name] = []string{}
			}
			for _, spec := range f.Imports {
				to, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					return err
				}
				if !slices.Contains(all[name], to) {
					all[name] = append(all[name], to)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// TestArrows_imports: a package imports only what the list allows, and the list
// itself runs in one direction.
func TestArrows_imports(t *testing.T) {
	below := map[string]bool{}
	allowed := map[string][]string{}
	for _, a := range arrows {
		allowed[a.name] = strings.Fields(a.may)
		for _, to := range allowed[a.name] {
			if !below[to] {
				t.Errorf("the list lets %s import %s, which is not below it", a.name, to)
			}
		}
		below[a.name] = true
	}
	all := imports(t)
	for name, paths := range all {
		may, known := allowed[name]
		if name == "cmd/csi-dmsnap" {
			continue // the top: it may import everything
		}
		if !known {
			t.Errorf("%s is not in the list of arrows", name)
			continue
		}
		for _, path := range paths {
			to, ours := strings.CutPrefix(path, module)
			if ours && !slices.Contains(may, to) {
				t.Errorf("%s imports %s: see the list of arrows", name, to)
			}
		}
		for _, to := range may {
			if !slices.Contains(paths, module+to) {
				t.Errorf("%s does not import %s any more: shorten the list of arrows", name, to)
			}
		}
	}
	for name := range allowed {
		if all[name] == nil {
			t.Errorf("%s is in the list of arrows and does not exist", name)
		}
	}
}

// TestArrows_foreign: gRPC, CSI and Kubernetes stay in the packages whose job
// they are.
func TestArrows_foreign(t *testing.T) {
	for name, paths := range imports(t) {
		for _, f := range foreign {
			uses := slices.ContainsFunc(paths, func(path string) bool { return path == f.path || strings.HasPrefix(path, f.path+"/") })
			if uses && !slices.Contains(strings.Fields(f.may), name) {
				t.Errorf("%s imports %s: see the list of foreign modules", name, f.path)
			}
		}
	}
}
