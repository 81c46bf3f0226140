package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
)

// toolsTree selects the files that the tools need from the packages in dir, and
// adds the few other files of the system.
func toolsTree(arch, dir string) (tree, error) {
	all, owner := tree{}, map[string]string{}
	control := map[string]string{}
	for _, name := range packages {
		deb, err := packageFile(dir, name, arch)
		if err != nil {
			return nil, err
		}
		files, err := unpack(deb)
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", deb, err)
		}
		for path, f := range files {
			all[path], owner[path] = f, name
		}
		text, err := exec.Command("dpkg-deb", "--field", deb).Output()
		if err != nil {
			return nil, fmt.Errorf("control fields of %s: %w", deb, err)
		}
		control[name] = string(text)
	}
	chosen, err := all.closure(multiarch[arch])
	if err != nil {
		return nil, err
	}
	t := skeleton()
	used := map[string]bool{}
	for _, name := range chosen {
		t.add(name, all[name])
		used[owner[name]] = true
	}
	for _, name := range packages {
		// The licence requires the copyright file. Scanners look for the
		// control file in this place if an image has no package database.
		doc, _, err := all.follow("usr/share/doc/" + name)
		if err != nil {
			return nil, fmt.Errorf("copyright of %s: %w", name, err)
		}
		doc, _, err = all.follow(doc + "/copyright")
		if err != nil {
			return nil, fmt.Errorf("copyright of %s: %w", name, err)
		}
		used[owner[doc]] = true
		t.add("usr/share/doc/"+name+"/copyright", all[doc])
		t.add("var/lib/dpkg/status.d/"+name, file{mode: 0o644, content: []byte(control[name])})
	}
	for _, name := range packages {
		if !used[name] {
			return nil, fmt.Errorf("no file of package %s is needed; remove the package from the list", name)
		}
	}
	return t, nil
}

// skeleton returns the files of an image other than its programs.
func skeleton() tree {
	t := tree{}
	for name, target := range map[string]string{
		"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
		"etc/mtab": "../proc/self/mounts", "etc/os-release": "../usr/lib/os-release", "var/run": "../run",
		"etc/selinux": "../host/etc/selinux", // the chart mounts the host's /etc there, and mount looks there for SELinux's configuration
	} {
		t.add(name, file{mode: fs.ModeSymlink | 0o777, link: target})
	}
	for _, name := range []string{"dev", "proc", "run", "sys"} {
		t.add(name, file{mode: fs.ModeDir | 0o755})
	}
	t.add("tmp", file{mode: fs.ModeDir | fs.ModeSticky | 0o777})
	t.add("etc/passwd", file{mode: 0o644, content: []byte("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")})
	t.add("etc/group", file{mode: 0o644, content: []byte("root:x:0:\nnonroot:x:65532:\n")})
	return t
}

// unpack reads the files of a Debian package.
func unpack(deb string) (tree, error) {
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", deb)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	t := tree{}
	hard := map[string]string{} // Debian has hard links for the names of one program
	in := tar.NewReader(&stdout)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		name := merged(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			content, err := io.ReadAll(in)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			// The setuid bit of mount is dropped, because nobody needs it here.
			t[name] = file{mode: fs.FileMode(h.Mode) & 0o755, content: content}
		case tar.TypeDir:
			t[name] = file{mode: fs.ModeDir | 0o755}
		case tar.TypeSymlink:
			t[name] = file{mode: fs.ModeSymlink | 0o777, link: h.Linkname}
		case tar.TypeLink:
			hard[name] = merged(h.Linkname)
		}
	}
	for name, target := range hard {
		f, ok := t[target]
		if !ok {
			return nil, fmt.Errorf("%s is a link to %s, which is missing", name, target)
		}
		t[name] = f
	}
	return t, nil
}
