package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"

	"github.com/csi-dmsnap/csi-dmsnap/test/e2e/node"
)

// handler serves the daemon's commands.
func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern string, f func(r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := f(r); err != nil {
				http.Error(w, err.Error(), http.StatusConflict)
			}
		})
	}
	answer("POST /stop", func(*http.Request) error { d.stop(); return nil })
	answer("POST /boot/{node}", func(r *http.Request) error { return d.boot(r.PathValue("node")) })
	answer("POST /cut/{node}", func(r *http.Request) error { return d.cut(r.PathValue("node")) })
	// All other commands are for a node.
	mux.HandleFunc("POST /node/{node}/{command...}", func(w http.ResponseWriter, r *http.Request) {
		i, err := d.number(r.PathValue("node"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		host := net.JoinHostPort(netOf(i).address.Addr().String(), strconv.Itoa(node.Port))
		proxy := httputil.ReverseProxy{
			Rewrite: func(p *httputil.ProxyRequest) {
				p.SetURL(&url.URL{Scheme: "http", Host: host})
				p.Out.URL.Path = "/" + r.PathValue("command")
			},
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
				http.Error(w, fmt.Sprintf("%s: %v", r.PathValue("node"), err), http.StatusBadGateway)
			},
		}
		proxy.ServeHTTP(w, r)
	})
	return mux
}

// Client sends commands to the daemon of a cluster.
type Client struct {
	*Config
	http *http.Client
}

// Connect returns the client of the cluster in the directory. If the cluster is
// not running, the first command fails.
func Connect(dir string) (*Client, error) {
	c, err := LoadConfig(dir)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", c.file(socketFile))
	}}
	return &Client{Config: c, http: &http.Client{Transport: transport}}, nil
}

func (c *Client) post(ctx context.Context, path string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://cluster/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("the cluster in %s did not answer: %w", c.Dir, err)
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, strings.TrimSpace(string(data)))
	}
	return data, err
}

// Boot starts the machine of a node that is off.
func (c *Client) Boot(ctx context.Context, node string) error {
	_, err := c.post(ctx, "boot/"+node, nil)
	return err
}

// Cut kills the machine of a node, as a power cut would.
func (c *Client) Cut(ctx context.Context, node string) error {
	_, err := c.post(ctx, "cut/"+node, nil)
	return err
}

// StartKubelet starts the kubelet of a node.
func (c *Client) StartKubelet(ctx context.Context, node string) error {
	_, err := c.post(ctx, "node/"+node+"/kubelet/start", nil)
	return err
}

// StopKubelet kills the kubelet of a node.
func (c *Client) StopKubelet(ctx context.Context, node string) error {
	_, err := c.post(ctx, "node/"+node+"/kubelet/stop", nil)
	return err
}

// Run runs a command on a node. It returns no error if the command fails.
func (c *Client) Run(ctx context.Context, on string, argv ...string) (node.Result, error) {
	var result node.Result
	body, err := json.Marshal(node.Command{Argv: argv})
	if err != nil {
		return result, err
	}
	data, err := c.post(ctx, "node/"+on+"/exec", body)
	if err != nil {
		return result, err
	}
	if err := json.Unmarshal(data, &result); err != nil {
		return result, fmt.Errorf("answer of %s: %w", on, err)
	}
	return result, nil
}

// Output runs a command on a node and returns its standard output. It returns
// an error if the command fails.
func (c *Client) Output(ctx context.Context, on string, argv ...string) (string, error) {
	r, err := c.Run(ctx, on, argv...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s on %s: exit status %d: %s", strings.Join(argv, " "), on, r.Code, r.Stderr)
	}
	return r.Stdout, err
}
