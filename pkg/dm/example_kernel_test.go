//go:build kernel

package dm_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
)

// example creates a device that programs can open, and removes it.
func example(ctx context.Context) (err error) {
	c, err := dm.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	info, err := c.Create("example", "")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, c.Remove("example", dm.UdevPrimarySource), c.RemoveNode("example"))
	}()
	table := dm.Table{
		{Start: 0, Length: 2048, Target: dm.Zero{}},
		{Start: 2048, Length: 8, Target: dm.ErrorTarget{}},
	}
	const readOnly = false
	if err := c.Load("example", table, readOnly); err != nil {
		return err
	}
	// UdevPrimarySource tells udev's rules that the event comes from the device's owner.
	if err := c.Resume("example", dm.UdevPrimarySource); err != nil {
		return err
	}
	path, err := c.EnsureNode(ctx, "example", info.Device)
	if err != nil {
		return err
	}
	fmt.Println(path)
	live, err := c.Table("example")
	if err != nil {
		return err
	}
	fmt.Println(live)
	return nil
}

// Create a device that programs can open, and remove it.
func ExampleClient() {
	if err := example(context.Background()); err != nil {
		log.Print(err)
	}

	c, err := dm.Open()
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	_, err = c.Info("example")
	fmt.Println(errors.Is(err, dm.ErrNotFound), err)
	// Output:
	// /dev/mapper/example
	// 0 2048 zero
	// 2048 8 error
	// true device-mapper: info example: not found: no such device or address
}

// Replace the table of a device in use. Suspend waits at most one second for I/O in
// flight.
func ExampleClient_Suspend() {
	c, err := dm.Open()
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Create("example", ""); err != nil {
		log.Fatal(err)
	}
	defer c.Remove("example", dm.UdevPrimarySource)
	swap := func(t dm.Table) error {
		if err := c.Load("example", t, false); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := c.Suspend(ctx, "example", dm.SuspendOptions{}); err != nil {
			return errors.Join(err, c.Clear("example"))
		}
		return c.Resume("example", dm.UdevPrimarySource)
	}
	for _, target := range []dm.Target{dm.ErrorTarget{}, dm.Zero{}} {
		if err := swap(dm.Table{{Length: 2048, Target: target}}); err != nil {
			log.Print(err)
			return
		}
		table, err := c.Table("example")
		fmt.Println(table, err)
	}
	// Output:
	// 0 2048 error <nil>
	// 0 2048 zero <nil>
}
