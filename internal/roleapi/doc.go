// Package roleapi is the API between the controller role and the node role beside CSI.
// "make generate" generates it from the .proto files.
package roleapi
