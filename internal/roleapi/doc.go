// Package roleapi is the API between the controller role and the node role beside CSI.
// "make generate" generates it from the .proto files.
package roleapi

// EpochKey is in the header of a stream of reports, with the epoch of the node's
// process.
const EpochKey = "dmsnap-epoch"
