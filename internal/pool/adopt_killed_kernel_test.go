//go:build kernel

package pool

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/csi-dmsnap/csi-dmsnap/pkg/size"
)

// adopter is the volume group from which a process of TestAdopt_killed adopts.
const adopter = "DMSNAP_TEST_ADOPT"

// TestAdopt_killed kills the adopting process at any moment, and then removes all
// devices, like a power cut, or leaves them. Afterwards the volume is adopted, or
// can be, and no snapshot has lost a byte.
func TestAdopt_killed(t *testing.T) {
	ctx := context.Background()
	adoption := Adoption{LV: "base", Mode: Block}
	if vg := os.Getenv(adopter); vg != "" {
		ok(t, Adopt(ctx, Config{Name: "pool", VolumeGroup: vg, FirstStore: 16 * size.MiB}, Options{}, adoption))
		return
	}
	p := lvmGroup(t)
	vg := p.config.VolumeGroup
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const rounds, most = 5, 25 // at most most rounds, until one process was killed in time
	takes, adopted, killed := time.Duration(0), 0, 0
	for round := 0; round < rounds || killed == 0 && round < most; round++ {
		lvm(t, "lvcreate", "-qq", "-y", "-Wn", "-L16m", "-n", "base", vg)
		h := &past{t: t, p: p, lv: "base", path: p.dm.Node(vg + "-base"), content: make([]byte, 16*size.MiB), want: map[string][]byte{}, random: r}
		writeAll(t, h.path, h.content)
		for i := range 2 {
			h.write(40)
			name := fmt.Sprintf("s%d", i)
			lvm(t, "lvcreate", "-qq", "-y", "-s", "-L", "12m", "-n", name, vg+"/base")
			h.want[name] = bytes.Clone(h.content)
		}
		h.write(40)
		ok(t, p.Close())
		child := exec.Command("/proc/self/exe", "-test.run=^TestAdopt_killed$")
		child.Env = append(os.Environ(), adopter+"="+vg)
		began := time.Now()
		ok(t, child.Start())
		if round > 0 { // the first round measures how long an adoption takes
			time.Sleep(takes/4 + time.Duration(r.Int64N(int64(takes*3/4)))) // before this time the process only starts
			ok(t, child.Process.Kill())
		}
		dead := child.Wait() != nil
		if round == 0 {
			takes = time.Since(began)
		} else if !dead { // the machine was slower in the first round
			takes = takes * 2 / 3
		}
		if reboot := r.IntN(2) == 0; reboot {
			lvm(t, "vgchange", "-qq", "-an", vg)
			h.path = ""
		}
		p = openPool(t, p.config)
		h.p = p
		if dead {
			killed++
			if v := must(p.Volume(ctx, "base"))(t); !v.Foreign {
				adopted++
			}
		}
		ok(t, Adopt(ctx, p.config, Options{}, adoption))
		ok(t, p.refresh(ctx))
		follow(t, p)
		h.check("adopted")
		h.activate()
		h.write(40)
		h.cut("n", 16*size.KiB)
		h.write(40)
		h.check("cut")
		h.remove("s0", "n", "s1")
		h.deactivate()
		ok(t, p.DeleteVolume(ctx, "base"))
		waitIdle(t, p)
		vgck(t, vg)
	}
	t.Logf("adopting takes %v; of %d killed %d had adopted", takes, killed, adopted)
	if killed == 0 {
		t.Error("none was killed in time")
	}
}
