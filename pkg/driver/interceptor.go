package driver

import (
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/klog/v2"

	"github.com/csi-dmsnap/csi-dmsnap/internal/callmeta"
	"github.com/csi-dmsnap/csi-dmsnap/internal/handle"
)

// Verbosity levels of log lines.
const (
	logChanges  = 2 // successful calls that change something
	logReads    = 4 // successful calls that only read
	logRequests = 5 // the content of requests
)

var requests atomic.Uint64 // number of requests so far: the ids of requests in the log

// leaveLimit is how long a handler may take to end after its call's time is over.
const leaveLimit = time.Second

// shortened returns a context that ends before ctx, by a tenth of the call's time and at
// most leaveLimit. The client leaves when its time is over, so an answer that comes then
// tells nobody why the call failed.
func shortened(ctx context.Context) (context.Context, context.CancelFunc) {
	end, limited := ctx.Deadline()
	if !limited {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, end.Add(-min(leaveLimit, time.Until(end)/10)))
}

// intercept wraps every call. It keeps other calls from changing the same volume
// meanwhile, gives the handler a logger with the request's id, and logs the
// result. It turns errors into gRPC status errors.
func (d *Driver) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (reply any, err error) {
	method, begin := path.Base(info.FullMethod), time.Now()
	log := klog.FromContext(ctx).WithValues("request", strconv.FormatUint(requests.Add(1), 36), "method", method)
	if key, value := subject(request); value != "" {
		log = log.WithValues(key, value)
	}
	log.V(logRequests).Info("Request", "content", withoutSecrets{request})
	names := changes(request)
	defer func() {
		took := time.Since(begin).Round(time.Microsecond)
		switch {
		case status.Code(err) == codes.NotFound && callmeta.Of(ctx).OnlyExisting:
			reply = nil
			log.V(logReads).Info("The name does not exist here", "took", took)
		case err != nil:
			reply = nil
			log.Info("Failed", "code", status.Code(err).String(), "err", status.Convert(err).Message(), "took", took)
		case len(names) > 0:
			log.V(logChanges).Info("Done", "took", took)
		default:
			log.V(logReads).Info("Done", "took", took)
		}
	}()
	end, err := d.running.begin(method, names)
	if err != nil {
		return nil, err
	}
	limited, cancel := shortened(klog.NewContext(ctx, log))
	defer cancel()
	reply, err = answer(limited, ctx, method, func() (any, error) {
		defer end()
		return next(limited, request)
	})
	if err = toStatus(err); limited.Err() != nil && err != nil {
		err = d.blaming(err, request)
	}
	return reply, err
}

// answer calls handle, and returns soon after ctx ends, before the client leaves, even
// if handle hangs in the kernel. handle then continues: until it ends, calls that change
// the same volume are ABORTED. A panic becomes INTERNAL, so that it does not end the
// other calls.
func answer(ctx, client context.Context, method string, handle func() (any, error)) (any, error) {
	type result struct {
		reply any
		err   error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				klog.FromContext(ctx).Error(nil, "Panic", "cause", p, "stack", string(debug.Stack()))
				r.err = status.Errorf(codes.Internal, "%s: internal error: %v", method, p)
			}
			done <- r
		}()
		r.reply, r.err = handle()
	}()
	select {
	case r := <-done:
		return r.reply, r.err
	case <-ctx.Done():
	}
	leave := leaveLimit
	if end, limited := client.Deadline(); limited {
		leave = min(leave, time.Until(end)/2)
	}
	select {
	case r := <-done:
		return r.reply, r.err
	case <-time.After(leave):
		go func() { // the client has left, so only the log can tell how it ended
			r := <-done
			klog.FromContext(ctx).Info("Ended after its call", "code", status.Code(toStatus(r.err)).String(), "err", r.err)
		}()
		return nil, fmt.Errorf("%s continues in the background, because the kernel does not answer: %w", method, context.Cause(ctx))
	}
}

// blaming adds to the error of a call whose time is over the disks that do not answer.
func (d *Driver) blaming(err error, request any) error {
	names := d.pools.Names()
	if _, value := subject(request); value != "" {
		if i, ok := handle.Parse(value); ok {
			names = []string{i.Pool}
		}
	}
	if r, ok := request.(*csi.CreateVolumeRequest); ok && r.GetParameters()[parameterPool] != "" {
		names = []string{r.GetParameters()[parameterPool]}
	}
	var silent []string
	for _, name := range names {
		if p, err := d.pools.Pool(name); err == nil {
			silent = append(silent, p.Silent()...)
		}
	}
	if len(silent) == 0 {
		return err
	}
	s := status.Convert(err)
	return status.Error(s.Code(), s.Message()+"; "+strings.Join(silent, ", "))
}

// subject returns the volume, snapshot or name of a request for the log; "" if
// the request has none.
func subject(request any) (key, value string) {
	switch r := request.(type) {
	case interface{ GetVolumeId() string }:
		return "volume", r.GetVolumeId()
	case *csi.CreateSnapshotRequest:
		return "volume", r.GetSourceVolumeId()
	case interface{ GetSnapshotId() string }:
		return "snapshot", r.GetSnapshotId()
	case interface{ GetName() string }:
		return "name", r.GetName()
	}
	return "", ""
}

// withoutSecrets formats a request without the fields that the CSI specification
// marks as secret. The request is not changed.
type withoutSecrets struct{ request any }

func (w withoutSecrets) String() string {
	m, ok := w.request.(proto.Message)
	if !ok {
		return ""
	}
	m = proto.Clone(m)
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if proto.GetExtension(f.Options(), csi.E_CsiSecret).(bool) {
			m.ProtoReflect().Clear(f)
		}
		return true
	})
	text, err := protojson.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
