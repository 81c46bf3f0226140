//go:build kernel

package pool

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/csi-dmsnap/csi-dmsnap/internal/catalog"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// past is a volume with snapshots, and their expected content.
type past struct {
	t       *testing.T
	p       *Pool
	lv      string
	path    string // "" while the volume is not active
	content []byte
	want    map[string][]byte // by snapshot
	random  *rand.Rand
}

// newPast makes an active volume whose layers are folded only on request of the
// test.
func newPast(t *testing.T, length size.Bytes) *past {
	t.Helper()
	p := testPool(t, func(c *Config) { c.NoFolding, c.FirstStore = true, 64*size.MiB })
	v := must(p.CreateVolume(context.Background(), VolumeSpec{Name: "v", Size: length, Mode: Block}))(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	h := &past{t: t, p: p, lv: v.LV, content: make([]byte, v.Size), want: map[string][]byte{}, random: rand.New(rand.NewPCG(seed, 1))}
	h.activate()
	return h
}

func (h *past) activate() {
	h.t.Helper()
	h.path = must(h.p.Activate(context.Background(), h.lv))(h.t)
}

func (h *past) deactivate() {
	h.t.Helper()
	ok(h.t, h.p.Deactivate(context.Background(), h.lv))
	h.path = ""
}

// write overwrites n random blocks.
func (h *past) write(n int) {
	h.t.Helper()
	const block = 4096
	for range n {
		data := bytes.Repeat([]byte{byte(h.random.Uint32()), byte(h.random.Uint32())}, block/2)
		off := h.random.IntN(len(h.content)/block) * block
		writeDevice(h.t, h.path, int64(off), data)
		copy(h.content[off:], data)
	}
}

// cut takes a snapshot with chunks of the given size.
func (h *past) cut(name string, chunk size.Bytes) {
	h.t.Helper()
	h.p.config.Chunk = chunk
	must(h.p.CreateSnapshot(context.Background(), name, h.lv))(h.t)
	h.want[name] = bytes.Clone(h.content)
}

func (h *past) remove(names ...string) {
	h.t.Helper()
	for _, name := range names {
		ok(h.t, h.p.DeleteSnapshot(context.Background(), name))
		delete(h.want, name)
	}
}

func (h *past) grow(more size.Bytes) {
	h.t.Helper()
	v := must(h.p.ExpandVolume(context.Background(), h.lv, size.Bytes(len(h.content))+more, 0))(h.t)
	h.content = append(h.content, make([]byte, int(v.Size)-len(h.content))...)
}

// check compares the volume and every snapshot with their expected content.
func (h *past) check(what string) {
	h.t.Helper()
	ctx := context.Background()
	for name, want := range h.want {
		s := must(h.p.Snapshot(ctx, name))(h.t)
		if s.Lost {
			h.t.Fatalf("%s: snapshot %s is lost", what, name)
		}
		f := openSnapshot(h.t, h.p, name)
		if got := readDevice(h.t, f.Name(), s.Size); !bytes.Equal(got, want) {
			h.t.Fatalf("%s: snapshot %s has wrong bytes", what, name)
		}
		closeSnapshots(h.t, h.p, h.lv, f)
	}
	if h.path != "" {
		if got := readDevice(h.t, h.path, size.Bytes(len(h.content))); !bytes.Equal(got, h.content) {
			h.t.Fatalf("%s: the volume has wrong bytes", what)
		}
	}
	for _, f := range must(Verify(ctx, h.p.config, Options{}))(h.t).Findings {
		h.t.Errorf("%s: %+v", what, f)
	}
}

// pair returns the only layers that can be folded.
func (h *past) pair() catalog.FoldPair {
	h.t.Helper()
	waitTrimmed(h.t, h.p)
	waitNotFlattened(h.t, h.p)
	pairs := must(h.p.latest())(h.t).FoldPairs()
	if len(pairs) != 1 {
		h.t.Fatalf("%d pairs of layers can be folded: %v", len(pairs), pairs)
	}
	return pairs[0]
}

// fold folds all foldable layers, even if it is not worth it.
func (h *past) fold() (folds int) { return foldAll(h.t, h.p) }

func foldAll(t *testing.T, p *Pool) (folds int) {
	t.Helper()
	for {
		waitTrimmed(t, p)
		waitNotFlattened(t, p)
		v := must(p.latest())(t)
		pairs := v.FoldPairs()
		if len(pairs) == 0 {
			return folds
		}
		f := newFold(p, pairs[0])
		heir, gone := v.Layers.Get(f.Heir), v.Layers.Get(f.FoldPair.Gone)
		ok(t, f.count(context.Background()))
		t.Logf("folding %s (chunks of %v) into %s (%d of %v): %d to copy", gone.LV.Name, gone.Chunk.Bytes(),
			heir.LV.Name, f.held.Count(), heir.Chunk.Bytes(), f.todo().Count())
		ok(t, f.run(context.Background()))
		if l := must(p.latest())(t).Layers.Get(f.Heir); !l.Superset || l.Through != gone.Through {
			t.Errorf("the heir is not marked: %v", l.LV.Tags)
		}
		folds++
	}
}

// waitNotFlattened waits until no flat store prevents folds. The caretaker makes
// such a store if it runs while a test reads an old snapshot, and deletes it some
// time after the test has closed the snapshot.
func waitNotFlattened(t *testing.T, p *Pool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		v := must(p.latest())(t)
		if v.Flattened.Len() == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d layers are parts of flat stores that nobody reads by", v.Flattened.Len())
		}
	}
}

// idle checks that exactly the four devices of an idle history exist, or none.
func (h *past) idle(what string) {
	h.t.Helper()
	want := 0
	if h.path != "" {
		want = 4
	}
	if n := len(devicesOf(h.t, h.p)); n != want {
		h.t.Errorf("%s: %d devices: %v", what, n, devicesOf(h.t, h.p))
	}
}

func openSnapshot(t *testing.T, p *Pool, name string) (f *os.File) {
	t.Helper()
	ctx := context.Background()
	of := must(p.Snapshot(ctx, name))(t).Volume
	release := must(p.keys.lock(ctx, lvKey(of)))(t)
	defer release()
	ok(t, p.do(ctx, &change{what: "open a snapshot", act: func(ctx context.Context, w *view) error {
		l := w.Snapshots.Get(name)
		dev, err := p.chainUp(ctx, w, w.Volumes.Get(l.Of), l)
		if err == nil {
			f, err = os.OpenFile(dev, os.O_RDONLY|unix.O_DIRECT, 0)
		}
		return err
	}}))
	return f
}

// closeSnapshots closes a snapshot, and removes the devices that nobody reads.
func closeSnapshots(t *testing.T, p *Pool, lv string, f *os.File) {
	t.Helper()
	f.Close()
	ctx := context.Background()
	release := must(p.keys.lock(ctx, lvKey(lv)))(t)
	defer release()
	ok(t, p.do(ctx, &change{what: "close a snapshot", act: func(ctx context.Context, w *view) error {
		return p.converge(ctx, w, lv)
	}}))
}

// removeAll removes all devices of the group, as a reboot does.
func removeAll(t *testing.T, p *Pool) {
	t.Helper()
	client := must(dm.Open())(t)
	defer client.Close()
	for end := time.Now().Add(10 * time.Second); ; {
		left := 0
		for _, e := range must(client.List())(t) {
			// The last look at the disks may have been cut short, because the pool
			// was closed.
			if !strings.HasPrefix(e.UUID, lvm2.DMUUID(p.current.Load().VG.ID, "", "")) {
				continue
			}
			if client.Remove(e.Name, 0) != nil {
				left++
			} else {
				ok(t, client.RemoveNode(e.Name))
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d devices cannot be removed", left)
		}
	}
}
