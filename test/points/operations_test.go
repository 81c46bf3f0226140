//go:build kernel && points

package points

import (
	"strconv"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
	"github.com/csi-dmsnap/csi-dmsnap/test/audit"
)

// steps performs the steps one after the other, up to the first error.
func steps(all ...func(r *rig) error) func(r *rig) error {
	return func(r *rig) error {
		for _, step := range all {
			if err := step(r); err != nil {
				return err
			}
		}
		return nil
	}
}

func create(name string, length size.Bytes) func(r *rig) error {
	return func(r *rig) error { return r.create(name, length) }
}

func restore(name, from string, c Call) func(r *rig) error {
	return func(r *rig) error { return r.restore(name, from, c) }
}

func clone(name, of string) func(r *rig) error {
	return func(r *rig) error { return r.clone(name, of) }
}

func snapshot(name, of string) func(r *rig) error {
	return func(r *rig) error { return r.snapshot(name, of) }
}

func expand(name string, length size.Bytes) func(r *rig) error {
	return func(r *rig) error { return r.expand(name, length) }
}

func rollback(name, to string) func(r *rig) error {
	return func(r *rig) error { return r.rollback(name, to) }
}

func copied(name, from string) func(r *rig) error {
	return func(r *rig) error { return r.copy(name, from) }
}

func activate(names ...string) func(r *rig) error {
	return func(r *rig) error { return r.activate(names...) }
}

func deactivate(name string) func(r *rig) error {
	return func(r *rig) error { return r.deactivate(name) }
}

func remove(name string) func(r *rig) error { return func(r *rig) error { return r.remove(name) } }

func writeTo(names ...string) func(r *rig) error {
	return func(r *rig) error { return r.writeTo(names...) }
}

func readFrom(name string) func(r *rig) error { return func(r *rig) error { return r.readFrom(name) } }

func scatter(name string, n int) func(r *rig) error {
	return func(r *rig) error { return r.scatter(name, n) }
}

// settled waits for background work to end.
func settled(r *rig) error { return r.until(nil) }

// gone waits until an object no longer has a logical volume.
func gone(name string) func(r *rig) error {
	return func(r *rig) error {
		lv := r.objects[name].lv
		return r.until(func(vg *lvm2.VG) bool { return vg.LV(lv) == nil })
	}
}

// flat waits until the volume r is read through a flat store with fewer than
// three newer layers. It returns immediately if r was deleted.
func flat(r *rig) error {
	if r.objects["r"].gone {
		return nil
	}
	return r.until(flattened)
}

func flattened(vg *lvm2.VG) bool {
	orders, over, stores := map[string]int{}, "", 0
	for _, lv := range vg.LVs {
		switch t := audit.Tags(lv); t["role"] {
		case "layer":
			orders[string(lv.ID)], _ = strconv.Atoi(t["order"])
		case "flat":
			stores++
			if t["used"] != "" {
				over = t["over"]
			}
		}
	}
	newer := 0
	for _, order := range orders {
		if order > orders[over] {
			newer++
		}
	}
	return stores == 1 && over != "" && newer < 3
}

// written makes a volume with content and without snapshots.
func written(name string) func(r *rig) error {
	return steps(create(name, volumeSize), activate(name), scatter(name, 200))
}

// cutAnd takes a snapshot and then writes n blocks.
func cutAnd(s, of string, n int) func(r *rig) error { return steps(snapshot(s, of), scatter(of, n)) }

// family makes a volume with three snapshots; history makes one with two
// snapshots.
var (
	history = steps(written("v"), cutAnd("s1", "v", 60), cutAnd("s2", "v", 60))
	family  = steps(history, cutAnd("s3", "v", 60))
	inUse   = steps(activate("v"), writeTo("v"))

	readOnly  = Call{ReadOnly: true}
	transient = Call{Transient: true}

	withReader = steps(history, restore("r", "s1", readOnly))
	whileRead  = steps(inUse, activate("r"), readFrom("r"))

	withFork  = steps(history, restore("f", "s1", Call{}))
	whileFork = steps(inUse, activate("f"), writeTo("f"))
)

// deep makes a volume with so many snapshots that the oldest is read through a
// flat store. Its first reader, which is deleted again, has the layers trimmed.
var deep = steps(family, cutAnd("s4", "v", 20), cutAnd("s5", "v", 20),
	restore("x", "s1", readOnly), activate("x"), deactivate("x"), remove("x"))

// deepReader is deep with a volume that shows the oldest snapshot.
func deepReader(c Call) func(r *rig) error { return steps(deep, restore("r", "s1", c)) }

// overlapping makes a volume with snapshots between which half of the written
// chunks are the same, so that a fold is worthwhile.
var overlapping = steps(written("v"), snapshot("s1", "v"), rewrite("v", 0), snapshot("s2", "v"), rewrite("v", 50), snapshot("s3", "v"), scatter("v", 10))

// rewrite writes one block of each of a hundred chunks, beginning at a chunk.
func rewrite(name string, chunks int) func(r *rig) error {
	return func(r *rig) error { return r.fillUp(name, chunks*int(chunk/block), 100, 0) }
}

// slowly keeps forks from being hydrated before the cut.
func slowly(c *pool.Config) { c.HydrationRate = 2 * size.MiB }

// fully also wipes free extents.
func fully(c *pool.Config) { c.Clean = pool.CleanBackground }

// leavesMuch reports whether a cut at this point leaves a repair to do: a
// device is suspended, a fold is unfinished, or a flat store is half-made.
func leavesMuch(point string) bool {
	return strings.HasPrefix(point, "after suspend") || strings.HasPrefix(point, "before fold into") ||
		strings.HasPrefix(point, "after") && strings.Contains(point, "--flat--")
}

// leavesTable reports whether a cut at this point leaves a second table loaded.
// Growth suspends nothing.
func leavesTable(point string) bool { return strings.HasPrefix(point, "after load table") }

// operations returns all operations that can be cut, and the repairs after
// them.
func operations() []*operation {
	all := []*operation{
		{name: "create", build: history, ready: inUse, act: steps(create("n", 8*size.MiB), activate("n"))},
		{name: "activate", build: history, ready: func(*rig) error { return nil }, act: activate("v")},
		{name: "deactivate", build: history, ready: inUse, act: deactivate("v")},
		{name: "restore", build: history, ready: inUse, act: steps(restore("f", "s1", Call{}), activate("f"), writeTo("f"), settled)},
		{name: "clone", build: history, ready: inUse, act: steps(clone("c", "v"), settled)},
		{name: "reader", build: history, ready: inUse, act: steps(restore("r", "s1", readOnly), activate("r"), readFrom("r"))},
		{name: "reader-end", build: withReader, ready: whileRead, act: steps(deactivate("r"), remove("r"))},
		{name: "transient", build: history, ready: inUse, act: steps(restore("t", "s2", transient), activate("t"), deactivate("t"), remove("t"))},

		{name: "cut-first", build: written("v"), ready: inUse, act: snapshot("s4", "v")},
		{name: "cut-next", build: history, ready: inUse, act: snapshot("s4", "v")},
		{name: "cut-read", build: withReader, ready: whileRead, act: snapshot("s4", "v")},
		{name: "cut-forked", build: withFork, busy: true, config: slowly, ready: whileFork, act: snapshot("s4", "v")},
		{name: "cut-fork", build: withFork, busy: true, config: slowly, ready: whileFork, act: snapshot("s4", "f")},
		{name: "cut-inactive", build: history, act: snapshot("s4", "v")},

		{name: "expand-plain", build: written("v"), ready: inUse, act: expand("v", volumeSize+4*size.MiB)},
		{name: "expand-read", build: withReader, ready: whileRead, act: expand("v", volumeSize+4*size.MiB)},
		{name: "expand-fork", build: withFork, busy: true, config: slowly, ready: whileFork, act: expand("f", volumeSize+4*size.MiB)},
		{name: "grow", build: history, ready: steps(activate("v"), restoreReader), act: func(r *rig) error {
			return r.fillUp("v", hotBlocks, 380, 3*time.Millisecond)
		}},

		{name: "hydrate", build: withFork, busy: true, opens: true, ready: whileFork, act: settled},
		{name: "rollback", build: withReader, ready: steps(activate("r"), readFrom("r")), act: rolledBack("v", "s2")},

		{name: "delete-plain", build: steps(history, written("p")), ready: inUse, act: steps(remove("p"), settled)},
		{name: "delete-hidden", build: history, act: remove("v")},
		{name: "delete-newest", build: withReader, ready: whileRead, act: steps(remove("s2"), settled)},
		{name: "delete-middle", build: family, ready: inUse, act: steps(remove("s2"), settled)},
		{name: "delete-oldest", build: history, ready: inUse, act: steps(remove("s1"), settled)},
		{name: "delete-only", build: steps(written("v"), cutAnd("s1", "v", 60)), ready: inUse, act: steps(remove("s1"), settled)},
		{name: "delete-fork", build: withFork, busy: true, config: slowly, ready: whileFork, act: steps(deactivate("f"), remove("f"), settled)},
		{name: "fold", build: overlapping, ready: inUse, act: steps(remove("s2"), gone("s2"))},
		{name: "wipe", build: steps(history, written("p")), config: fully, ready: inUse, act: steps(remove("p"), gone("p"), settled)},

		{name: "flat-make", build: deepReader(readOnly), ready: inUse, act: steps(activate("r"), readFrom("r"), flat)},
		{name: "flat-below", build: steps(deep, restore("r", "s2", readOnly)), ready: whileRead, act: steps(snapshot("s6", "v"), flat)},
		{name: "flat-again", build: deepReader(readOnly), ready: steps(whileRead, snapshot("s6", "v"), snapshot("s7", "v")), act: steps(snapshot("s8", "v"), flat)},
		{name: "flat-end", build: deepReader(readOnly), ready: steps(whileRead, flat), act: steps(deactivate("r"), remove("r"), settled)},
		{name: "flat-fork", build: deep, ready: inUse, act: steps(restore("f", "s1", Call{}), activate("f"), writeTo("f"), settled)},
		{name: "flat-transient", build: deepReader(transient), ready: inUse, act: steps(activate("r"), deactivate("r"), remove("r"), settled)},
		{name: "flat-delete", build: deepReader(readOnly), ready: steps(whileRead, flat), act: steps(remove("s3"), settled)},
		{name: "flat-expand", build: deepReader(readOnly), ready: steps(whileRead, flat), act: expand("v", volumeSize+4*size.MiB)},

		{name: "copy", build: history, pair: true, ready: inUse, act: steps(copied("c", "s1"), settled)},
		{name: "copy-delete", build: steps(history, copied("c", "s1")), pair: true, ready: inUse, act: steps(remove("c"), settled)},
		{name: "extend", build: history, extend: true, opens: true, ready: inUse, act: settled},
		{name: "mode", build: written("v"), act: func(r *rig) error {
			_, err := r.do(Call{Op: "mode", LV: r.objects["v"].lv})
			return err
		}},

		{name: "import", build: theirs(false), beside: true, act: imported},
		{name: "adopt", build: theirs(true), beside: true, act: adopted},
	}
	for _, o := range all {
		switch o.name {
		case "cut-first", "cut-read", "cut-fork", "expand-read", "expand-fork", "hydrate", "rollback", "delete-only", "fold",
			"flat-make", "flat-below", "flat-again", "flat-end", "flat-fork", "copy":
			all = append(all, &operation{name: "repair-" + o.name, first: o, at: leavesMuch})
		case "grow", "delete-newest":
			all = append(all, &operation{name: "repair-" + o.name, first: o, at: leavesTable})
		}
	}
	return all
}

// restoreReader does nothing, for operations without a reader.
func restoreReader(*rig) error { return nil }

// rolledBack rolls back a volume that nobody uses, and then uses the volume.
func rolledBack(name, to string) func(r *rig) error {
	return func(r *rig) error {
		if o := r.objects[name]; o.path != "" { // the operation is repeated
			if err := r.deactivate(name); err != nil {
				return err
			}
		}
		return steps(rollback(name, to), activate(name), writeTo(name), settled)(r)
	}
}

// theirs makes a logical volume by LVM2's commands, with a snapshot if
// snapshots is set.
func theirs(snapshots bool) func(r *rig) error {
	return func(r *rig) error {
		if err := lvm("lvcreate", "-q", "-y", "-Wn", "-L8m", "-n", "l", group); err != nil {
			return err
		}
		l := r.object("l")
		l.lv, l.size, l.base, l.hidden, l.path = "l", volumeSize, []uint32{}, true, "/dev/mapper/"+lvm2.DMName(group, "l", "")
		if err := r.scatter("l", 200); err != nil {
			return err
		}
		if snapshots {
			if err := lvm("lvcreate", "-q", "-y", "-s", "-L4m", "-c16k", "-n", "ls", group+"/l"); err != nil {
				return err
			}
			s := r.object("ls")
			s.lv, s.size, s.hidden, s.snapshot = "ls", volumeSize, true, true
			s.base = after(l.base, l.log, l.blocks())
			if err := r.scatter("l", 60); err != nil {
				return err
			}
		}
		l.path = ""
		return lvm("vgchange", "-q", "-an", group)
	}
}

func imported(r *rig) error {
	_, err := r.do(Call{Op: "import", Name: "l", LV: "l"})
	if err == nil {
		o := r.objects["l"]
		o.hidden, o.certain = false, true
	}
	return err
}

func adopted(r *rig) error {
	_, err := r.do(Call{Op: "adopt", Name: "l", LV: "l"})
	if err == nil {
		for _, name := range []string{"l", "ls"} {
			o := r.objects[name]
			o.hidden, o.certain = false, true
		}
	}
	return err
}
