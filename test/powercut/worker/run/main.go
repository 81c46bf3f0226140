// Command run is the worker as a program of its own.
package main

import "github.com/csi-dmsnap/csi-dmsnap/test/powercut/worker"

func main() { worker.Main() }
