package server

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/erofsvm/erofsvm/agentclient/pb"
	"github.com/erofsvm/erofsvm/guest/container"
)

func TestCopyFileAppearsWhenItIsWhole(t *testing.T) {
	agent, _, base := serve(t)
	ctx := t.Context()
	path := filepath.Join(base, container.Copies, "dir/sub/file")
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
	agent, _, root := serve(t)
	base := filepath.Join(root, container.Copies)
	if err := os.MkdirAll(base+"/taken", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(base+"/plain", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	if err := os.Symlink(outside, base+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside+"/x", base+"/file"+partial); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*pb.CopyFileRequest{
		"outside":             {Path: "/etc/x"},
		"another place":       {Path: root + "/c/x"},
		"beside":              {Path: root + "/shared/containersx/x"},
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

		"a directory through a link": {Path: base + "/link/x", FileMode: unix.S_IFDIR | 0o700},
		"a directory over a link":    {Path: base + "/link", FileMode: unix.S_IFDIR | 0o700},
		"a directory over a file":    {Path: base + "/plain", FileMode: unix.S_IFDIR | 0o700},
		"a directory with data":      {Path: base + "/x", FileMode: unix.S_IFDIR | 0o700, FileSize: 1, Data: []byte("x")},
		"a link through a link":      {Path: base + "/link/x", FileMode: unix.S_IFLNK | 0o777, FileSize: 1, Data: []byte("x")},
		"a link over a directory":    {Path: base + "/taken", FileMode: unix.S_IFLNK | 0o777, FileSize: 1, Data: []byte("x")},
		"a link to nothing":          {Path: base + "/x", FileMode: unix.S_IFLNK | 0o777},
		"a link in pieces":           {Path: base + "/x", FileMode: unix.S_IFLNK | 0o777, FileSize: 2, Data: []byte("x")},
		"a link with a zero":         {Path: base + "/x", FileMode: unix.S_IFLNK | 0o777, FileSize: 1, Data: []byte{0}},
		"a link to what is too long": {Path: base + "/x", FileMode: unix.S_IFLNK | 0o777, FileSize: 4096, Data: bytes.Repeat([]byte("x"), 4096)},
		"a file over a directory":    {Path: base + "/taken"},
		"a file below a plain file":  {Path: base + "/plain/x"},
	} {
		if _, err := agent.CopyFile(t.Context(), r); err == nil || status.Code(err) == codes.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside: %v, %v", entries, err)
	}
}

func TestCopyFileMakesDirectoriesAndLinks(t *testing.T) {
	agent, _, root := serve(t)
	base := filepath.Join(root, container.Copies)
	me := func(r *pb.CopyFileRequest) *pb.CopyFileRequest {
		r.Uid, r.Gid = int32(os.Getuid()), int32(os.Getgid())
		return r
	}
	for _, r := range []*pb.CopyFileRequest{
		{Path: base + "/c/dir", FileMode: unix.S_IFDIR | 0o500, DirMode: 0o711},
		{Path: base + "/c/dir/file", FileMode: unix.S_IFREG | 0o400, FileSize: 4, Data: []byte("text")},
		{Path: base + "/c/dir", FileMode: unix.S_IFDIR | 0o1750, DirMode: 0o755}, // again, with another mode
		{Path: base + "/c/link", FileMode: unix.S_IFLNK | 0o777, FileSize: 3, Data: []byte("old")},
		{Path: base + "/c/link", FileMode: unix.S_IFLNK | 0o777, FileSize: 8, Data: []byte("dir/file")}, // again, to another place
		{Path: base + "/c/up", FileMode: unix.S_IFLNK | 0o777, FileSize: 9, Data: []byte("../../../")},
		{Path: base + "/c/was", FileMode: unix.S_IFLNK | 0o777, FileSize: 5, Data: []byte("/etc/")},
		{Path: base + "/c/was", FileSize: 1, Data: []byte("x"), FileMode: 0o600}, // a file in the place of a link
	} {
		if _, err := agent.CopyFile(t.Context(), me(r)); err != nil {
			t.Errorf("%s: %v", r.GetPath(), err)
		}
	}
	if text, err := os.ReadFile(base + "/c/link"); err != nil || string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
	if target, err := os.Readlink(base + "/c/up"); err != nil || target != "../../../" {
		t.Errorf("%q, %v", target, err)
	}
	for name, mode := range map[string]os.FileMode{
		"/c": os.ModeDir | 0o711, "/c/dir": os.ModeDir | os.ModeSticky | 0o750, "/c/dir/file": 0o400, "/c/was": 0o600,
	} {
		if st, err := os.Lstat(base + name); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v, want %v", name, st.Mode(), err, mode)
		}
	}
	if entries, err := os.ReadDir(base + "/c"); err != nil || len(entries) != 4 {
		t.Errorf("%v, %v", entries, err)
	}
}
