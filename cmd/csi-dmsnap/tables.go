package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/csi-dmsnap/csi-dmsnap/internal/pool"
	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// writeTable prints rows in columns. The first row is the header.
func writeTable(w io.Writer, rows ...[]string) error {
	const gap = 2
	t := tabwriter.NewWriter(w, 0, 0, gap, ' ', 0)
	for _, row := range rows {
		// A tab after the last cell would pad the line.
		if _, err := fmt.Fprintln(t, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

// orDash returns "-" for an empty cell: awk counts columns.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// unclean returns how much free space may hold an earlier owner's bytes, and when
// the driver wipes it.
func unclean(i *pool.Inspection) string {
	if i.Unwiped == 0 {
		return i.Unwiped.String()
	}
	return fmt.Sprintf("%v(%s)", i.Unwiped, i.Clean)
}

func printPools(w io.Writer, found []*pool.Inspection) error {
	rows := [][]string{{"POOL", "GROUP", "SIZE", "FREE", "ROOM", "VOLUMES", "SNAPSHOTS", "TO-WIPE", "UNCLEAN", "FOREIGN", "METADATA", "DISKS", "GROUP-ID"}}
	for _, i := range found {
		var disks []string
		for _, d := range i.Disks {
			name := d.Device
			if d.Missing {
				name = "missing:" + d.ID
			}
			disks = append(disks, name)
		}
		rows = append(rows, []string{
			i.Pool, i.VolumeGroup, i.Total.String(), i.Free.String(), i.Room.String(), i.Blocks.String(), i.Stores.String(),
			i.Trash.String(), unclean(i), i.Foreign.String(), percent(i.Metadata), orDash(strings.Join(disks, ",")), i.ID,
		})
	}
	left := [][]string{{"POOL", "LEFT-OUT", "WHY"}}
	for _, i := range found {
		for _, l := range i.LeftOut {
			left = append(left, []string{i.Pool, l.Device, l.Why})
		}
	}
	if err := writeTable(w, rows...); err != nil || len(left) == 1 {
		return err
	}
	fmt.Fprintln(w)
	return writeTable(w, left...)
}

// percent returns how much of the metadata area is used, without the part that is
// reserved: at 100% no volume or snapshot can be created.
func percent(m pool.Metadata) string {
	if m.Size <= m.Reserved {
		return "-"
	}
	return fmt.Sprintf("%d%%", 100*m.Used/(m.Size-m.Reserved))
}

func printVolumes(w io.Writer, all []pool.VolumeState) error {
	rows := [][]string{{"POOL", "VOLUME", "LV", "SIZE", "TYPE", "STATE", "SNAPSHOTS", "ACTIVE", "OPEN", "SOURCE"}}
	for _, v := range all {
		source := ""
		if v.Source != nil {
			source = string(v.Source.Kind) + "/" + inPool(v)
		}
		snapshots := 0
		for _, l := range v.Layers {
			if l.Name != "" {
				snapshots++
			}
		}
		rows = append(rows, []string{
			v.Pool, orDash(v.Name), v.LV, v.Size.String(), orDash(volumeType(v)), volumeState(v), fmt.Sprint(snapshots),
			yesNo(v.Active), fmt.Sprint(v.OpenCount), orDash(source),
		})
	}
	return writeTable(w, rows...)
}

// volumeState returns a volume's state, with the progress of hydration, or the
// volume that a former one belongs to.
func volumeState(v pool.VolumeState) string {
	if v.FormerOf != "" {
		return v.State + " " + v.FormerOf
	}
	if h := v.Hydration; h != nil && h.Total > 0 {
		return fmt.Sprintf("%s %d%%", v.State, h.Done*100/h.Total)
	}
	return v.State
}

func volumeType(v pool.VolumeState) string {
	kind := string(v.Mode)
	if v.FSType != "" {
		kind = v.FSType
	}
	if v.ReadOnly {
		kind += ",ro"
	}
	if v.Transient {
		kind += ",transient"
	}
	return kind
}

// inPool returns the name of a volume's source, with the pool if it is another one.
func inPool(v pool.VolumeState) string {
	if v.SourcePool != "" {
		return v.SourcePool + "/" + v.Source.LV
	}
	return v.Source.LV
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func printSnapshots(w io.Writer, all []pool.LayerState) error {
	depth := map[string]int{}
	for _, l := range all {
		depth[l.Pool+"/"+l.Volume] = max(depth[l.Pool+"/"+l.Volume], l.Position)
	}
	rows := [][]string{{"POOL", "VOLUME", "POSITION", "SNAPSHOT", "LV", "STATE", "SIZE", "STORE", "USED", "CREATED"}}
	for _, l := range all {
		position := ""
		if l.Position > 0 {
			position = fmt.Sprintf("%d/%d", l.Position, depth[l.Pool+"/"+l.Volume])
		}
		rows = append(rows, []string{
			l.Pool, l.Volume, orDash(position), orDash(l.Name), l.LV, l.State, l.Size.String(), l.Store.String(), used(l), created(l),
		})
	}
	return writeTable(w, rows...)
}

// used returns how much of its store a layer uses, or "?" if that is not known, as
// while the layer is not active.
func used(l pool.LayerState) string {
	if l.Used == nil {
		return "?"
	}
	return fmt.Sprintf("%v(%d%%)", *l.Used, *l.Used*100/max(l.Store, size.Bytes(1)))
}

func created(l pool.LayerState) string {
	if l.Created.IsZero() {
		return "-"
	}
	return l.Created.UTC().Format("2006-01-02T15:04:05Z")
}

func printCheck(w io.Writer, results []*checked) {
	for _, v := range results {
		if v.Absent && len(v.Findings) == 0 {
			fmt.Fprint(w, absentLine(v.Pool))
		} else if n := v.unasked(); len(v.Findings) == 0 && n > 0 {
			fmt.Fprintf(w, "pool %s (volume group %s): no problems found; mounted volumes not checked: %d", v.Pool, v.VolumeGroup, n)
		} else if len(v.Findings) == 0 {
			fmt.Fprintf(w, "pool %s (volume group %s): all is well", v.Pool, v.VolumeGroup)
		} else {
			fmt.Fprintf(w, "pool %s (volume group %s): findings: %d", v.Pool, v.VolumeGroup, len(v.Findings))
		}
		why, reasons := map[string]int{}, []string{}
		for _, u := range v.Unread {
			if why[u.Why]++; why[u.Why] == 1 {
				reasons = append(reasons, u.Why)
			}
		}
		for _, r := range reasons {
			fmt.Fprintf(w, "; stores not read: %d (%s)", why[r], r)
		}
		fmt.Fprintln(w)
		for _, f := range v.Findings {
			fmt.Fprintf(w, "\n%s  %s\n  %s\n  what to do: %s\n", f.Where, f.Reason, strings.ReplaceAll(f.What, "\n", "\n  "), f.Do)
		}
	}
	for _, v := range results {
		if v.NoDriver != "" {
			fmt.Fprintf(w, "\nnot checked, because only the running driver knows: copies and wiping that fail, stores that cannot grow,\nwriters that wait, file systems (%s)\n", v.NoDriver)
			break // NoDriver is the same for all pools
		}
	}
}
