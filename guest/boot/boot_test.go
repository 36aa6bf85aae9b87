package boot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/erofsvm/erofsvm/guest/layout"
	"github.com/erofsvm/erofsvm/test/need"
)

// asInit names what the test binary does when it is started as PID 1 of a new
// pid namespace.
const asInit = "EROFSVM_TEST_AS_INIT"

func init() {
	if os.Getenv(asInit) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(asInit) != "" {
		if err := reapAsInit(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// reapAsInit runs as PID 1: it makes children of its own, whose exit statuses
// it must get, while orphans fall to it, which must not stay.
func reapAsInit() error {
	done := make(chan struct{})
	result := make(chan error, 1)
	go func() {
		defer close(done)
		result <- childrenAndOrphans()
	}()
	ReapOrphans(done)
	return <-result
}

func childrenAndOrphans() error {
	errs := make(chan error, 40)
	var all sync.WaitGroup
	for i := range cap(errs) {
		all.Go(func() {
			// As process.start does it: the thread that makes a child keeps it.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			// The shell leaves a grandchild behind, an orphan from then on.
			cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("sleep 0.0%d & exit %d", i%10, i))
			err := cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != i {
				errs <- fmt.Errorf("child %d: exit status %d, %v", i, code, err)
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		return err
	}
	// Every orphan ends and is reaped; that has no event of its own to wait for.
	deadline := time.Now().Add(10 * time.Second)
	for {
		left, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return err
		}
		if len(left) == 1 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes are left: %v", left)
		}
		runtime.Gosched()
	}
}

func TestOrphansAreReapedAndChildrenAreNot(t *testing.T) {
	need.Root(t, "to make a pid namespace")
	cmd := exec.Command("/bin/sh", "-c", "mount -t proc proc /proc && exec "+os.Args[0])
	cmd.Env = append(os.Environ(), asInit+"=1")
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Unshareflags: unix.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestModuleListIsReadInOrder(t *testing.T) {
	modules, err := parseModules(strings.NewReader("boot vsock.ko\n\nlate  erofs.ko\nscsi x-y_z.ko\nverity dm-mod.ko\n"))
	want := []Module{{layout.StageBoot, "vsock.ko"}, {layout.StageLate, "erofs.ko"}, {layout.StageSCSI, "x-y_z.ko"}, {layout.StageVerity, "dm-mod.ko"}}
	if err != nil || !reflect.DeepEqual(modules, want) {
		t.Errorf("%v, %v", modules, err)
	}
	for _, text := range []string{"boot\n", "boot a b\n", "early a.ko\n", "boot ../a.ko\n", "boot /a.ko\n", strings.Repeat("boot a.ko\n", maxModules+1)} {
		if _, err := parseModules(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), "line") {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

func TestImageWithoutListHasNoModules(t *testing.T) {
	modules, err := ReadModules(filepath.Join(t.TempDir(), "list"))
	if err != nil || len(modules) != 0 {
		t.Errorf("%v, %v", modules, err)
	}
}

func TestEveryModuleOfTheStageIsTried(t *testing.T) {
	err := LoadModules(t.TempDir(), layout.StageBoot, []Module{{layout.StageBoot, "a.ko"}, {layout.StageLate, "b.ko"}, {layout.StageBoot, "c.ko"}})
	if text := fmt.Sprint(err); !strings.Contains(text, "a.ko") || strings.Contains(text, "b.ko") || !strings.Contains(text, "c.ko") {
		t.Errorf("%v", err)
	}
}

func FuzzModuleList(f *testing.F) {
	f.Add("boot vsock.ko\nlate erofs.ko\n")
	f.Fuzz(func(t *testing.T, text string) {
		modules, err := parseModules(strings.NewReader(text))
		for _, m := range modules {
			if err == nil && strings.Contains(m.File, "/") {
				t.Errorf("%q", m.File)
			}
		}
	})
}
