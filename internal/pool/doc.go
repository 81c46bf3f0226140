// Package pool is the engine: volumes and snapshots on one LVM2 volume group.
// It decides which extents and layers exist. Package lvm2 writes that decision to
// the disks, and package dm brings device-mapper in line with it.
//
// The engine commits a change to the metadata first, and then carries it out in
// the kernel. So after an interruption at any point, recovery only rolls forward:
// it brings the kernel in line with the metadata.
//
// # The owners
//
// Pool is made of owners. Each owner has its own locks, and says what they guard.
//
//	setting     what the pool was opened with                      pool.go config.go modules.go
//	group       the metadata, its only writer, the keys of what    group.go commit.go change.go lease.go
//	            is worked on, the work in progress                 operation.go guard.go refresh.go offline.go
//	mapper      device-mapper, in line with a view                 mapper.go wanted.go symbolic.go kernel.go plan*.go
//	                                                               converge.go converge_failed.go carry.go demands.go window.go
//	                                                               devices.go chain.go mapped.go removal.go freeze.go
//	                                                               probe.go thaw.go mounts.go timing.go fork_recover.go loss.go header.go
//	                                                               exact.go flat*.go depth.go disks.go on_disks.go silent.go
//	storeGuard  stores that the kernel fills                       monitor.go filling.go growth.go brake.go
//	wiper       trash, unknown extents, the store's unused end     wipe.go room.go scrub.go clean.go trim.go
//	hydrator    forks, until they are plain volumes                hydrate*.go pace.go
//	folder      layers that nobody needs for themselves            folder.go fold*.go
//	copies      volumes that are copied from another pool          copy*.go loan.go jobs.go
//	caretaker   what is left to do for volumes                     caretaker.go
//	outside     devices that only seem to be the pool's            outside.go strangers.go extend.go matches.go candidates.go
//	facts       what only this process knows of the kernel; all    facts.go
//	            owners use it
//
// Package catalog decodes one generation of the metadata (a view) and has the edits of
// it. A view never changes after it is published, and needs no lock; view.go adds to both
// what the engine needs. The files that belong to no owner:
//
//	views       and edits, as the engine has them: view.go
//	edits       the room for them, and what they write beside the metadata: space.go kinds.go
//	            text.go store.go
//	operations  volume.go snapshot.go cut.go prepare.go fork.go reader.go scratch.go expand.go
//	            activate.go recovery.go mode.go, with types.go and errors.go
//	opening     a pool, and its repair: setup.go loop.go optional.go repair*.go set.go
//	commands    which may run beside a driver: adopt.go import.go rollback.go static.go deed.go
//	looking     which changes nothing: inspect*.go health.go concerns.go usage.go
//
// docs/design explains how this works. Begin with docs/design/convergence.md.
//
// # The life of a change
//
//  1. An operation takes its keys (run) and registers as running work. It continues
//     even if its caller leaves. It calls group.do with a change.
//  2. The committer takes LVM2's lock on the group and reads the metadata. It applies
//     the edit of every waiting change to a copy, and writes one commit for all of
//     them. If an edit fails, only that change is dropped.
//  3. Each change's act runs in its own goroutine, and brings the kernel in line with
//     the view after the commit. The committer holds the lock until all acts have
//     ended. It does not wait for an act that takes longer than lateLimit: it releases
//     the lock, the act's lease ends as soon as somebody else changes the metadata, and
//     the caretaker looks at all volumes after the act has returned.
//  4. The group calls settled with the views before and after. The monitor looks
//     again, the wiper wipes new trash, callers that wait for room retry, and the
//     hydrator begins with new forks. settled waits for nothing.
//  5. The operation gets the error of the edit or the act. A failure in the kernel is
//     recorded as unsettled in facts, and the caretaker retries.
//
// An edit or an act must never call do: it would wait for itself. There are three ways
// to record a loss. The convergence in an act records a loss that it finds by an urgent
// change (record), and continues. If an edit finds a loss (unrecordedLoss), the loss is
// recorded and the edit is made again. If an act returns a loss, the edit is already on
// the disk, and is not made again.
//
// # Locks
//
// The table lists the locks in the order in which they are taken. The holder of a lock
// may wait for the locks below it, and for none above it.
//
//	lock                          held for                           by
//	flock RunDir/GROUP.lock       the pool being open                the process (Set, Open)
//	copies.turn                   a copy from another pool           copy jobs
//	key "room"                    waiting for room that stores       one cut at a time, for roomLimit
//	                              give back                          and its cut
//	key "name NAME"               finding and making the volume or   operations; a copy takes it before
//	                              snapshot of that name              keys of the source's pool
//	key "hydration", "urgent …"   copying a window, or cleaning a    hydrator, cleaner
//	                              piece
//	key "flat store of LAYER"     making a flat store                operations that need it
//	Pool.merges                   writing it                         the same; they take no other lock
//	key "logical volume ROOT"     work on a volume and all volumes   operations, caretaker, hydrator,
//	                              that come from it                  folder, repair
//	key "logical volume LV"       the same for a volume that is      the same, after its root's key
//	                              becoming independent
//	LVM2's flock on the group     commits and their acts             committer; acts run under it
//	key "store ID"                a change of the store's device     acts; brake, without LVM2's lock
//	mapper.trash                  making and removing devices of     acts of wiper, sweep
//	                              trash
//	frozen.mu                     resuming a volume: a call to the   the cut of the volume, its timer
//	                              kernel
//
// A mutex below is held only for a look-up. No other lock is taken while it is held,
// except group.mu, which may be taken under hydrator.mu, scrubs.mu and copies.mu.
//
//	keyed.mu      the holder of each key, and who waits for it
//	facts.mu      all facts
//	hydrator.mu   jobs, stopped volumes, windows
//	scrubs.mu     jobs            copies.mu    jobs
//	wiper.mu      next, failed, failures    caretaker.mu busy, logged
//	outside.mu    leftOut, strangers
//	deviceLog.mu  what was logged about devices, for all attempts to open a pool
//	timings.mu    a histogram            questions.mu  the open questions to the kernel
//	member.mu     a Set's pool; held as long as closing the pool takes
//	group.mu      closed; no work begins once it is set
//
// These fields are atomic and need no lock: current, broken, changed and textMost of
// group, fastest, and a job's progress. Only the committer uses group.vgStore and
// group.maps.
//
// hydrator.stop waits for the end of a hydration, which takes its volume's key. So its
// caller must hold none of these keys. A freeze that hangs keeps its volume's key until
// the freeze returns (stuckFreeze).
//
// # Goroutines
//
//	goroutine                          ends                       is waited for by
//	Set: one per member (member.run)   the pool is open, or       Set.Close, for closingWait
//	                                   the Set closed
//	Set: loans                         the Set is closed          nobody
//	openHeld: start                    the attempt has ended      Open, for leaveLimit; then another
//	                                                              goroutine closes what it opened
//	group: the committer               the pool is closed         Close
//	committer: one per act             with the act               the committer, for lateLimit; when
//	                                                              closing, for closingWait
//	loops of wiper, cleaner, monitor,  the pool is closed         Close (work)
//	caretaker, refresh, extender,
//	folder, strangers
//	strangers: a scan                  the devices have answered  the loop, until the pool is closed
//	monitor: one per store asked       the kernel has answered    nobody
//	statusSoon: one per question,      the kernel has answered    its callers, for answerLimit; else nobody
//	questionsMost at most
//	run: one per operation             with the operation         its caller, until it leaves; Close (work)
//	apart: suspend, freeze or thaw     the kernel has answered    its operation, for a limited time;
//	                                                              Close (work)
//	syncBefore: write-back of a file   the kernel has answered    its caller, until it leaves; else nobody
//	system
//	background: growth, brake, hold,   with their work            Close (work)
//	attend, repair, thawProbed
//	repairFamilies: one                the repairs have ended     repair, for repairPatience
//	hydrator: one per fork             it is no longer a fork     stop; Close (work)
//	scrubs, copies: one per job        with the job               its callers; Close (work)
//	fold and copy: writers             the piece is written       the fold, the copy
//	timers: frozenLimit, stallLimit    immediately                nobody: they only resume a volume, or
//	                                                              pass a turn
//	Close: one                         all work has ended         Close, for closeLimit
package pool
