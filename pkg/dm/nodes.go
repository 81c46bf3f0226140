package dm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How long to wait for udev at most, and how often to look.
const (
	udevRemoveWait = time.Second
	udevPoll       = 5 * time.Millisecond
)

// udevWait is how long udevd may take for a device; tests on slow machines
// give it more.
var udevWait = 10 * time.Second

// Node is the path of the device's node, or of the link to it: /dev/mapper/name.
func (c *Client) Node(name string) string { return filepath.Join(c.dev, "mapper", name) }

// EnsureNode returns the path of the node of a device that has been resumed:
// Node(name), once that is there and leads to device d.
//
// Where no udev runs, it makes the node. Where udev runs (its socket
// /run/udev/control is there; a container must have the host's /run/udev), it
// waits until udev's database says that udev has handled the device's event,
// and its link is there. If that takes longer than ctx's deadline, or 10 s if it
// has none, or if udev has no rules for device-mapper, a node is made after all,
// unless something is in its place. For a device that was resumed with
// UdevDisableDM, which gets no link, the path is /dev/dm-MINOR.
//
// Only names of the characters A-Z a-z 0-9 . _ + - have nodes: udev would mangle
// others.
func (c *Client) EnsureNode(ctx context.Context, name string, d Device) (string, error) {
	fail := func(err error) (string, error) { return "", &Error{"make node of", name, err} }
	if err := checkNodeName(name); err != nil {
		return fail(err)
	}
	if c.udevRuns() {
		path, err := c.awaitUdev(ctx, name, d)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, errNoLink) {
			return fail(err)
		}
	}
	path := c.Node(name)
	if err := makeNode(path, d); err != nil {
		return fail(err)
	}
	return path, nil
}

// RemoveNode takes away what EnsureNode made, after the device was removed or
// renamed. A link of udev's is left to udev, and waited for up to 1 s, lest a new
// device of the same name be found through it. It is no error if nothing is
// there.
func (c *Client) RemoveNode(name string) error {
	if err := checkNodeName(name); err != nil {
		return &Error{"remove node of", name, err}
	}
	if err := c.removeNode(c.Node(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &Error{"remove node of", name, err}
	}
	return nil
}

func (c *Client) removeNode(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if isBlock(st) {
		return os.Remove(path)
	}
	if st.Mode().Type() != fs.ModeSymlink {
		return fmt.Errorf("%s is neither a block device nor a link", path)
	}
	for end := time.Now().Add(udevRemoveWait); c.udevRuns() && time.Now().Before(end); {
		if _, err := os.Lstat(path); err != nil {
			return err
		}
		time.Sleep(udevPoll)
	}
	// Nobody will take it away. Where it leads to a device, it is another's.
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return os.Remove(path)
	}
	return nil
}

// makeNode makes the node of d at path, or replaces another device's node there,
// which is a leftover. It leaves a link alone: that is udev's.
func makeNode(path string, d Device) error {
	have, err := DeviceOf(path)
	if err == nil && have == d {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err := mknod(path, d); !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case isBlock(st):
		if err := os.Remove(path); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%s is there and is not the node of device %v: remove it if nobody else looks after it", path, d)
	}
	return mknod(path, d)
}

func mknod(path string, d Device) error {
	if err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
		return fmt.Errorf("mknod %s b %d %d: %w", path, d.Major, d.Minor, err)
	}
	return os.Chmod(path, 0o660) // whatever the umask
}

func isBlock(st fs.FileInfo) bool { return st.Mode().Type() == fs.ModeDevice }

// checkNodeName refuses names that libdevmapper and udev would write in another
// way below /dev/mapper, and those that are no names of files there.
func checkNodeName(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	odd := func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("._+-", r))
	}
	if strings.ContainsFunc(name, odd) {
		return errors.New("name has characters other than A-Z a-z 0-9 . _ + -")
	}
	return nil
}

// errNoLink means that udev runs and makes no link.
var errNoLink = errors.New("udev makes no link")

// udevRuns tells whether udevd listens for events.
func (c *Client) udevRuns() bool {
	st, err := os.Stat(filepath.Join(c.udev, "control"))
	return err == nil && st.Mode().Type() == fs.ModeSocket
}

// awaitUdev waits until udev has handled the device's event and its link is
// there. The error is errNoLink if udev does not do it in time or ever.
func (c *Client) awaitUdev(ctx context.Context, name string, d Device) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, udevWait)
	defer cancel()
	tick := time.NewTicker(udevPoll)
	defer tick.Stop()
	for {
		path, err := c.udevLink(name, d)
		if path != "" || err != nil {
			return path, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return "", errNoLink
			}
			return "", context.Cause(ctx)
		}
	}
}

// udevLink returns the path once udev is done with the device, and "" until
// then.
func (c *Client) udevLink(name string, d Device) (string, error) {
	path := c.Node(name)
	if st, err := os.Lstat(path); err == nil && isBlock(st) {
		// A node is not udev's, and as long as it is there udev makes no link.
		return "", errNoLink
	}
	db, err := os.ReadFile(filepath.Join(c.udev, "data", "b"+d.String()))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	properties := udevProperties(string(db))
	switch {
	case !properties.ofDeviceMapper():
		return "", errNoLink
	case properties["DM_NAME"] != name:
		return "", nil
	case properties["DM_UDEV_DISABLE_DM_RULES_FLAG"] == "1":
		path = filepath.Join(c.dev, fmt.Sprintf("dm-%d", d.Minor))
	}
	if have, err := DeviceOf(path); err != nil || have != d {
		return "", nil
	}
	return path, nil
}

// properties are what udev's rules have said of a device.
type properties map[string]string

// udevProperties reads the lines "E:KEY=value" of a file of udev's database.
func udevProperties(db string) properties {
	p := properties{}
	for line := range strings.Lines(db) {
		if property, ok := strings.CutPrefix(line, "E:"); ok {
			key, value, _ := strings.Cut(strings.TrimSuffix(property, "\n"), "=")
			p[key] = value
		}
	}
	return p
}

// ofDeviceMapper tells whether udev has rules for device-mapper: they set
// properties at the first event already, long before the name.
func (p properties) ofDeviceMapper() bool {
	for key := range p {
		if strings.HasPrefix(key, "DM_UDEV_") {
			return true
		}
	}
	return false
}
