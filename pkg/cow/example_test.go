package cow_test

import (
	"context"
	"fmt"
	"iter"
	"log"
	"os"
	"path/filepath"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/cow"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// exceptions returns a sequence of exceptions.
func exceptions(list ...cow.Exception) iter.Seq2[cow.Exception, error] {
	return func(yield func(cow.Exception, error) bool) {
		for _, e := range list {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// newStore writes a store with one exception to a file in dir, as the kernel writes
// it to a COW device: a chunk of the origin was overwritten.
func newStore(dir string) (path string, err error) {
	path = filepath.Join(dir, "store")
	const chunk = 4 * size.KiB
	layout := cow.NewFlat(chunk, 1)
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	// Store counts from the chunk after the metadata.
	if _, err := layout.Write(f, exceptions(cow.Exception{Origin: 7, Store: 0})); err != nil {
		return "", err
	}
	return path, f.Truncate(int64(cow.UsedSectors(chunk, 1).Bytes()))
}

// Read which chunks of its origin a snapshot has saved. The path is usually a block
// device, and the kernel may be using it.
func ExampleOpen() {
	dir, err := os.MkdirTemp("", "cow")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path, err := newStore(dir)
	if err != nil {
		log.Fatal(err)
	}

	store, err := cow.Open(path)
	if err != nil {
		log.Print(err)
		return
	}
	defer store.Close()
	header, err := store.Header()
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println("chunks of", header.Chunk)
	for e, err := range store.Exceptions(context.Background()) {
		if err != nil {
			log.Print(err)
			return
		}
		fmt.Printf("chunk %d of the origin is in chunk %d of the store\n", e.Origin, e.Store)
	}
	used, err := store.Used(context.Background())
	fmt.Println(used.Bytes(), "used", err)
	// Output:
	// chunks of 4KiB
	// chunk 7 of the origin is in chunk 2 of the store
	// 12KiB used <nil>
}

// Write the metadata of a store with one exception. Its data chunks follow the
// metadata.
func ExampleFlat_Write() {
	f, err := os.CreateTemp("", "flat")
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()

	layout := cow.NewFlat(4*size.KiB, 1)
	n, err := layout.Write(f, exceptions(cow.Exception{Origin: 7, Store: 0}))
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Printf("%d exception, %v of metadata, data from sector %d\n", n, layout.Metadata(), layout.Data())
	// Output:
	// 1 exception, 8KiB of metadata, data from sector 16
}

// Read the oldest of three snapshots through one flat store. Chunk 7 was overwritten
// after each of the two older snapshots; the oldest layer has the right content.
func ExampleMerge() {
	read := func(list ...cow.Exception) func(context.Context) iter.Seq2[cow.Exception, error] {
		return func(context.Context) iter.Seq2[cow.Exception, error] { return exceptions(list...) }
	}
	layers := []cow.Layer{
		{Chunk: 4 * size.KiB, Length: 1 << 20, Used: 4 * 8, Read: read(cow.Exception{Origin: 7, Store: 2}, cow.Exception{Origin: 3, Store: 3})},
		{Chunk: 4 * size.KiB, Length: 1 << 20, Used: 4 * 8, Read: read(cow.Exception{Origin: 7, Store: 2}, cow.Exception{Origin: 8, Store: 3})},
	}
	f := cow.NewFlat(cow.Smallest(layers), cow.MostMerged(layers))
	for e, err := range cow.Merge(context.Background(), layers) {
		if err != nil {
			log.Print(err)
			return
		}
		fmt.Printf("chunk %d is at sector %d\n", e.Origin, f.Data()+size.Sectors(e.Store)*f.Chunk.Sectors())
	}
	// Output:
	// chunk 3 is at sector 40
	// chunk 7 is at sector 32
	// chunk 8 is at sector 72
}

// A set of chunks, as runs of adjacent chunks.
func ExampleChunks() {
	changed := cow.NewChunks(4*size.KiB, size.MiB)
	for _, n := range []uint64{8, 3, 9, 10} {
		changed.Add(n)
	}
	for first, n := range changed.Runs(64) {
		fmt.Printf("%d chunks from chunk %d\n", n, first)
	}
	// Output:
	// 1 chunks from chunk 3
	// 3 chunks from chunk 8
}

// The length of a store that cannot overflow, and of its used part after 1000
// overwritten chunks.
func ExampleLargestUseful() {
	const chunk = 64 * size.KiB
	fmt.Println(cow.LargestUseful(10*size.GiB, chunk))
	fmt.Println(cow.UsedSectors(chunk, 1000).Bytes())
	// Output:
	// 10.0GiB
	// 62.6MiB
}
