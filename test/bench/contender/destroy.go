package contender

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/dm"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// Destroy kills the driver and removes its pool, whose volumes nobody uses,
// without wiping anything. Blocks that were never written stay a hole in the
// file of the disk, and the next pool there writes to the same places.
func (d *Driver) Destroy() error {
	err := errors.Join(d.Stop(), removeDevices(d.pool.Name+"-"))
	if err != nil {
		return err
	}
	// Without the label at the beginning, the disk belongs to no group.
	f, err := os.OpenFile(string(d.pool.Disk), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, size.MiB))
	return errors.Join(err, f.Sync(), f.Close())
}

// removeDevices removes all device-mapper devices whose names begin with
// prefix. It repeats until the devices that lie on others are gone, and then
// the others.
func removeDevices(prefix string) error {
	const limit, pause = 30 * time.Second, 20 * time.Millisecond
	c, err := dm.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	for end := time.Now().Add(limit); ; time.Sleep(pause) {
		all, err := c.List()
		if err != nil {
			return err
		}
		var left []error
		for _, e := range all {
			if strings.HasPrefix(e.Name, prefix) {
				left = append(left, c.Remove(e.Name, 0))
			}
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("devices with the prefix %s are left after %v: %w", prefix, limit, errors.Join(left...))
		}
	}
}
