package controlplane

import (
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"os"
)

// The values that are filled in have no characters that are special in YAML.
const kubeconfig = `apiVersion: v1
kind: Config
current-context: dmsnap-e2e
clusters:
- name: dmsnap-e2e
  cluster:
    server: %s
    certificate-authority-data: %s
contexts:
- name: dmsnap-e2e
  context: {cluster: dmsnap-e2e, user: user}
users:
- name: user
  user:
    client-certificate-data: %s
    client-key-data: %s
`

// writeKubeconfig writes a kubeconfig for a user of the cluster.
func (a *authority) writeKubeconfig(file, server, user string, groups ...string) error {
	cert, key, err := a.issue(pkix.Name{CommonName: user, Organization: groups}, nil)
	if err != nil {
		return err
	}
	encode := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf(kubeconfig, server, encode(a.pem), encode(cert), encode(key))
	return os.WriteFile(file, []byte(text), 0o600)
}
