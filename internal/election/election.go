// Package election chooses one of several processes for work that only one process
// may do at a time.
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

// Lease is the Lease object for which the processes compete.
type Lease struct {
	Client    kubernetes.Interface
	Namespace string
	Name      string
	Identity  string // of this process: its pod's name

	// Duration is how long a process that died keeps the lease. Deadline is how long
	// a process that cannot reach the API server believes to have the lease. Period is
	// the time between attempts. If Duration is zero, they are 15, 10 and 2 seconds.
	Duration, Deadline, Period time.Duration
}

// Run calls lead whenever this process is elected, until ctx ends. The context of the
// call ends when the process is no longer elected. Calls do not overlap, and Run waits
// for the last call. An election is no fence: a process may learn late that another
// process was elected.
func (l Lease) Run(ctx context.Context, lead func(context.Context)) error {
	if l.Duration == 0 {
		l.Duration, l.Deadline, l.Period = 15*time.Second, 10*time.Second, 2*time.Second
	}
	log := klog.FromContext(ctx).WithValues("lease", klog.KRef(l.Namespace, l.Name), "identity", l.Identity)
	var leading sync.Mutex
	// The process releases the lease only after the call has ended.
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
		log.Info("No longer elected")
		leading.Unlock()
	}
	return nil
}
