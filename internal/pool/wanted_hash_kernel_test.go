//go:build kernel

package pool

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

var unreclaimable = regexp.MustCompile(`(?m)^SUnreclaim: +(\d+) kB`)

// kernelMemory returns the memory of the kernel's objects that it cannot reclaim, which
// includes large hash tables.
func kernelMemory(t *testing.T) size.Bytes {
	t.Helper()
	m := unreclaimable.FindSubmatch(must(os.ReadFile("/proc/meminfo"))(t))
	if m == nil {
		t.Fatal("/proc/meminfo has no SUnreclaim")
	}
	return size.Bytes(must(strconv.Atoi(string(m[1])))(t)) * size.KiB
}

// TestStretched_hashTable: a snapshot whose store begins small gets a hash table that
// is large enough for the largest store.
func TestStretched_hashTable(t *testing.T) {
	const length = 1536 * size.MiB
	ctx := context.Background()
	p := testPool(t, func(c *Config) { c.Devices, c.Chunk, c.FirstStore = testDisks(t)[:2], 4*size.KiB, 4*size.MiB })
	v := must(p.CreateVolume(ctx, VolumeSpec{Name: "v", Size: length, Mode: Block}))(t)
	path := must(p.Activate(ctx, v.LV))(t)
	for i, name := range []string{"s1", "s2"} {
		before := kernelMemory(t)
		must(p.CreateSnapshot(ctx, name, v.LV))(t)
		// The hash table for a store of the whole volume takes 2 MiB, for this store 8 KiB.
		if after := kernelMemory(t); i == 0 && after < before+3*size.MiB/2 {
			t.Errorf("the kernel's memory was %v before %s and is %v, too small for the hash table", before, name, after)
		}
		tables := devicesOf(t, p)
		if store := tables[name+"-cow"]; strings.Contains(store, "error") || !strings.HasPrefix(store, "0 8192 ") {
			t.Errorf("the store of %s is mapped to %s", name, store)
		}
		writeDevice(t, path, 0, bytes.Repeat([]byte{byte(i + 1)}, 4096))
	}
	ok(t, p.Deactivate(ctx, v.LV))
	path = must(p.Activate(ctx, v.LV))(t)
	r := must(p.Snapshot(ctx, "s2"))(t)
	f := openSnapshot(t, p, r.LV)
	if got := readDevice(t, f.Name(), 4096); got[0] != 1 {
		t.Errorf("s2 begins with %d", got[0])
	}
	closeSnapshots(t, p, v.LV, f)
	if got := readDevice(t, path, 4096); got[0] != 2 {
		t.Errorf("the volume begins with %d", got[0])
	}
	ok(t, p.Deactivate(ctx, v.LV))
}
