package router

import (
	"context"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// Verbosity of log lines about successful changes and successful reads.
const (
	logChanges = 2
	logReads   = 4
)

// intercept handles every request. It adds a logger with the request's values,
// gives errors a gRPC code, and recovers from a panic, which would otherwise end
// the other requests too.
func (r *Router) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (reply any, err error) {
	method, begin := path.Base(info.FullMethod), time.Now()
	log := klog.FromContext(ctx).WithValues("request", strconv.FormatUint(r.calls.Add(1), 36), "method", method)
	if key, value := subject(request); value != "" {
		log = log.WithValues(key, value)
	}
	defer func() {
		if p := recover(); p != nil {
			log.Error(nil, "Panic", "cause", p, "stack", string(debug.Stack()))
			err = status.Errorf(codes.Internal, "%s: internal error: %v", method, p)
		}
		took := time.Since(begin)
		switch {
		case err != nil:
			reply = nil
			log.Info("Failed", "code", status.Code(err).String(), "err", status.Convert(err).Message(), "took", took)
		case strings.Contains(method, "Get") || strings.Contains(method, "List") || method == "Probe":
			log.V(logReads).Info("Done", "took", took)
		default:
			log.V(logChanges).Info("Done", "took", took)
		}
	}()
	reply, err = handle(klog.NewContext(ctx, log), request)
	return reply, toStatus(err)
}

// subject returns the id or name that a request is about, for the log.
func subject(request any) (key, value string) {
	switch q := request.(type) {
	case interface{ GetVolumeId() string }:
		return "volume", q.GetVolumeId()
	case interface {
		GetSourceVolumeId() string
		GetName() string
	}:
		return "snapshotName", q.GetName()
	case interface{ GetSnapshotId() string }:
		return "snapshot", q.GetSnapshotId()
	case interface{ GetName() string }:
		return "name", q.GetName()
	}
	return "", ""
}
