package driver

import (
	"context"
	"path"
	"runtime/debug"
	"strconv"
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
)

// Verbosity levels of log lines.
const (
	logChanges  = 2 // successful calls that change something
	logReads    = 4 // successful calls that only read
	logRequests = 5 // the content of requests
)

var requests atomic.Uint64 // number of requests so far: the ids of requests in the log

// intercept wraps every call. It keeps other calls from changing the same volume
// meanwhile, gives the handler a logger with the request's id, and logs the
// result. It turns errors into gRPC status errors, and a panic into INTERNAL, so
// that a panic does not end the other calls.
func (d *Driver) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (reply any, err error) {
	method, begin := path.Base(info.FullMethod), time.Now()
	log := klog.FromContext(ctx).WithValues("request", strconv.FormatUint(requests.Add(1), 36), "method", method)
	if key, value := subject(request); value != "" {
		log = log.WithValues(key, value)
	}
	log.V(logRequests).Info("Request", "content", withoutSecrets{request})
	names := changes(request)
	defer func() {
		if p := recover(); p != nil {
			log.Error(nil, "Panic", "cause", p, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s: internal error: %v", method, p)
		}
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
	defer end()
	reply, err = handle(klog.NewContext(ctx, log), request)
	return reply, toStatus(err)
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
