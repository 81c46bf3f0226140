// Package roleapi is what the controller role and the node role say to each
// other beside CSI. It is generated from the .proto files by "make generate".
package roleapi
