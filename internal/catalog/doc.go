// Package catalog says what one generation of a volume group's metadata means to
// csi-dmsnap, and has the edits of the metadata.
//
// The package is pure: it does no I/O, calls no kernel, takes no lock and starts no
// goroutine. It knows package lvm2 and nothing of device-mapper. Package pool reads the
// metadata, commits the edits and brings the kernel's devices in line.
//
// # A view
//
// NewView decodes a group. The tags of a logical volume give it a role: it is a volume, a
// layer (the store of a snapshot), the store of a fork, a flat store, or trash. A logical
// volume without tags of ours is LVM2's own. NewView links layers and stores to their
// volumes, and finds the free extents. Tags that it does not understand make the view
// unclear, and then nothing is thrown away.
//
// A View never changes once it is published, so its readers need no lock. NewView of the group
// after an edit is the next view. It shares all that the edit did not change with the view
// before: only the volumes whose logical volumes changed, and their readers, are linked again.
// While anything in the group is strange, everything is linked again.
//
// # An edit
//
// An Edit embeds the View of a copy of the group. Its methods allocate extents, add, replace
// and remove logical volumes, and write tags. The links of its View are those from before
// the edit. If an edit fails, the caller drops all of it.
//
// An edit has one question for the kernel: which free extents does a device still map? The
// caller answers by the function Edit.Kernel.
//
// # Files
//
//	what there is   view.go link.go generation.go roles.go decode.go tags.go names.go types.go
//	                errors.go
//	histories       history.go depth.go fork.go reader.go family.go flat.go filling.go
//	extents         extents.go ranges.go spans.go kinds.go mapped.go
//	edits           edit.go records.go logical.go cut.go loss.go fold.go trim.go wipe.go
//	                hydrate.go rollback.go repair.go copy.go deed.go
//	requests        volume.go asked.go import.go static.go scrub.go
//	checks          checks.go
//
// A new tag has its key in tags.go, its field in view.go, its decoding in decode.go and its
// edit in records.go.
package catalog
