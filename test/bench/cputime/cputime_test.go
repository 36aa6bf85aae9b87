package cputime

import (
	"os"
	"testing"
)

func TestProcessorTimeIsThatOfTheProcess(t *testing.T) {
	before, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for sum, n := byte(0), 0; n < 1<<24; n++ {
		sum += byte(n)
	}
	after, err := Of(os.Getpid())
	if err != nil || after <= before {
		t.Errorf("%v after %v, %v", after, before, err)
	}
	for _, pid := range []int{0, 1 << 22} {
		if _, err := Of(pid); err == nil {
			t.Errorf("process %d, which is not there, has had a processor", pid)
		}
	}
}
