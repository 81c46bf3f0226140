package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// apt fetches Debian packages of one suite, which need not be the machine's. It
// does not use the machine's package lists, configuration or installed
// packages.
type apt struct {
	suite   string
	dir     string // its lists and downloads
	options []string
}

const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// newApt reads the lists of the suite from the mirror that the machine uses.
// The packages are for the architecture arch, as Debian and Go name it.
func newApt(suite, arch, dir string) (*apt, error) {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%w: packages can be fetched only on Debian", err)
		}
	}
	for _, sub := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	targets, err := output("", "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return nil, err
	}
	mirror, err := mirrorOf(targets)
	if err != nil {
		return nil, err
	}
	signed := ""
	if _, err := os.Stat(debianKeyring); err == nil {
		signed = "[signed-by=" + debianKeyring + "] "
	}
	sources := filepath.Join(dir, "sources.list")
	line := fmt.Sprintf("deb %s%s %s main\n", signed, mirror, suite)
	if err := os.WriteFile(sources, []byte(line), 0o644); err != nil {
		return nil, err
	}
	a := &apt{suite: suite, dir: dir, options: []string{
		"-o", "Dir::Etc::sourcelist=" + sources, "-o", "Dir::Etc::sourceparts=-",
		"-o", "Dir::State::Lists=" + filepath.Join(dir, "lists"), "-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
		"-o", "APT::Architecture=" + arch, "-o", "APT::Architectures=" + arch,
		"-o", "Dir::State::status=/dev/null", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none",
	}}
	_, err = output(dir, "apt-get", append(a.options, "update", "-qq")...)
	return a, err
}

// mirrorOf returns the first Debian mirror among the machine's repositories,
// which are listed one a line. Other repositories, such as Debian's for
// security, do not have all suites.
func mirrorOf(repositories string) (string, error) {
	for uri := range strings.Lines(repositories) {
		if uri = strings.TrimRight(strings.TrimSpace(uri), "/"); strings.HasSuffix(uri, "/debian") {
			return uri, nil
		}
	}
	return "", errors.New("apt knows no mirror of Debian, from which to fetch kernels of other releases; " +
		"add a mirror whose address ends in /debian to apt's sources")
}

// unpack unpacks the wanted version of the package into the directory tree. If
// the suite no longer has that version, unpack uses the newest one and prints a
// notice. An empty wanted means the newest version.
func (a *apt) unpack(name, wanted, tree string) error {
	madison, err := output(a.dir, "apt-cache", append(a.options, "madison", name)...)
	if err != nil {
		return err
	}
	version, err := pickVersion(name, wanted, madison)
	if err != nil {
		return fmt.Errorf("the suite %s: %w", a.suite, err)
	}
	if wanted != "" && version != wanted {
		fmt.Fprintf(os.Stderr, "testkernel: %s %s is no longer in the suite %s; using %s\n", name, wanted, a.suite, version)
	}
	if _, err := output(a.dir, "apt-get", append(a.options, "download", "-qq", name+"="+version)...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(a.dir, name+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return errors.Join(err, fmt.Errorf("apt-get download %s: %d files", name, len(debs)))
	}
	if _, err := output(a.dir, "dpkg-deb", "-x", debs[0], tree); err != nil {
		return err
	}
	return os.Remove(debs[0])
}

// pickVersion returns the wanted version if apt-cache madison printed it, else
// the first one, which is the newest.
func pickVersion(name, wanted, madison string) (string, error) {
	var versions []string
	for line := range strings.Lines(madison) {
		if f := strings.Split(line, "|"); len(f) == 3 && strings.TrimSpace(f[0]) == name && strings.Contains(f[2], "Packages") {
			versions = append(versions, strings.TrimSpace(f[1]))
		}
	}
	if len(versions) == 0 {
		return "", fmt.Errorf("no package %s", name)
	}
	if slices.Contains(versions, wanted) {
		return wanted, nil
	}
	return versions[0], nil
}
