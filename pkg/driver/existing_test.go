package driver

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/csi-dmsnap/csi-dmsnap/internal/roleapi"
)

// TestReserve_notNow: a name cannot be reserved while another call changes it, or while
// a pool is not open that may contain it.
func TestReserve_notNow(t *testing.T) {
	d, err := New(Options{NodeName: "n1", KubeletDir: t.TempDir(), Pools: closedPools(t)})
	if err != nil {
		t.Fatal(err)
	}
	end, err := d.running.begin("CreateVolume", volumeName("busy"))
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	reply, err := d.Reserve(t.Context(), &roleapi.ReserveRequest{Names: []*roleapi.WantedName{
		{Name: "busy", Reservation: "a/1", Pool: "fast"}, {Name: "free", Reservation: "a/2", Pool: "fast"}, {Name: "free", Reservation: "a/3"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []codes.Code{codes.Aborted, codes.Unavailable, codes.Unavailable} {
		if a := reply.GetAnswers()[i]; codes.Code(a.GetCode()) != want || a.GetMessage() == "" {
			t.Errorf("answer %d: %v, want %v", i, a, want)
		}
	}
	if end, err := d.running.begin("CreateVolume", volumeName("free")); err != nil {
		t.Errorf("a name stays busy: %v", err)
	} else {
		end()
	}
}
