package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
)

// printTree draws a volume's history as a list, because each snapshot reads
// through the one above it, and its devices as a tree.
func printTree(w io.Writer, v pool.VolumeState) error {
	about := []string{v.Size.String(), volumeType(v), volumeState(v)}
	if v.Active {
		about = append(about, fmt.Sprintf("active, open %d", v.OpenCount))
	} else {
		about = append(about, "not active")
	}
	for _, m := range v.Mounts {
		about = append(about, "mounted at "+m)
	}
	if v.FormerOf != "" {
		about = append(about, "of "+v.FormerOf)
	}
	if v.Source != nil {
		about = append(about, fmt.Sprintf("from %s %s", v.Source.Kind, inPool(v)))
	}
	if v.Shows != "" {
		about = append(about, "shows "+v.Shows)
	}
	name := v.LV
	if v.Name != "" && v.Name != v.LV {
		name += " (" + v.Name + ")"
	}
	fmt.Fprintf(w, "%s/%s: %s\n", v.Pool, name, strings.Join(about, ", "))
	if v.Deed != nil {
		fmt.Fprintf(w, "%s at %s: %s\n", v.Deed.Reason, v.Deed.At.Format(time.RFC3339), v.Deed.What)
	}
	var rows [][]string
	for i, l := range v.Layers {
		branch := "├─ "
		if i == len(v.Layers)-1 {
			branch = "└─ "
		}
		name, notes := l.LV, ""
		if l.Name != "" && l.Name != l.LV {
			name += " (" + l.Name + ")"
		}
		if l.Active && l.State != pool.StateLive {
			notes = "  active"
		}
		for _, r := range l.Readers {
			notes += "  read through by " + r
		}
		rows = append(rows, []string{branch + name, l.State, created(l), l.Size.String(), "store " + l.Store.String(), "used " + used(l) + notes})
	}
	if err := writeTable(w, rows...); err != nil {
		return err
	}
	if len(v.Devices) > 0 {
		fmt.Fprintln(w, "\ndevices:")
		printDevices(w, v.Devices)
	}
	return nil
}

// printPlan prints the steps that bring the devices in line with the metadata.
func printPlan(w io.Writer, v pool.VolumeState) error {
	if len(v.Plan) == 0 {
		_, err := fmt.Fprintf(w, "%s/%s: nothing to do\n", v.Pool, v.LV)
		return err
	}
	for _, s := range v.Plan {
		fmt.Fprintf(w, "%-7s  %s", s.Do, s.Device)
		if s.To != "" {
			fmt.Fprintf(w, " to %s", s.To)
		}
		if s.ReadOnly {
			fmt.Fprint(w, ", read-only")
		}
		fmt.Fprintln(w)
		for _, line := range s.Table {
			fmt.Fprintf(w, "         %s\n", line)
		}
	}
	return nil
}

// printDevices draws each device above the devices that it uses. A device that
// several devices use is described only once.
func printDevices(w io.Writer, devices []pool.DeviceState) {
	byNumber, used := map[string]*pool.DeviceState{}, map[string]bool{}
	for i, d := range devices {
		byNumber[d.Number] = &devices[i]
		for _, u := range d.Uses {
			used[u] = true
		}
	}
	seen := map[string]bool{}
	var draw func(d *pool.DeviceState, first, rest string)
	draw = func(d *pool.DeviceState, first, rest string) {
		if seen[d.Number] {
			fmt.Fprintf(w, "%s%s (see above)\n", first, d.Name)
			return
		}
		seen[d.Number] = true
		var below []*pool.DeviceState
		for _, u := range d.Uses {
			if b := byNumber[u]; b != nil {
				below = append(below, b)
			}
		}
		fmt.Fprintf(w, "%s%s %s%s\n", first, d.Name, d.Number, deviceNotes(d))
		stem := rest
		if len(below) > 0 {
			stem += "│  "
		} else {
			stem += "   "
		}
		for _, line := range d.Table {
			fmt.Fprintf(w, "%s%s\n", stem, line)
		}
		for i, b := range below {
			if i == len(below)-1 {
				draw(b, rest+"└─ ", rest+"   ")
			} else {
				draw(b, rest+"├─ ", rest+"│  ")
			}
		}
	}
	for i := range devices {
		if !used[devices[i].Number] {
			draw(&devices[i], "", "")
		}
	}
}

func deviceNotes(d *pool.DeviceState) string {
	notes := fmt.Sprintf("  open %d", d.OpenCount)
	if d.ReadOnly {
		notes += ", read-only"
	}
	if d.Suspended {
		notes += ", SUSPENDED"
	}
	if d.Status != "" {
		notes += ", status " + d.Status
	}
	return notes
}
