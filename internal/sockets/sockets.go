// Package sockets opens the unix sockets that the roles serve CSI at.
package sockets

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// Listen opens the socket of an endpoint, "unix:///path" or a path, for the
// process's own user only, in a directory that is made if it is not there. A
// socket that nobody answers at was left by a process that did not end in order,
// and is replaced.
func Listen(endpoint string) (net.Listener, error) {
	path, err := Path(endpoint)
	if err != nil {
		return nil, err
	}
	listener, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return listener, nil
}

// Path returns the absolute path of an endpoint.
func Path(endpoint string) (string, error) {
	path, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok {
		path = strings.TrimPrefix(endpoint, "unix:")
	}
	if !strings.HasPrefix(path, "/") {
		return "", fmt.Errorf("endpoint %q is not unix:// and an absolute path", endpoint)
	}
	return path, nil
}

func listen(path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode()&fs.ModeSocket == 0:
		return nil, errors.New("there is something that is not a socket")
	default:
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return nil, errors.New("another process is serving there")
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return nil, err
	}
	return listener, nil
}
