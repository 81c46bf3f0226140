package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// runner is the program under test, built by TestMain.
var runner string

func TestMain(m *testing.M) {
	code, err := testAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func testAll(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("/var/tmp", "testkernel-test-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	runner = filepath.Join(dir, "testkernel")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", runner, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("building the runner: %w\n%s", err, out)
	}
	return m.Run(), nil
}

type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("stdout %q stderr %q exit code %d", r.stdout, r.stderr, r.code)
}

// umlCommand returns the runner's command on the User-mode Linux that
// DMSNAP_KERNEL names, else on the installed one.
func umlCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	if name := os.Getenv("DMSNAP_KERNEL"); umlKernels[name].suite != "" {
		return command(t, name, args...)
	}
	if _, err := exec.LookPath(umlBinary); err != nil {
		t.Skip("the package user-mode-linux is not installed; run hack/deps.sh")
	}
	return command(t, "uml", args...)
}

// command returns the runner's command. The test fails if the run leaves
// anything in its directory.
func command(t *testing.T, kernel string, args ...string) *exec.Cmd {
	t.Helper()
	t.Parallel()
	tmp := t.TempDir()
	t.Cleanup(func() {
		if left, _ := os.ReadDir(tmp); len(left) > 0 {
			t.Errorf("the run left %v behind", left)
		}
	})
	cmd := exec.Command(runner, args...)
	cmd.Env = append(os.Environ(), "DMSNAP_KERNEL="+kernel, "TMPDIR="+tmp)
	return cmd
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// TestGuest_view: a command in the guest has its arguments, directory and environment,
// the disks, device-mapper, lvm2 and a writable root, and its exit code comes back.
func TestGuest_view(t *testing.T) {
	// The arguments are printed between brackets, so that the test notices a
	// split one.
	cmd := umlCommand(t, "run", "--disks", "64M,96M,64G", "--", "sh", "-c", `
		printf '[%s]' "$@"; echo
		echo "$PWD|$MARK|$HOME"
		for d in $(echo $DMSNAP_TEST_DISKS | tr , ' '); do blockdev --getsize64 $d; done
		stat -c %F /dev/mapper/control
		touch /usr/written /etc/written && echo writable
		dmsetup targets | grep -c '^snapshot '
		lvs; vgck
		cat /sys/class/net/lo/operstate; wc -c
		echo to stderr >&2
		exit 7`, "name", "two words", `quote"s'and $HOME`, "", "new\nline", "*")
	dir := t.TempDir()
	cmd.Dir = dir
	cmd.Env = append(cmd.Env, "MARK=a 'b' \"c\"", "HOME=/root")
	got := finish(t, cmd)
	want := result{
		stdout: "[two words][quote\"s'and $HOME][][new\nline][*]\n" + dir + "|a 'b' \"c\"|/root\n" +
			"67108864\n100663296\n68719476736\ncharacter special file\nwritable\n1\nunknown\n0\n",
		stderr: "to stderr\n",
		code:   7,
	}
	if got != want {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	for _, f := range []string{"/usr/written", "/etc/written"} {
		if _, err := os.Stat(f); err == nil {
			t.Errorf("%s has reached the host", f)
		}
	}
}

// TestGuest_outputAndInput: input and both outputs pass unchanged, with every byte
// value.
func TestGuest_outputAndInput(t *testing.T) {
	data := make([]byte, 256<<10)
	for i := range data {
		data[i] = byte(i * i >> 8) // all byte values, also those that a terminal would change
	}
	cmd := umlCommand(t, "run", "-i", "--", "sh", "-c", "cat > /tmp/in; for i in 1 2 3 4 5 6 7 8; do tee /dev/stderr < /tmp/in; done")
	cmd.Stdin = bytes.NewReader(data)
	got := finish(t, cmd)
	want := strings.Repeat(string(data), 8)
	if got.code != 0 || got.stdout != want || got.stderr != want {
		t.Errorf("got %[2]d and %[3]d bytes, want the same %[1]d bytes twice; exit code %[4]d", len(want), len(got.stdout), len(got.stderr), got.code)
	}
}

// TestGuest_outputOfBackgroundProcess: the runner ends with the command, even if a
// process in the background still has its output open.
func TestGuest_outputOfBackgroundProcess(t *testing.T) {
	got := finish(t, umlCommand(t, "run", "--", "sh", "-c", "(echo early; sleep 1000; echo late) & sleep 0.3; kill -TERM $$"))
	if got.code != 128+15 || got.stdout != "early\n" || !strings.Contains(got.stderr, "terminated") {
		t.Errorf("got %v, want the output until the command ended, and exit code 143", got)
	}
}

// TestGuest_sharedDirectory: the guest reads and writes files in the shared directory,
// also with a space in its path.
func TestGuest_sharedDirectory(t *testing.T) {
	share := filepath.Join(t.TempDir(), "with space")
	if err := os.Mkdir(share, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := umlCommand(t, "run", "--share", share, "sh", "-c", `cp "$DMSNAP_SHARE/in" "$DMSNAP_SHARE/out"`)
	if err := os.WriteFile(filepath.Join(share, "in"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := finish(t, cmd)
	out, err := os.ReadFile(filepath.Join(share, "out"))
	if err != nil || string(out) != "hello" || got.code != 0 {
		t.Errorf("read back %q, %v; run: %v", out, err, got)
	}
}

// TestGuest_modules: the guest has the targets of the named modules, and loads a
// module on demand.
func TestGuest_modules(t *testing.T) {
	if os.Getenv("DMSNAP_KERNEL") == umlSMP {
		t.Skip("all targets are built in")
	}
	// The zero target is not in the list: the kernel asks for its module itself.
	got := finish(t, umlCommand(t, "run", "--modules", "dm-thin-pool", "--", "sh", "-c",
		"dmsetup targets | cut -d' ' -f1 | sort | tr '\n' ' '; dmsetup create z --table '0 8 zero' && dmsetup table z"))
	want := "delay error linear mirror snapshot snapshot-merge snapshot-origin striped thin thin-pool 0 8 zero \n"
	if got.stdout != want || got.code != 0 {
		t.Errorf("got %v, want %q", got, want)
	}
}

// TestGuest_network: the guest reaches a server on the host side, in a network
// namespace with nothing else in it.
func TestGuest_network(t *testing.T) {
	if os.Getenv("DMSNAP_KERNEL") == umlSMP {
		t.Skip("this kernel has no driver for the host's tap devices")
	}
	cmd := umlCommand(t, "run", "-tap", "tap0", "--", "sh", "-c",
		"ip addr add 192.0.2.2/24 dev vec0 && ip link set vec0 up && busybox nc 192.0.2.1 7000")
	cmd.Args = append([]string{"unshare", "--net", "sh", "-c", `set -e
		ip tuntap add dev tap0 mode tap
		ip addr add 192.0.2.1/24 dev tap0
		ip link set tap0 up
		echo over the tap | busybox nc -l -p 7000 & server=$!
		"$@" || code=$?
		kill $server 2>/dev/null || true
		exit ${code-0}`, "sh", runner}, cmd.Args[1:]...)
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = unshare
	if got := finish(t, cmd); got.code != 0 || got.stdout != "over the tap\n" {
		t.Errorf("got %v", got)
	}
}

// TestRunner_failuresAreExplained: if a boot fails, the error tells the reason.
func TestRunner_failuresAreExplained(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no such command", []string{"run", "no-such-command"}, 127, "no-such-command"},
		{"not executable", []string{"run", "/etc/passwd"}, 126, "/etc/passwd"},
		{"no such module", []string{"run", "--modules", "dm-nothing", "true"}, 125, "dm_nothing"},
		{"too many disks", []string{"run", "--disks", strings.Repeat("1M,", 16) + "1M", "true"}, 125, "at most 16"},
		{"no memory", []string{"run", "--mem", "1000T", "true"}, 125, "1000TiB"},
		{"panic", []string{"run", "sh", "-c", "echo c > /proc/sysrq-trigger"}, 125, "Kernel panic"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := finish(t, umlCommand(t, c.args...))
			if got.code != c.code || !strings.Contains(got.stderr, c.want) {
				t.Errorf("exit code %d, want %d; standard error, want %q in it:\n%s", got.code, c.code, c.want, got.stderr)
			}
		})
	}
}

// TestRunner_hungGuest: a guest that hangs is ended at its time limit.
func TestRunner_hungGuest(t *testing.T) {
	cmd := umlCommand(t, "run", "--timeout", "10s", "--", "sh", "-c", `
		echo "0 2048 linear ${DMSNAP_TEST_DISKS%%,*} 0" | dmsetup create stuck
		dmsetup suspend stuck
		echo suspended
		dd if=/dev/mapper/stuck of=/dev/null count=1`)
	begin := time.Now()
	got := finish(t, cmd)
	if took := time.Since(begin); took > 60*time.Second {
		t.Errorf("took %v", took)
	}
	if got.code != exitTimeout || got.stdout != "suspended\n" {
		t.Errorf("exit code %d, output %q", got.code, got.stdout)
	}
	for _, want := range []string{"Show Blocked State", "task:dd", "time limit of 10s"} {
		if !strings.Contains(got.stderr, want) {
			t.Errorf("no %q in standard error:\n%s", want, got.stderr)
		}
	}
}

// TestRunner_powerCut: after each way of ending the runner, the next boot finds on the
// disk what was flushed.
func TestRunner_powerCut(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "a b:c.img")
			cmd := umlCommand(t, "run", "--disks", disk+":16M", "--", "sh", "-c",
				"printf mark | dd of=$DMSNAP_TEST_DISKS conv=fsync; echo written; sleep 1000")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 8)); err != nil {
				t.Error(err)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Error(err)
			}
			_ = cmd.Wait()
			again := exec.Command(runner, "run", "--disks", disk+":32M", "--", "sh", "-c",
				"dd if=$DMSNAP_TEST_DISKS bs=4 count=1 2>/dev/null; blockdev --getsize64 $DMSNAP_TEST_DISKS")
			again.Env = cmd.Env
			if got, want := finish(t, again), (result{"mark33554432\n", "", 0}); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// TestRunner_hostKernel: where the host has device-mapper, the runner uses the host's
// kernel. The test runs the runner in a guest.
func TestRunner_hostKernel(t *testing.T) {
	got := finish(t, umlCommand(t, "run", "--", "sh", "-c", `
		export DMSNAP_KERNEL=auto DMSNAP_DISKS=64M,8G TMPDIR=/run
		`+runner+` run -- sh -c '
			echo $DMSNAP_TEST_DISKS
			for d in $(echo $DMSNAP_TEST_DISKS | tr , " "); do blockdev --getsize64 $d; done
			lvs; vgck; echo err >&2; exit 9'
		echo code $?
		`+runner+` run --timeout 1s -- sh -c 'sleep 1000 & sleep 1000' 2>/dev/null
		echo code $?
		losetup -a; pgrep -x sleep; ls /run | grep dmsnap-kernel`))
	want := "/dev/loop0,/dev/loop1\n67108864\n8589934592\ncode 9\ncode 124\n"
	if got.stdout != want || got.stderr != "err\n" {
		t.Errorf("got %v, want %q", got, want)
	}
}
