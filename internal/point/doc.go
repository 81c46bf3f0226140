// Package point counts the calls by which the program changes anything outside of
// itself, and can end the program at any of these calls. A point is each ioctl of
// device-mapper that changes anything, and each write and flush of LVM2's metadata,
// of a new store, of zeroes and of copies. An interruption between two neighbouring
// points leaves the same state as an interruption at the first of them.
//
// Only test/points is built with the build tag points. Without the tag, On is false,
// and callers check On first, so that the compiler removes the calls.
package point
