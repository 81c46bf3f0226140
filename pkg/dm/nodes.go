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

// udevRemoveWait is the longest wait for udev to remove a link. udevPoll is the
// time between two looks.
const (
	udevRemoveWait = time.Second
	udevPoll       = 5 * time.Millisecond
)

// udevWait is the longest wait for udevd to handle a device's event. Tests on slow
// machines wait longer.
var udevWait = 10 * time.Second

// Node returns the path of the device's node, or of the link to the node:
// /dev/mapper/name. It does not check that the path exists.
func (c *Client) Node(name string) string { return filepath.Join(c.dev, "mapper", name) }

// EnsureNode waits for or creates the node of device d, which has been resumed
// and has the name, and returns the node's path: Node(name).
//
// If udev runs, EnsureNode waits until udev's database shows that udev has handled
// the device's event, and until udev's link exists. udev runs if its socket
// /run/udev/control exists; a container must have the host's /run/udev. For a
// device that was resumed with UdevDisableDM, udev makes no link, and the path is
// /dev/dm-MINOR.
//
// EnsureNode creates the node itself if udev does not run, if udev has no rules
// for device-mapper, or if udev has not made the link by ctx's deadline or within
// 10 s, whichever comes first. It replaces the node of another device, but nothing
// else.
//
// Only names made of the characters A-Z a-z 0-9 . _ + - have nodes: udev would
// encode other characters.
//
// Errors: the cause of ctx's end if ctx is canceled; an error if the path is
// occupied.
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

// RemoveNode removes the node that EnsureNode created, after the device was
// removed or renamed. udev removes its own links: RemoveNode waits up to 1 s for
// udev, so that no caller finds a new device with the same name through an old
// link. It is no error if the path does not exist.
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
	// Nobody will remove a dangling link. A link that leads to a device belongs
	// to a newer device.
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return os.Remove(path)
	}
	return nil
}

// makeNode creates the node of d at path. Another device's node at path is a
// leftover, so makeNode replaces it. A link belongs to udev, so makeNode does not
// replace it.
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
		return fmt.Errorf("%s exists and is not the node of device %v; remove it if no other program manages it", path, d)
	}
	return mknod(path, d)
}

func mknod(path string, d Device) error {
	if err := unix.Mknod(path, unix.S_IFBLK|0o660, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
		return fmt.Errorf("mknod %s b %d %d: %w", path, d.Major, d.Minor, err)
	}
	return os.Chmod(path, 0o660) // the umask may have removed bits
}

func isBlock(st fs.FileInfo) bool { return st.Mode().Type() == fs.ModeDevice }

// checkNodeName rejects names that libdevmapper and udev would encode below
// /dev/mapper, and names that cannot be file names.
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

// errNoLink means that udev runs and makes no link to the device.
var errNoLink = errors.New("udev makes no link")

// udevRuns reports whether udevd listens for events.
func (c *Client) udevRuns() bool {
	st, err := os.Stat(filepath.Join(c.udev, "control"))
	return err == nil && st.Mode().Type() == fs.ModeSocket
}

// awaitUdev waits until udev has handled the device's event and has made its
// link, and returns the path.
//
// Errors: errNoLink if udev never makes the link, or not in time; the cause of
// ctx's end if ctx is canceled.
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

// udevLink returns the path of udev's link if udev is done with the device, and
// "" if it is not.
func (c *Client) udevLink(name string, d Device) (string, error) {
	path := c.Node(name)
	if st, err := os.Lstat(path); err == nil && isBlock(st) {
		// udev makes links, not nodes, and makes no link while the node exists.
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

// properties are the properties that udev's rules have set for a device.
type properties map[string]string

// udevProperties parses the lines "E:KEY=value" of a file of udev's database.
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

// ofDeviceMapper reports whether udev has rules for device-mapper. The rules set
// properties already at a device's first event, long before they set the name.
func (p properties) ofDeviceMapper() bool {
	for key := range p {
		if strings.HasPrefix(key, "DM_UDEV_") {
			return true
		}
	}
	return false
}
