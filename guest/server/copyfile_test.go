package server

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

func TestCopyFileAppearsWhenItIsWhole(t *testing.T) {
	agent, _, base := serve(t)
	ctx := t.Context()
	path := base + "/dir/sub/file"
	piece := func(offset int64, data string) *pb.CopyFileRequest {
		return &pb.CopyFileRequest{Path: path, FileSize: 6, FileMode: unix.S_IFREG | 0o640, DirMode: 0o750,
			Uid: int32(os.Getuid()), Gid: int32(os.Getgid()), Offset: offset, Data: []byte(data)}
	}
	for range 2 { // the second time over the first
		if _, err := agent.CopyFile(ctx, piece(0, "abc")); err != nil {
			t.Fatal(err)
		}
		_, err := agent.CopyFile(ctx, piece(4, "ef"))
		wantCode(t, err, codes.FailedPrecondition, "a piece at 4 where 3 bytes are there")
		if _, err := agent.CopyFile(ctx, piece(3, "def")); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "abcdef" {
			t.Errorf("%q, %v", text, err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o640 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

func TestCopyFileStaysBelowTheBase(t *testing.T) {
	agent, _, base := serve(t)
	outside := t.TempDir()
	if err := os.Symlink(outside, base+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside+"/x", base+"/file"+partial); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*pb.CopyFileRequest{
		"outside":             {Path: "/etc/x"},
		"the base":            {Path: base},
		"above":               {Path: base + "/../x"},
		"not clean":           {Path: base + "/a//x"},
		"empty name":          {Path: base + "/"},
		"through a link":      {Path: base + "/link/x"},
		"a link in its place": {Path: base + "/file"},
		"too long":            {Path: base + "/" + string(make([]byte, 5000))},
		"too large":           {Path: base + "/x", FileSize: maxFile + 1},
		"negative":            {Path: base + "/x", FileSize: -1},
		"before the start":    {Path: base + "/x", Offset: -1},
		"past the end":        {Path: base + "/x", FileSize: 1, Data: []byte("ab")},
		"overflow":            {Path: base + "/x", FileSize: 1, Offset: 1<<63 - 1, Data: []byte("ab")},
		"a device":            {Path: base + "/x", FileMode: unix.S_IFCHR | 0o600},
	} {
		if _, err := agent.CopyFile(t.Context(), r); err == nil || status.Code(err) == codes.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}
