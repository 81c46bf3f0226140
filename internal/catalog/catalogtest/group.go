// Package catalogtest provides the metadata of a volume group, for tests without a disk.
package catalogtest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
)

// Group returns a volume group with extents of 4 MiB. It has the volume base, its snapshots
// old and new, whose layer is live, and the volume bare.
func Group(t *testing.T) *lvm2.VG {
	t.Helper()
	const rw, ro = `"READ", "WRITE", "VISIBLE"`, `"READ", "VISIBLE", "LOCKED"`
	const base = "aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa"
	lv := func(name, id, status, tags, segment string, extents int) string {
		flags := ""
		if status == ro {
			flags = `"ACTIVATION_SKIP", "NOAUTOACTIVATE"`
		}
		return fmt.Sprintf("%s {\nid = %q\nstatus = [%s]\nflags = [%s]\ntags = [%s]\nsegment_count = 1\nsegment1 {\nstart_extent = 0\nextent_count = %d\n%s\n}\n}\n",
			name, id, status, flags, tags, extents, segment)
	}
	at := func(n int) string {
		return fmt.Sprintf("type = \"striped\"\nstripe_count = 1\nstripes = [\n\"pv0\", %d\n]", n)
	}
	layer := func(name string, order int) string {
		return fmt.Sprintf(`"dmsnap:role=layer", "dmsnap:name=%s", "dmsnap:of=%s", "dmsnap:order=%d", "dmsnap:created=1", "dmsnap:length=65536", "dmsnap:chunk=32"`,
			name, strings.ReplaceAll(base, "-", ""), order)
	}
	vg, err := lvm2.ParseVG([]byte("vg {\nid = \"gggggg-gggg-gggg-gggg-gggg-gggg-gggggg\"\nseqno = 5\nformat = \"lvm2\"\nstatus = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nflags = []\nextent_size = 8192\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0\n" +
		"physical_volumes {\npv0 {\nid = \"pppppp-pppp-pppp-pppp-pppp-pppp-pppppp\"\ndevice = \"/dev/sda\"\nstatus = [\"ALLOCATABLE\"]\nflags = []\ndev_size = 4096000\npe_start = 2048\npe_count = 499\n}\n}\n" +
		"logical_volumes {\n" +
		lv("base", base, rw, `"dmsnap:role=volume", "dmsnap:name=pvc-1", "dmsnap:mode=block", "theirs"`, at(0), 8) +
		lv("old", "bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb", ro, layer("old", 1), at(400), 2) +
		lv("new", "cccccc-cccc-cccc-cccc-cccc-cccc-cccccc", `"READ", "WRITE"`, layer("new", 2), at(402), 2) +
		lv("bare", "dddddd-dddd-dddd-dddd-dddd-dddd-dddddd", rw, `"dmsnap:role=volume", "dmsnap:name=pvc-2", "dmsnap:mode=block"`, at(8), 8) +
		lv("snapshot0", "eeeeee-eeee-eeee-eeee-eeee-eeee-eeeeee", rw, "", "type = \"snapshot\"\nchunk_size = 32\norigin = \"base\"\ncow_store = \"new\"", 8) +
		"}\n}\ncontents = \"Text Format Volume Group\"\nversion = 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	return vg
}
