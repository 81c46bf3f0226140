package lvm2

import "strings"

// Users returns the names of the logical volumes whose sections mention the logical
// volume with the given name, in file order: links of its snapshots, logical volumes
// of which it is a part, a thin volume with it as the external origin. Users works
// for segments of any type. It also returns a logical volume with a tag that equals
// the name.
func (vg *VG) Users(name string) []string {
	var users []string
	for _, lv := range vg.LVs {
		if lv.Name != name && strings.Contains(lv.text, quote(name)) {
			users = append(users, lv.Name)
		}
	}
	return users
}
