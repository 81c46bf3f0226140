// Package point counts the calls by which this program changes anything outside
// of itself, and ends the program at one of them: each ioctl of device-mapper
// that changes something, and each write and flush of LVM2's metadata, of a new
// store, of zeroes and of copies. An interruption between two neighbouring
// points leaves what one at the first of them leaves.
//
// Without the build tag points all of it is gone from the binary: On is false
// then, and whoever calls the package asks On first. Only test/points is built
// with the tag.
package point
