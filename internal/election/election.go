// Package election lets one of several processes do what must not be done
// twice at a time.
package election

import (
	"context"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// Lease is what the processes compete for.
type Lease struct {
	Client    kubernetes.Interface
	Namespace string
	Name      string
	Identity  string // of this process: its pod's name

	// How long a process that died keeps the lease, how long one that cannot
	// reach the API server thinks that it has it, and how often it tries. The
	// usual 15, 10 and 2 seconds if zero.
	Duration, Deadline, Period time.Duration
}

// Run calls lead whenever this process is elected, with a context that ends
// when it is no more, until ctx ends. It never runs two calls at once, and
// waits for the last one. An election is no fence: a process may find out
// late that another one was elected.
func (l Lease) Run(ctx context.Context, lead func(context.Context)) error {
	if l.Duration == 0 {
		l.Duration, l.Deadline, l.Period = 15*time.Second, 10*time.Second, 2*time.Second
	}
	log := klog.FromContext(ctx).WithValues("lease", klog.KRef(l.Namespace, l.Name), "identity", l.Identity)
	var leading sync.Mutex
	// The lease is given up after the call has ended, not before.
	electing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		leading.Lock()
		defer leading.Unlock()
		stop()
	})()
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{
				LeaseMeta: metav1.ObjectMeta{Namespace: l.Namespace, Name: l.Name}, Client: l.Client.CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: l.Identity},
			},
			LeaseDuration: l.Duration, RenewDeadline: l.Deadline, RetryPeriod: l.Period,
			ReleaseOnCancel: true, Name: l.Name,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(term context.Context) {
					leading.Lock()
					defer leading.Unlock()
					term, end := context.WithCancel(term)
					defer end()
					defer context.AfterFunc(ctx, end)()
					if term.Err() == nil && ctx.Err() == nil {
						log.Info("Elected")
						lead(term)
					}
				},
				OnStoppedLeading: func() {},
			},
		})
		if err != nil {
			return fmt.Errorf("election by lease %s/%s: %w", l.Namespace, l.Name, err)
		}
		elector.Run(electing)
		leading.Lock() // until the call has ended
		log.Info("Not elected any more")
		leading.Unlock()
	}
	return nil
}
