package main

import (
	"math"
	"strconv"
	"testing"
)

// FuzzParseConfig: a configuration is refused, or its pools are valid, have different
// names and groups, and begin with stores that no writer fills before they grow.
func FuzzParseConfig(f *testing.F) {
	f.Add("pools: [{name: a, volumeGroup: vg, devices: [/dev/sd*], create: true, chunkSize: 4Ki, firstStoreSize: 1Mi, burstRate: 3Gi}]")
	f.Add("pools:\n- name: trial\n  file: /var/x.img\n  size: 20Gi\n  extentSize: 1Mi\n  clean: never\n- name: b\n  layerReservePercent: 0\n  nodes: [worker-*]\n")
	f.Add("pools: [{name: a, volumeGroupIDs: [aaaaaa-bbbb-cccc-dddd-eeee-ffff-gggggg], hydrationSharePercent: 3}]")
	f.Fuzz(func(t *testing.T, text string) {
		configs, err := parseConfig([]byte(text))
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, c := range configs {
			if err := c.Check(); err != nil {
				t.Errorf("%q: accepted, but %v", text, err)
			}
			if seen["pool "+c.Name] || seen["group "+c.VolumeGroup] || c.VolumeGroup == "" || len(c.Groups) != len(configs) {
				t.Errorf("%q: %+v", text, configs)
			}
			seen["pool "+c.Name], seen["group "+c.VolumeGroup] = true, true
			for _, length := range []int64{int64(c.FirstStore), int64(c.StoreStep)} {
				if length != 0 && length < int64(c.LeastStore()) {
					t.Errorf("%q: a store of %d bytes", text, length)
				}
			}
		}
	})
}

// FuzzParseQuantity: a quantity is refused, or is a whole number of bytes from 1 to
// 2^63-2 that reads the same when it is written as a number.
func FuzzParseQuantity(f *testing.F) {
	for _, text := range []string{"1Gi", "1.5T", "1e3", "0.5Ki", "9223372036854775807", "-1", "1n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseQuantity(text)
		if err != nil {
			if n != 0 {
				t.Errorf("%q: %d and %v", text, n, err)
			}
			return
		}
		if n < 1 || n >= math.MaxInt64 {
			t.Errorf("%q: %d", text, n)
		}
		if again, err := parseQuantity(strconv.FormatInt(int64(n), 10)); err != nil || again != n {
			t.Errorf("%q: %d, and then %d, %v", text, n, again, err)
		}
	})
}
