// Command image makes the container image of csi-dmsnap. The image has the
// static binary, the file-system tools that the driver calls, and the libraries
// that the tools need, from Debian packages. The same packages and the same
// binary give the same digest on any machine. The command needs only apt-get
// and dpkg-deb, and a network only for packages that are not in -debs yet.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	var o options
	flag.StringVar(&o.arch, "arch", "amd64", "architecture: amd64 or arm64")
	flag.StringVar(&o.binary, "binary", "", "static csi-dmsnap binary, a `file` for this architecture")
	flag.StringVar(&o.debs, "debs", "", "`directory` of the Debian packages; missing packages are downloaded to it")
	flag.StringVar(&o.reference, "reference", "", "name of the image, such as ghcr.io/csi-dmsnap/csi-dmsnap:v0.1.0")
	flag.StringVar(&o.archive, "archive", "", "`file` to write the image to, for ctr images import or docker load")
	flag.StringVar(&o.root, "root", "", "`directory` to write the image's files to instead, for a Dockerfile")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := o.run(); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// options has the options of the command line.
type options struct {
	arch, binary, debs, reference, archive, root string
}

func (o options) run() error {
	tools, program, err := o.layers()
	if err != nil {
		return err
	}
	if o.root != "" {
		for _, t := range []tree{tools, program} {
			if err := t.writeDir(o.root); err != nil {
				return fmt.Errorf("write %s: %w", o.root, err)
			}
		}
		return nil
	}
	img, err := assemble(o.arch, o.reference, tools, program)
	if err != nil {
		return err
	}
	if err := writeArchive(o.archive, o.reference, img); err != nil {
		return fmt.Errorf("write %s: %w", o.archive, err)
	}
	return report(os.Stdout, o.archive, img)
}

// layers returns the files of the image: the tools, which change rarely, and
// the program.
func (o options) layers() (tools, program tree, err error) {
	if _, ok := multiarch[o.arch]; !ok {
		return nil, nil, fmt.Errorf("unknown architecture %q: must be amd64 or arm64", o.arch)
	}
	if err := fetch(o.arch, o.debs); err != nil {
		return nil, nil, fmt.Errorf("download the Debian packages to %s: %w", o.debs, err)
	}
	if tools, err = toolsTree(o.arch, o.debs); err != nil {
		return nil, nil, err
	}
	if program, err = programTree(o.arch, o.binary); err != nil {
		return nil, nil, fmt.Errorf("the program %s: %w", o.binary, err)
	}
	return tools, program, nil
}
