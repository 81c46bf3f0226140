// Package pool is the engine: volumes and snapshots on one LVM2 volume group.
// It decides which extents and layers there are (package lvm2 writes that to
// the disks) and keeps device-mapper in line with it (package dm).
//
// A change is committed to the metadata first and then carried out in the
// kernel, so that an interruption at any point is repaired by bringing the
// kernel in line with the metadata: recovery only rolls forward.
//
// # The owners
//
// Pool is made of its owners. Each has its own locks, and a line on what they guard.
//
//	setting     what the pool was opened with                      pool.go config.go modules.go
//	group       the metadata, its one writer, the keys of what is  group.go commit.go change.go lease.go
//	            worked on, the work under way                      operation.go guard.go refresh.go offline.go
//	mapper      device-mapper, as a view says                      mapper.go wanted.go symbolic.go kernel.go plan*.go
//	                                                               converge.go converge_failed.go carry.go demands.go window.go
//	                                                               devices.go chain.go mapped.go removal.go freeze.go
//	                                                               probe.go thaw.go mounts.go timing.go fork_recover.go loss.go
//	                                                               exact.go flat*.go depth.go disks.go on_disks.go
//	storeGuard  stores that the kernel fills                       monitor.go filling.go growth.go brake.go
//	wiper       trash, unknown extents, the store's unused end     wipe.go room.go scrub.go clean.go trim.go
//	hydrator    forks, until they are plain volumes                hydrate*.go pace.go
//	folder      layers that nobody needs                           folder.go fold*.go
//	copies      volumes that are copied from another pool          copy*.go loan.go jobs.go
//	caretaker   what is left to do for volumes                     caretaker.go
//	outside     devices beside the pool                            outside.go strangers.go extend.go matches.go candidates.go
//	facts       what only this process knows of the kernel; all    facts.go
//	            owners have it
//
// A view is what one generation of the metadata means: view.go roles.go decode.go tags.go
// history.go kinds.go logical.go extents.go ranges.go spans.go names.go. It never changes
// once it is published, and needs no lock. The operations are in volume.go,
// snapshot.go, cut.go, fork.go, reader.go, scratch.go, expand.go, activate.go,
// recovery.go, mode.go, with types.go and errors.go; what an edit allocates and
// records in space.go, store.go, text.go, asked.go, deed.go, records.go; what opens and repairs a
// pool in setup.go, loop.go, optional.go, repair*.go and set.go; the commands that work
// beside a driver in adopt.go, import.go, rollback.go, static.go; what looks and changes
// nothing in inspect*.go, health.go, concerns.go, usage.go.
//
// docs/design tells how all of this works: begin with docs/design/convergence.md.
//
// # The life of a change
//
//  1. An operation takes its keys (run), registers as running work and goes on even
//     if its caller leaves. It calls group.do with a change.
//  2. The committer takes LVM2's lock on the group, reads the metadata, lets the edit
//     of every change that waits work on a copy, and writes one commit for all. An
//     edit that fails is dropped, the others stay.
//  3. Each change's act runs in a goroutine of its own and brings the kernel in line
//     with the view after the commit. The lock is held until all acts have ended. One
//     that takes longer than lateLimit is left behind: the lock is given back, its
//     lease ends as soon as somebody else changes the metadata, and all volumes are
//     looked after once it returns.
//  4. The group tells settled, with the views before and after. The monitor looks
//     again, the wiper wipes new trash, who waits for room tries again, the hydrator
//     begins with new forks. settled waits for nothing.
//  5. The operation gets the error of edit or act. What failed in the kernel is noted
//     as unsettled in facts, and the caretaker tries it again.
//
// An edit and an act never call do: they would wait for themselves. But the convergence
// in an act records a loss that it finds (record), by an urgent change, and goes on; after
// an edit that finds one (unrecordedLoss) the loss is recorded and the edit made again; one
// whose act finds it is on the disk and is not.
//
// # Locks
//
// In the order in which they are taken. Who has one may wait for those below it,
// and for none above it.
//
//	lock                          held for                           by
//	flock RunDir/GROUP.lock       the pool being open                the process (Set, Open)
//	copies.turn                   a copy from another pool           copy jobs
//	key "room"                    waiting for room that stores       the one cut that waits, for
//	                              give back                          roomLimit and its cut
//	key "name NAME"               making and finding what has the    operations; that of a copy before
//	                              name                               the keys of the pool it comes from
//	key "hydration", "urgent …"   a window, or a piece that is       hydrator, cleaner
//	                              cleaned
//	key "flat store of LAYER"     making a flat store                who needs one
//	Pool.merges                   writing it                         the same; nothing is taken meanwhile
//	key "logical volume ROOT"     work on a volume and all that      operations, caretaker, hydrator,
//	                              comes from it                      folder, repair
//	key "logical volume LV"       the same of one that is becoming   the same, after its root's
//	                              independent
//	LVM2's flock on the group     commits and their acts             committer; acts run under it
//	key "store ID"                a change of the store's device     acts; brake, without LVM2's lock
//	mapper.trash                  making and removing devices of     acts of wiper, sweep
//	                              trash
//	frozen.mu                     letting a volume go on: a call     the cut of the volume, its timer
//	                              of the kernel's
//
// A mutex below is held for a look-up alone. No other lock is taken meanwhile, but
// for group.mu, which hydrator.mu, scrubs.mu and copies.mu may take.
//
//	keyed.mu      who has a key, and who waits for it
//	facts.mu      all facts
//	hydrator.mu   jobs, who must not be hydrated, windows
//	scrubs.mu     jobs            copies.mu    jobs
//	wiper.mu      next, failed, failures    caretaker.mu busy, told
//	outside.mu    leftOut, strangers
//	told.mu       what was logged of devices, for all attempts to open a pool
//	timings.mu    a histogram
//	member.mu     a Set's pool; while it is closed for as long as that takes
//	group.mu      closed, and that no work begins after it
//
// Without a lock: current, broken, changed and textMost of group, fastest, what a job
// tells of its progress (atomic). group.store and group.maps are the committer's.
//
// hydrator.stop waits for the end of a hydration, which takes its volume's key: who
// calls it has none of these keys. What hangs in a freeze keeps its volume's key until it
// returns (stuckFreeze).
//
// # Goroutines
//
//	goroutine                          ends                       who waits for it
//	Set: one a member (member.run)     the pool is open, or       Set.Close, for closingWait
//	                                   the Set closed
//	Set: loans                         the Set is closed          nobody
//	openHeld: begins                   the pool is open, or not   Open, for leaveLimit; then another
//	                                                              goroutine closes what it opened
//	group: the committer               the pool is closed         Close
//	committer: one an act              with the act               the committer, for lateLimit; when
//	                                                              closing for closingWait
//	loops of wiper, cleaner, monitor,  the pool is closed         Close (work)
//	caretaker, refresh, extender,
//	folder, strangers
//	strangers: a scan                  the devices have answered  the loop, until the pool is closed
//	run: one an operation              with the operation         its caller, until it leaves; Close (work)
//	apart: suspend, freeze or thaw     the kernel has answered    its operation, for some time; Close (work)
//	syncBefore: write-back of a file   the kernel has answered    its caller, until it leaves; else nobody
//	system
//	background: growth, brake, hold,   with what it does          Close (work)
//	attend, repair, thawProbed
//	repairFamilies: one                the repairs have ended     repair, for repairPatience
//	hydrator: one a fork               it is no fork any more     stop; Close (work)
//	scrubs, copies: one a job          with the job               its callers; Close (work)
//	fold and copy: writers             the piece is written       the fold, the copy
//	timers: frozenLimit, stallLimit    at once                    nobody: they only let go, or pass a turn
//	Close: one                         all work has ended         Close, for closeLimit
package pool
