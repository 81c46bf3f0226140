package lvm2

import "hash/crc32"

// checksum is LVM2's: the common reflected CRC-32, but begun with its own value
// and not inverted at the end.
func checksum(parts ...[]byte) uint32 {
	crc := ^uint32(0xf597a6cf)
	for _, b := range parts {
		crc = crc32.Update(crc, crc32.IEEETable, b)
	}
	return ^crc
}
