package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/driver"
)

// background runs f until the test ends or calls stop, and waits for it.
func background(t *testing.T, f func(ctx context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := f(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() { cancel(); done.Wait() }
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// In a cluster the node gets its certificate from the controller and answers its
// calls, registers with the kubelet, and is ready only then. A missing pool becomes
// an Event.
func TestServeNode_inCluster(t *testing.T) {
	dir := t.TempDir()
	pools, err := pool.OpenSet(t.Context(), []pool.Config{{Name: "fast", VolumeGroup: "vg-none", File: filepath.Join(dir, "no", "file"), Size: 1 << 30}}, pool.Options{RunDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer pools.Close()
	f := nodeFlags{nodeName: "node-a", kubeletDir: dir, endpoint: "unix://" + filepath.Join(dir, "csi.sock"), cluster: clusterFlags{
		register: true, listen: freeAddress(t), http: freeAddress(t), trustDir: filepath.Join(dir, "trust"), tokenFile: filepath.Join(dir, "token"),
	}}
	if err := os.WriteFile(f.cluster.tokenFile, []byte("token"), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := background(t, func(ctx context.Context) error { return serveNode(ctx, f, pools) })
	get := func(path string) (int, string) {
		r, err := http.Get("http://" + f.cluster.http + path)
		if err != nil {
			return 0, err.Error()
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		return r.StatusCode, string(text)
	}
	defer http.DefaultClient.CloseIdleConnections()
	eventually(t, "it is healthy without its pool", func() bool { code, _ := get("/healthz"); return code == http.StatusOK })
	if code, text := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "certificate") {
		t.Errorf("ready without a certificate: %d, %s", code, text)
	}

	c := clusterController(t, f)
	eventually(t, "it waits for the kubelet", func() bool { _, text := get("/readyz"); return strings.Contains(text, "kubelet") })
	kubelet, err := grpc.NewClient("unix://"+filepath.Join(dir, "plugins_registry", driver.Name+"-reg.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer kubelet.Close()
	info, err := registerapi.NewRegistrationClient(kubelet).GetInfo(t.Context(), &registerapi.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil || info.GetEndpoint() != filepath.Join(dir, "csi.sock") || info.GetName() != driver.Name {
		t.Errorf("registration: %v, %v", info, err)
	}
	if _, err := registerapi.NewRegistrationClient(kubelet).NotifyRegistrationStatus(t.Context(), &registerapi.RegistrationStatus{PluginRegistered: true}); err != nil {
		t.Error(err)
	}
	if code, text := get("/readyz"); code != http.StatusOK {
		t.Errorf("not ready: %d, %s", code, text)
	}

	conn, err := grpc.NewClient(f.cluster.listen, grpc.WithTransportCredentials(c.credentials("node-a")))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := callmeta.For(t.Context(), "node-a", callmeta.Conditions{})
	if plugin, err := csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}); err != nil || plugin.GetName() != driver.Name {
		t.Errorf("the controller's call: %v, %v", plugin, err)
	}
	if _, err := csi.NewControllerClient(conn).ListVolumes(ctx, &csi.ListVolumesRequest{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "fast") {
		t.Errorf("the error of a missing pool: %v", err)
	}
	if _, err := csi.NewNodeClient(conn).NodeGetInfo(ctx, &csi.NodeGetInfoRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("the Node service is offered over TCP: %v", err)
	}
	_, text := get("/metrics")
	for _, want := range []string{
		`csi_dmsnap_pool_open{pool="fast"} 0`,
		`csi_plugin_operations_seconds_count{driver_name="` + driver.Name + `",grpc_status_code="OK",method_name="/csi.v1.Identity/GetPluginInfo"} 1`,
		`csi_plugin_operations_seconds_count{driver_name="` + driver.Name + `",grpc_status_code="Unavailable",method_name="/csi.v1.Controller/ListVolumes"} 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	eventually(t, "the missing pool is an Event on the node", func() bool {
		list, err := c.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		return err == nil && len(list.Items) == 1 && list.Items[0].InvolvedObject.Name == "node-a" && list.Items[0].Reason == "PoolUnavailable" &&
			strings.Contains(list.Items[0].Message, "pool fast")
	})
	kubelet.Close()
	conn.Close()
	begin := time.Now()
	stop()
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("stopping took %v: streams delay it", took)
	}
	if _, err := net.Dial("tcp", f.cluster.listen); err == nil {
		t.Error("still listening")
	}
}

// elected is a controller and its API server.
type elected struct {
	peers
	client *fake.Clientset
}

// clusterController starts an elected controller that knows the node's pod. Like the
// kubelet, it makes a file of the ConfigMap in the pod.
func clusterController(t *testing.T, f nodeFlags) elected {
	t.Helper()
	client := fake.NewClientset()
	client.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		r := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview).DeepCopy()
		r.Status = authenticationv1.TokenReviewStatus{Authenticated: r.Spec.Token == "token", Audiences: r.Spec.Audiences, User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:n:account",
			Extra: map[string]authenticationv1.ExtraValue{
				"authentication.kubernetes.io/pod-name": {"pod"}, "authentication.kubernetes.io/pod-uid": {"uid"},
			},
		}}
		return true, r, nil
	})
	address, err := net.ResolveTCPAddr("tcp", f.cluster.listen)
	if err != nil {
		t.Fatal(err)
	}
	yes := true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "pod", UID: "uid", Labels: map[string]string{"app": "node"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "DaemonSet", Name: "set", Controller: &yes}}},
		Spec: corev1.PodSpec{NodeName: f.nodeName, ServiceAccountName: "account"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "127.0.0.1"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	if _, err := client.CoreV1().Pods("n").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := trustedPeers(t.Context(), controllerFlags{
		namespace: "n", nodeSelector: "app=node", nodeDaemonSet: "set", nodePort: uint16(address.Port),
		trust: trustFlags{podName: "controller-0", nodeServiceAccount: "account", secret: "ca", configMap: "trust", lease: "lease"},
	}, apiClients{claims: client, lease: client, trust: client, events: client, snapshots: dynamicfake.NewSimpleDynamicClient(runtime.NewScheme())})
	background(t, func(ctx context.Context) error { return together(ctx, p.parts...) })
	eventually(t, "the CA is published", func() bool {
		m, err := client.CoreV1().ConfigMaps("n").Get(t.Context(), "trust", metav1.GetOptions{})
		if err != nil {
			return false
		}
		if err := os.MkdirAll(f.cluster.trustDir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(f.cluster.trustDir, "ca.crt"), []byte(m.Data["ca.crt"]), 0o600); err != nil {
			t.Fatal(err)
		}
		return true
	})
	eventually(t, "the controller is ready", p.ready)
	return elected{p, client}
}
