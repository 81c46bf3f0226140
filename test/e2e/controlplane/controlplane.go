// Package controlplane runs etcd, the API server, the controller manager and
// the scheduler as processes of this machine.
package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/process"
)

const (
	// ServiceIP is the API server's address for everybody in the cluster. It is
	// the first address of the services' range, which pods find in their
	// environment. It is also a real address of the network namespace, so that
	// no proxy is needed.
	ServiceIP    = "10.96.0.1"
	serviceRange = "10.96.0.0/24"

	// Server is the URL of the API server for the cluster's components.
	Server = "https://" + ServiceIP + ":443"

	etcd = "http://127.0.0.1:2379"
)

// Plane is a control plane. Its files are in one directory.
type Plane struct {
	programs  string
	authority *authority
	running   []*process.Process
}

// New makes the keys and certificates of a new cluster in the directory dir.
func New(dir, programs string) (*Plane, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	a, err := newAuthority(dir)
	if err != nil {
		return nil, err
	}
	p := &Plane{programs: programs, authority: a}
	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"}
	err = a.issueFiles("apiserver", pkix.Name{CommonName: "kube-apiserver"}, names, net.ParseIP(ServiceIP), net.IPv4(127, 0, 0, 1))
	if err != nil {
		return nil, err
	}
	err = a.issueFiles("kubelet-client", pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}}, nil)
	if err != nil {
		return nil, err
	}
	for _, component := range []string{"kube-controller-manager", "kube-scheduler"} {
		if err := a.writeKubeconfig(a.file(component+".kubeconfig"), Server, "system:"+component); err != nil {
			return nil, err
		}
	}
	return p, a.accountKey()
}

// Authority returns the certificate authority in PEM.
func (p *Plane) Authority() []byte { return p.authority.pem }

// AdminKubeconfig writes a kubeconfig with all permissions.
func (p *Plane) AdminKubeconfig(file, server string) error {
	return p.authority.writeKubeconfig(file, server, "admin", "system:masters")
}

// NodeKubeconfig writes the kubeconfig of a node's kubelet.
func (p *Plane) NodeKubeconfig(file, node string) error {
	return p.authority.writeKubeconfig(file, Server, "system:node:"+node, "system:nodes")
}

// Start starts the control plane and returns once the API server is ready.
func (p *Plane) Start(ctx context.Context) error {
	file := p.authority.file
	// The data is deleted with the cluster, so it need not reach a disk in
	// time.
	_, err := p.start("etcd", "--data-dir="+file("etcd"), "--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level=warn")
	if err != nil {
		return err
	}
	server, err := p.start("kube-apiserver",
		"--etcd-servers="+etcd, "--bind-address=0.0.0.0", "--secure-port=443", "--advertise-address="+ServiceIP,
		"--service-cluster-ip-range="+serviceRange,
		"--tls-cert-file="+file("apiserver.crt"), "--tls-private-key-file="+file("apiserver.key"), "--cert-dir="+file("certs"),
		"--client-ca-file="+file("ca.crt"),
		"--kubelet-client-certificate="+file("kubelet-client.crt"), "--kubelet-client-key="+file("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-key-file="+file("accounts.pub"), "--service-account-signing-key-file="+file("accounts.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true", "--profiling=false")
	if err != nil {
		return err
	}
	if err := server.Poll(ctx, p.ready()); err != nil {
		return err
	}
	_, err = p.start("kube-controller-manager", "--kubeconfig="+file("kube-controller-manager.kubeconfig"),
		"--service-account-private-key-file="+file("accounts.key"), "--root-ca-file="+file("ca.crt"),
		"--use-service-account-credentials", "--leader-elect=false", "--cert-dir="+file("certs"), "--profiling=false")
	if err != nil {
		return err
	}
	_, err = p.start("kube-scheduler", "--kubeconfig="+file("kube-scheduler.kubeconfig"),
		"--leader-elect=false", "--cert-dir="+file("certs"), "--profiling=false")
	return err
}

func (p *Plane) start(program string, args ...string) (*process.Process, error) {
	running, err := process.Start(program, process.Spec{
		Argv: append([]string{filepath.Join(p.programs, program)}, args...),
		Log:  p.authority.file(program + ".log"),
	})
	if err == nil {
		p.running = append(p.running, running)
	}
	return running, err
}

// ready returns a function that succeeds if the API server is ready.
func (p *Plane) ready() func(context.Context) error {
	roots := x509.NewCertPool()
	roots.AddCert(p.authority.cert)
	client := &http.Client{
		Timeout:   2 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true},
	}
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, Server+"/readyz", nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode == http.StatusOK {
			return nil
		}
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
		return fmt.Errorf("%s: %s", answer.Status, strings.TrimSpace(string(text)))
	}
}

// Processes returns the processes of the control plane.
func (p *Plane) Processes() []*process.Process { return p.running }
