package sizing

import (
	"math"
	"testing"

	"github.com/erofsvm/erofsvm/agentclient/pb"
)

const mib = 1 << 20

func limits(quota int64, period uint64, memory int64) *pb.LinuxResources {
	return &pb.LinuxResources{CPU: &pb.LinuxCPU{Quota: quota, Period: period}, Memory: &pb.LinuxMemory{Limit: memory}}
}

func TestTheSumOfTheContainersDecidesWithinTheBounds(t *testing.T) {
	policy := Policy{Base: Size{1, 512}, Max: Size{4, 4096}, OverheadMiB: 64, BlockMiB: 128}
	for _, tc := range []struct {
		name       string
		containers []*pb.LinuxResources
		want       Size
	}{
		{"no container", nil, Size{1, 512}},
		{"no limits", []*pb.LinuxResources{nil, {}, limits(-1, 0, -1)}, Size{1, 512}},
		{"less than there is", []*pb.LinuxResources{limits(50_000, 100_000, 100*mib)}, Size{1, 512}},
		{"what there is and its overhead", []*pb.LinuxResources{limits(0, 0, 448*mib)}, Size{1, 512}},
		{"a byte more is a block more", []*pb.LinuxResources{limits(0, 0, 448*mib+1)}, Size{1, 640}},
		{"a block less what it needs itself", []*pb.LinuxResources{limits(0, 0, 574*mib)}, Size{1, 640}},
		{"a byte more is two", []*pb.LinuxResources{limits(0, 0, 574*mib+1)}, Size{1, 768}},
		{"parts of processors add up", []*pb.LinuxResources{limits(70_000, 100_000, 0), limits(70_000, 0, 0)}, Size{2, 512}},
		{"two processors exactly", []*pb.LinuxResources{limits(100_000, 50_000, 0)}, Size{2, 512}},
		{"memories add up", []*pb.LinuxResources{limits(0, 0, 512*mib), limits(0, 0, 512*mib)}, Size{1, 1152}},
		{"huge pages are beside the memory", []*pb.LinuxResources{limits(0, 0, 384*mib), {HugepageLimits: []*pb.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 64 * mib}, {Pagesize: "1GB"}}}}, Size{1, 512}},
		{"and more of them is a block more", []*pb.LinuxResources{limits(0, 0, 384*mib), {HugepageLimits: []*pb.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 66 * mib}}}}, Size{1, 640}},
		{"more than can be", []*pb.LinuxResources{limits(900_000, 100_000, 8192*mib)}, Size{4, 4096}},
		{"no limit, as containerd writes it", []*pb.LinuxResources{limits(math.MaxInt64, 1, math.MaxInt64), limits(0, 0, math.MaxInt64), limits(0, 0, math.MaxInt64)}, Size{4, 4096}},
	} {
		if got := policy.Want(tc.containers); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestMemoryIsAddedInWholeBlocks(t *testing.T) {
	policy := Policy{Base: Size{1, 500}, Max: Size{1, 1000}, BlockMiB: 128}
	for limit := int64(1); limit < 2000; limit += 7 {
		got := policy.Want([]*pb.LinuxResources{limits(0, 0, limit*mib)}).MemoryMiB
		if got < 500 || got > 1000 || (got-500)%128 != 0 || (limit <= 884 && int64(got) < limit) {
			t.Errorf("%d MiB for a limit of %d", got, limit)
		}
	}
}

func TestAPolicyWithoutRoomIsTheBase(t *testing.T) {
	policy := Policy{Base: Size{2, 512}, Max: Size{2, 512}}
	if got := policy.Want([]*pb.LinuxResources{limits(1_000_000, 1000, 1<<40)}); got != policy.Base {
		t.Errorf("%+v", got)
	}
}
