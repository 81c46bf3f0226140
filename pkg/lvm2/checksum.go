package lvm2

import "hash/crc32"

// checksum returns LVM2's checksum: the common reflected CRC-32, with another initial
// value and without the final inversion.
func checksum(parts ...[]byte) uint32 {
	crc := ^uint32(0xf597a6cf)
	for _, b := range parts {
		crc = crc32.Update(crc, crc32.IEEETable, b)
	}
	return ^crc
}
