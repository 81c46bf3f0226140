package driver

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/go-logr/logr/funcr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// A failed call has a code and no reply, a panic becomes INTERNAL, and two
// calls never change the same volume at the same time. The driver has no pools whose
// disks it could blame: it does so only after a deadline.
func TestIntercept_errorsAndOverlap(t *testing.T) {
	d := &Driver{running: operations{names: map[string]string{}}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	call := func(request any, handle func() (any, error)) (any, error) {
		return d.intercept(ctx, request, &grpc.UnaryServerInfo{FullMethod: "/csi.v1.Node/Method"},
			func(context.Context, any) (any, error) { return handle() })
	}
	ok := func() (any, error) { return "reply", nil }
	stage := &csi.NodeStageVolumeRequest{VolumeId: "v1"}

	if reply, err := call(stage, ok); reply != "reply" || err != nil {
		t.Errorf("plain call: %v, %v", reply, err)
	}
	reply, err := call(stage, func() (any, error) { return "half", fmt.Errorf("stage: %w", pool.ErrInUse) })
	if reply != nil || status.Code(err) != codes.FailedPrecondition {
		t.Errorf("error: %v, %v", reply, err)
	}
	reply, err = call(stage, func() (any, error) { panic("boom") })
	if reply != nil || status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "boom") {
		t.Errorf("panic: %v, %v", reply, err)
	}

	// While a call changes v1, other changes of v1 are refused and all other calls run.
	_, err = call(&csi.NodePublishVolumeRequest{VolumeId: "v1"}, func() (any, error) {
		for _, c := range []struct {
			request any
			want    codes.Code
		}{
			{&csi.NodeUnstageVolumeRequest{VolumeId: "v1"}, codes.Aborted},
			{&csi.DeleteVolumeRequest{VolumeId: "v1"}, codes.Aborted},
			{&csi.ControllerExpandVolumeRequest{VolumeId: "v1"}, codes.Aborted},
			{&csi.NodeExpandVolumeRequest{VolumeId: "v1"}, codes.Aborted},
			{&csi.NodeUnpublishVolumeRequest{VolumeId: "v1"}, codes.Aborted},
			{&csi.CreateSnapshotRequest{SourceVolumeId: "v1", Name: "s"}, codes.Aborted},
			{&csi.NodeGetVolumeStatsRequest{VolumeId: "v1"}, codes.OK},
			{&csi.NodeStageVolumeRequest{VolumeId: "v2"}, codes.OK},
			{&csi.CreateVolumeRequest{Name: "v1"}, codes.OK},
			{&csi.DeleteSnapshotRequest{SnapshotId: "v1"}, codes.OK},
		} {
			if _, err := call(c.request, ok); status.Code(err) != c.want {
				t.Errorf("%T while v1 is being changed: %v, want %v", c.request, err, c.want)
			}
		}
		return nil, nil
	})
	if err != nil {
		t.Error(err)
	}
	// The refused requests have left no name registered.
	if _, err := call(&csi.CreateSnapshotRequest{SourceVolumeId: "v1", Name: "s"}, ok); err != nil {
		t.Error(err)
	}
	if len(d.running.names) != 0 {
		t.Errorf("left over: %v", d.running.names)
	}
}

// A call ends with its deadline although its handler hangs. Until the handler ends,
// nobody else changes the volume.
func TestIntercept_hangingHandler(t *testing.T) {
	d := &Driver{running: operations{names: map[string]string{}}, pools: &pool.Set{}}
	hang, ended, logged := make(chan bool), make(chan bool), make(chan string, 100)
	log := klog.NewContext(t.Context(), funcr.New(func(_, line string) { logged <- line }, funcr.Options{}))
	call := func(limit time.Duration, handle grpc.UnaryHandler) error {
		ctx, cancel := context.WithTimeout(log, limit)
		defer cancel()
		_, err := d.intercept(ctx, &csi.NodeStageVolumeRequest{VolumeId: "v1"}, &grpc.UnaryServerInfo{FullMethod: "/csi.v1.Node/NodeStageVolume"}, handle)
		return err
	}
	began := time.Now()
	err := call(10*time.Millisecond, func(context.Context, any) (any, error) {
		defer close(ended)
		<-hang
		panic("nobody sees it any more")
	})
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "continues in the background") || time.Since(began) > 5*leaveLimit {
		t.Errorf("%v after %v", err, time.Since(began))
	}
	again := func(context.Context, any) (any, error) { return nil, nil }
	if err := call(time.Minute, again); status.Code(err) != codes.Aborted {
		t.Errorf("while it continues: %v", err)
	}
	close(hang)
	<-ended
	for late := time.After(10 * time.Second); ; {
		select {
		case line := <-logged:
			if !strings.Contains(line, "Ended after its call") {
				continue
			}
			if !strings.Contains(line, "Internal") {
				t.Errorf("the log says of its end: %s", line)
			}
		case <-late:
			t.Error("the log does not say how it ended")
		}
		break
	}
	for end := time.Now().Add(10 * time.Second); call(time.Minute, again) != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the volume stays locked")
		}
	}
}

// A call ends soon after its caller has left, even if its deadline is far away.
func TestIntercept_callerLeaves(t *testing.T) {
	d := &Driver{running: operations{names: map[string]string{}}, pools: &pool.Set{}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	cancel()
	hang := make(chan bool)
	defer close(hang)
	began := time.Now()
	_, err := d.intercept(ctx, &csi.NodeStageVolumeRequest{VolumeId: "v1"}, &grpc.UnaryServerInfo{FullMethod: "/csi.v1.Node/NodeStageVolume"},
		func(context.Context, any) (any, error) { <-hang; return nil, nil })
	if status.Code(err) != codes.Canceled || time.Since(began) > 10*leaveLimit {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

// The log shows a request without its secrets, and the request is unchanged.
func TestWithoutSecrets_string(t *testing.T) {
	r := &csi.NodeStageVolumeRequest{VolumeId: "v1", Secrets: map[string]string{"key": "hidden"}}
	if text := (withoutSecrets{r}).String(); !strings.Contains(text, "v1") || strings.Contains(text, "hidden") {
		t.Error(text)
	}
	if r.GetSecrets()["key"] != "hidden" {
		t.Error("the request itself was changed")
	}
}
