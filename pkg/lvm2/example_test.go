package lvm2_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/lvm2"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// setup creates the volume group "example" on two sparse files, which stand for
// disks. Its Host has a lock directory of its own; use lvm2.Host{} with real disks.
func setup() (host lvm2.Host, devices []string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "lvm2")
	if err != nil {
		return host, nil, nil, err
	}
	host = lvm2.Host{LockDir: filepath.Join(dir, "lock"), Hints: filepath.Join(dir, "hints")}
	remove = func() { os.RemoveAll(dir) }
	for _, name := range []string{"disk0", "disk1"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, int64(64*size.MiB))); err != nil {
			remove()
			return host, nil, nil, err
		}
		devices = append(devices, path)
	}
	if err := lvm2.CreateVG(context.Background(), host, "example", devices, lvm2.CreateOptions{}); err != nil {
		remove()
		return host, nil, nil, err
	}
	return host, devices, remove, nil
}

// list prints the logical volumes of a volume group.
func list(ctx context.Context, host lvm2.Host, devices []string) error {
	store, err := lvm2.OpenVG(ctx, host, "example", devices)
	if err != nil {
		return err
	}
	defer store.Close()
	lock, err := host.LockVG(ctx, "example", lvm2.Shared)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	vg, err := store.Read(ctx)
	if err != nil {
		return err
	}
	for _, lv := range vg.LVs {
		fmt.Printf("%s: %d extents of %v\n", lv.Name, lv.Size(), vg.ExtentSize.Bytes())
	}
	return nil
}

// add adds a linear logical volume of n extents to a volume group.
func add(ctx context.Context, host lvm2.Host, devices []string, name string, n lvm2.Extents) error {
	store, err := lvm2.OpenVG(ctx, host, "example", devices)
	if err != nil {
		return err
	}
	defer store.Close()
	lock, err := host.LockVG(ctx, "example", lvm2.Exclusive)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	vg, err := store.Read(ctx)
	if err != nil {
		return err
	}
	next := vg.Clone()
	free := next.Free()
	if len(free) == 0 || free[0].Count < n {
		return errors.New("the first free range is too short")
	}
	err = next.Add(&lvm2.LV{
		Name:         name,
		ID:           lvm2.NewID(),
		Status:       []string{lvm2.StatusRead, lvm2.StatusWrite, lvm2.StatusVisible},
		CreationTime: time.Now(),
		CreationHost: "example.org",
		Segments: []lvm2.Segment{{
			Count:   n,
			Type:    lvm2.TypeStriped,
			Stripes: []lvm2.Stripe{{PV: free[0].PV, Start: free[0].Start}},
		}},
	})
	if err != nil {
		return err
	}
	return store.Commit(ctx, next)
}

// Open a volume group and list its logical volumes.
func ExampleOpenVG() {
	host, devices, remove, err := setup()
	if err != nil {
		log.Fatal(err)
	}
	defer remove()
	ctx := context.Background()
	if err := errors.Join(add(ctx, host, devices, "data", 3), add(ctx, host, devices, "log", 1)); err != nil {
		log.Print(err)
		return
	}
	if err := list(ctx, host, devices); err != nil {
		log.Print(err)
	}
	// Output:
	// data: 3 extents of 4MiB
	// log: 1 extents of 4MiB
}

// Add a logical volume with a commit. A second logical volume with the same name is
// refused.
func ExampleStore_Commit() {
	host, devices, remove, err := setup()
	if err != nil {
		log.Fatal(err)
	}
	defer remove()
	ctx := context.Background()
	if err := add(ctx, host, devices, "data", 3); err != nil {
		log.Print(err)
		return
	}
	if err := add(ctx, host, devices, "data", 3); errors.Is(err, lvm2.ErrExists) {
		fmt.Println("the name is taken")
	}
	if err := list(ctx, host, devices); err != nil {
		log.Print(err)
	}
	// Output:
	// the name is taken
	// data: 3 extents of 4MiB
}

// Parse a file of vgcfgbackup and list its logical volumes with their lengths.
func ExampleParseVG() {
	text, err := os.ReadFile("testdata/backup.txt")
	if err != nil {
		log.Fatal(err)
	}
	vg, err := lvm2.ParseVG(text)
	if err != nil {
		log.Fatal(err)
	}
	for _, lv := range vg.LVs {
		fmt.Println(lv.Name, (size.Sectors(lv.Size()) * vg.ExtentSize).Bytes(), lv.Tags)
	}
	// Output:
	// base 64MiB [t1 csi.k8s/x=a+b]
	// str 40MiB []
	// multi 1.1GiB []
	// snap1 32MiB []
	// snap2 16MiB []
	// snapshot0 64MiB []
	// snapshot1 64MiB []
}

// The device-mapper name of a logical volume has doubled hyphens.
func ExampleDMName() {
	fmt.Println(lvm2.DMName("my-vg", "pvc-1", ""))
	fmt.Println(lvm2.DMName("my-vg", "pvc-1", "real"))
	// Output:
	// my--vg-pvc--1
	// my--vg-pvc--1-real
}
