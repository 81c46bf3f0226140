package lvm2

import "strings"

// Users returns the names of the other logical volumes whose sections name this
// one, in file order: links of its snapshots, those of which it is a part, a
// thin volume's external origin. What types of segments there are does not
// matter. A tag of that very text counts too.
func (vg *VG) Users(name string) []string {
	var users []string
	for _, lv := range vg.LVs {
		if lv.Name != name && strings.Contains(lv.text, quote(name)) {
			users = append(users, lv.Name)
		}
	}
	return users
}
