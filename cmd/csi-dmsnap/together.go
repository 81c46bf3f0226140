package main

import (
	"context"
	"errors"
	"sync"
)

// together runs the parts of a process. When ctx ends, or a part returns, it
// cancels the others. It waits for all parts and returns their errors.
func together(ctx context.Context, parts ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(parts))
	var running sync.WaitGroup
	for i, part := range parts {
		running.Go(func() {
			defer cancel()
			errs[i] = part(ctx)
		})
	}
	running.Wait()
	return errors.Join(errs...)
}
