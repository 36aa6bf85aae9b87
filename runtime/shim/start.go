package shim

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	// apiVersion is that of the Task service. 3 also tells containerd that one
	// shim serves a whole pod and that `start` is not for its members.
	apiVersion = 3

	// defaultSocketDir is where shims of containerd have their sockets.
	defaultSocketDir = "/run/containerd/s"

	// optionsFile keeps the runtime options of the start in the bundle, for the
	// process that serves: the Sandbox service has none in its calls.
	optionsFile = "erofsvm-options"

	// addressFile keeps the socket's path in the bundle, for delete.
	addressFile = "address"

	// ttrpcAddressEnv names containerd's ttrpc socket to a shim.
	ttrpcAddressEnv = "TTRPC_ADDRESS"

	// beganEnv tells the process that serves when `start` began, in nanoseconds since
	// 1970, for the trace of the start.
	beganEnv = "EROFSVM_START_BEGAN"

	// maxInput bounds what containerd sends on stdin, in bytes.
	maxInput = 10 << 20

	// maxSocketPath is what sun_path holds besides its final NUL.
	maxSocketPath = 107

	// listenerFD is the descriptor of the socket in the process that serves.
	listenerFD = 3
)

// start makes the socket, starts this binary again to serve it, and prints the
// address. containerd reads stdout and stderr together as the reply, up to
// their end: nothing else may be printed and no child may keep them.
func start(inv invocation, in io.Reader, out io.Writer) (err error) {
	input, err := io.ReadAll(io.LimitReader(in, maxInput))
	if err != nil {
		return fmt.Errorf("read the bootstrap parameters: %w", err)
	}
	params := bootParams(inv, input)
	listener, path, err := listen(inv, params.GetSocketDir())
	if err != nil {
		return err
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	if err := os.WriteFile(addressFile, []byte("unix://"+path), 0o600); err != nil {
		return fmt.Errorf("record the socket in the bundle: %w", err)
	}
	if err := keepOptions(params); err != nil {
		return err
	}
	reply, err := bootReply(path)
	if err != nil {
		return err
	}
	shim, err := launch(inv, params, listener)
	if err != nil {
		return err
	}
	if err = adjustOOMScore(shim.Pid); err == nil {
		_, err = out.Write(reply)
	}
	if err != nil {
		_ = shim.Kill()
		return fmt.Errorf("hand over the shim: %w", err)
	}
	return shim.Release()
}

// bootParams returns the parameters of containerd 2.3 and later, or the same
// made from flags and environment: 2.2 sends runtime options or nothing, and
// options can decode as parameters, so they only count if they name this very
// shim. Parameters that leave out where events go leave it to the environment.
func bootParams(inv invocation, input []byte) *bootstrap.BootstrapParams {
	p := &bootstrap.BootstrapParams{}
	err := proto.Unmarshal(input, p)
	if err != nil || p.GetInstanceID() != inv.id || p.GetNamespace() != inv.namespace {
		p = &bootstrap.BootstrapParams{InstanceID: inv.id, Namespace: inv.namespace, ContainerdGrpcAddress: inv.address}
	}
	if p.GetContainerdTtrpcAddress() == "" {
		p.ContainerdTtrpcAddress = os.Getenv(ttrpcAddressEnv)
	}
	return p
}

// keepOptions writes the runtime options among the parameters to the bundle, if
// there are any. containerd 2.2 has none there, and no Sandbox service that would
// need them.
func keepOptions(params *bootstrap.BootstrapParams) error {
	for _, e := range params.GetExtensions() {
		if !e.GetValue().MessageIs(&runtimeoptions.Options{}) {
			continue
		}
		data, err := proto.Marshal(e.GetValue())
		if err == nil {
			err = os.WriteFile(optionsFile, data, 0o600)
		}
		if err != nil {
			return fmt.Errorf("keep the runtime options: %w", err)
		}
		return nil
	}
	return nil
}

// readOptions returns what keepOptions has kept in a bundle, nil for nothing.
func readOptions(bundle string) (*anypb.Any, error) {
	data, err := os.ReadFile(filepath.Join(bundle, optionsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	packed := &anypb.Any{}
	if err == nil {
		err = proto.Unmarshal(data, packed)
	}
	if err != nil {
		return nil, fmt.Errorf("runtime options: %w", err)
	}
	return packed, nil
}

// listen makes the shim's socket. A socket that is left from a shim that died
// is replaced; one that is served is not.
func listen(inv invocation, dir string) (*net.UnixListener, string, error) {
	if dir == "" {
		dir = defaultSocketDir
	}
	sum := sha256.Sum256([]byte(filepath.Join(inv.address, inv.namespace, inv.id)))
	path := filepath.Join(dir, hex.EncodeToString(sum[:]))
	if len(path) > maxSocketPath {
		return nil, "", fmt.Errorf("socket path %s has %d bytes, and %d are possible (unix(7)): give containerd a shorter socket directory: %w",
			path, len(path), maxSocketPath, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", fmt.Errorf("socket directory: %w", err)
	}
	addr := &net.UnixAddr{Name: path, Net: "unix"}
	l, err := net.ListenUnix("unix", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return nil, "", fmt.Errorf("a shim already serves %s of namespace %s at %s: %w", inv.id, inv.namespace, path, errdefs.ErrAlreadyExists)
		}
		if err := os.Remove(path); err != nil {
			return nil, "", fmt.Errorf("remove the socket of a shim that is gone: %w", err)
		}
		l, err = net.ListenUnix("unix", addr)
	}
	if err != nil {
		return nil, "", fmt.Errorf("shim's socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, "", fmt.Errorf("shim's socket: %w", err)
	}
	return l, path, nil
}

// launch starts the process that serves, in a session of its own so that no
// signal meant for containerd's group reaches it.
func launch(inv invocation, params *bootstrap.BootstrapParams, listener *net.UnixListener) (*os.Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	socket, err := listener.File()
	if err != nil {
		return nil, fmt.Errorf("shim's socket: %w", err)
	}
	defer socket.Close()
	args := []string{"-namespace", inv.namespace, "-id", inv.id, "-address", inv.address}
	if inv.debug || params.GetLogLevel() < bootstrap.LogLevel_LOG_LEVEL_INFO {
		args = append(args, "-debug")
	}
	cmd := exec.Command(self, args...)
	cmd.ExtraFiles = []*os.File{socket} // listenerFD
	cmd.Env = append(os.Environ(), ttrpcAddressEnv+"="+params.GetContainerdTtrpcAddress(),
		beganEnv+"="+strconv.FormatInt(inv.began.UnixNano(), 10))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the shim: %w", err)
	}
	return cmd.Process, nil
}

// bootReply is JSON, which all containerd lines read; 2.2 and 2.3 skip the
// extensions, 2.4 takes from them which mounts it leaves to the shim.
func bootReply(path string) ([]byte, error) {
	result := &bootstrap.BootstrapResult{
		Version: apiVersion, Address: "unix://" + path, Protocol: "ttrpc",
	}
	err := result.AddExtension(&types.MountCapabilities{
		Types: []string{"erofs"}, Transforms: []string{"mkdir", "format"},
	})
	if err != nil {
		return nil, fmt.Errorf("bootstrap reply: %w", err)
	}
	return json.Marshal(result)
}

// adjustOOMScore makes the shim a likelier victim than containerd, its parent,
// which could not come back to its tasks otherwise.
func adjustOOMScore(pid int) error {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(os.Getppid()) + "/oom_score_adj")
	if err != nil {
		return err
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return err
	}
	// 1000 is the end of the scale (proc_pid_oom_score_adj(5)).
	return os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(min(score+1, 1000))), 0)
}

// socketOf is the socket that the bundle names, "" if it names none.
func socketOf(bundle string) string {
	data, err := os.ReadFile(filepath.Join(bundle, addressFile))
	if err != nil {
		return ""
	}
	path, _ := strings.CutPrefix(string(data), "unix://")
	return path
}
