package trust

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"
)

// Files of --cert-dir, and the one of --trust-dir.
const (
	fileCertificate = "tls.crt"
	fileKey         = "tls.key"
	fileRoots       = "ca.crt"
)

// watched calls use with the contents of files whenever they have changed. It reads
// the files at intervals, because mounted Secrets and ConfigMaps change by symbolic
// links and may be missing at first, and inotify instances run out on busy nodes.
type watched struct {
	dir   string
	names []string
	use   func(contents map[string][]byte) error

	last map[string][]byte // the contents of the last call of use, even if it failed
	told string            // the last error in the log
}

// look reads the files and uses them if they have changed. If they cannot be used,
// the previous certificates stay in use.
func (w *watched) look(ctx context.Context) {
	contents := map[string][]byte{}
	err := func() error {
		same := w.last != nil
		for _, name := range w.names {
			text, err := os.ReadFile(filepath.Join(w.dir, name))
			if err != nil {
				return err
			}
			contents[name] = text
			same = same && bytes.Equal(text, w.last[name])
		}
		if same {
			return nil
		}
		w.last = contents
		if err := w.use(contents); err != nil {
			return fmt.Errorf("use the files in %s: %w", w.dir, err)
		}
		klog.FromContext(ctx).Info("Using certificates", "dir", w.dir, "files", w.names)
		w.told = ""
		return nil
	}()
	if err != nil && err.Error() != w.told {
		w.told = err.Error()
		klog.FromContext(ctx).Error(err, "Could not load certificates; waiting for the files to change", "dir", w.dir)
	}
}

// interval between looks at files. A variable for the tests.
var interval = 2 * time.Second

func (w *watched) run(ctx context.Context) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.look(ctx)
		}
	}
}

// certDir watches a directory with a certificate of that identity, its key and the
// roots to trust. Somebody else keeps these files up to date.
func certDir(dir, identity string, usage x509.ExtKeyUsage, use func(*tls.Certificate, *x509.CertPool)) *watched {
	return &watched{dir: dir, names: []string{fileCertificate, fileKey, fileRoots}, use: func(contents map[string][]byte) error {
		pair, err := tls.X509KeyPair(contents[fileCertificate], contents[fileKey])
		if err != nil {
			return fmt.Errorf("%s and %s: %w", fileCertificate, fileKey, err)
		}
		pool, err := decodeRoots(contents[fileRoots])
		if err != nil {
			return fmt.Errorf("%s: %w", fileRoots, err)
		}
		chain := []*x509.Certificate{pair.Leaf}
		for _, der := range pair.Certificate[1:] {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return fmt.Errorf("%s: %w", fileCertificate, err)
			}
			chain = append(chain, c)
		}
		if err := verify(chain, pool, usage, identity); err != nil {
			return fmt.Errorf("%s: %w", fileCertificate, err)
		}
		use(&pair, pool)
		return nil
	}}
}
