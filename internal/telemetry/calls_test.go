package telemetry

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The metric and its labels have the names that csi-lib-utils gives to CSI drivers, and
// its buckets are a superset of the library's.
func TestCalls_standardNames(t *testing.T) {
	r := NewRegistry()
	c := NewCalls(r, "a.driver")
	for _, want := range []error{nil, status.Error(codes.NotFound, "none"), errors.New("not a status")} {
		reply, err := c.Unary(t.Context(), "request", &grpc.UnaryServerInfo{FullMethod: "/csi.v1.Node/NodeGetInfo"}, func(context.Context, any) (any, error) {
			return "reply", want
		})
		if reply != "reply" || !errors.Is(err, want) {
			t.Errorf("%v, %v, want the handler's %v", reply, err, want)
		}
	}
	text, err := page(r)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"# TYPE csi_plugin_operations_seconds histogram"}
	for _, code := range []string{"OK", "NotFound", "Unknown"} {
		want = append(want, `csi_plugin_operations_seconds_count{driver_name="a.driver",grpc_status_code="`+code+`",method_name="/csi.v1.Node/NodeGetInfo"} 1`)
	}
	for _, le := range []string{"0.1", "0.25", "0.5", "1", "2.5", "5", "10", "15", "25", "50", "120", "300", "600", "+Inf"} {
		want = append(want, `csi_plugin_operations_seconds_bucket{driver_name="a.driver",grpc_status_code="OK",method_name="/csi.v1.Node/NodeGetInfo",le="`+le+`"} 1`)
	}
	for _, w := range want {
		if !strings.Contains(string(text), w+"\n") {
			t.Errorf("the metrics lack %s:\n%s", w, text)
		}
	}
}
