// Package trust lets the controller role and the node role know each other:
// every connection between them is mutual TLS, in which a certificate says who
// its holder is, by one URI.
//
// The controllers share the key of a certificate authority, in a Secret that
// only they can read. Each makes its own client certificate with it. A node
// has its certificate from the elected controller, which calls the node, is
// recognised by the CA certificates mounted into the node's pod, and has
// Kubernetes confirm the node's service account token before it signs.
//
// Keys of nodes and controllers exist in memory only, and certificates are
// replaced without closing connections.
package trust
