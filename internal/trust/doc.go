// Package trust authenticates the controller role and the node role to each
// other. Every connection between them is mutual TLS, and each certificate names
// its holder by one URI.
//
// The controllers share the key of a certificate authority, in a Secret that only
// they can read. Each controller makes its own client certificate with that key.
// A node gets its certificate from the elected controller, which calls the node.
// The node recognises the controller by the CA certificates mounted into its pod.
// Before the controller signs, Kubernetes confirms the node's service account
// token.
//
// The keys of nodes and controllers exist only in memory. A new certificate closes
// no connection.
package trust
