package contender

import (
	"reflect"
	"testing"
	"time"
)

// TestWindows_fromLog: the windows and their parts are read from the driver's log.
func TestWindows_fromLog(t *testing.T) {
	const log = `I1122 16:34:05.1 717 window.go:61] "Volume was held" pool="ours" volume="pvc-1" cut=true for="2.5ms" parts="[suspend 1.5ms resume-volume 950.5µs]" err=null
I1122 16:34:05.2 717 window.go:61] "Volume was held" pool="ours" volume="pvc-1" cut=false for="9ms" parts="[suspend 9ms]" err=null
I1122 16:34:05.3 717 interceptor.go:65] "Done" took="20ms"
I1122 16:34:05.4 717 window.go:61] "Volume was held" pool="ours" volume="pvc-1" cut=true for="1ms" parts="[suspend 800µs resume-snapshot 200µs]"
`
	got, err := windows([]byte(log))
	want := []Window{
		{2500 * time.Microsecond, []Part{{"suspend", 1500 * time.Microsecond}, {"resume-volume", 950500}}},
		{time.Millisecond, []Part{{"suspend", 800 * time.Microsecond}, {"resume-snapshot", 200 * time.Microsecond}}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}
