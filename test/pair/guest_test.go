package main

import (
	"strings"
	"testing"
)

func TestGuestWords(t *testing.T) {
	volume := Volume{URL: "iscsi://10.77.0.50:3260/iqn.2026-11.io.steadfast:g1/3"}
	got, err := guestWords("linux", volume, false)
	want := "address=10.77.0.10/24 portal=10.77.0.50:3260 target=iqn.2026-11.io.steadfast:g1 lun=3 debug=4"
	if err != nil || strings.Join(got, " ") != want {
		t.Errorf("%v, %v", got, err)
	}
	got, err = guestWords(multipathClient, volume, true)
	want = "address=10.77.0.10/24 portal=10.77.0.1:3260,10.77.0.2:3260 target=iqn.2026-11.io.steadfast:g1 lun=3 debug=8"
	if err != nil || strings.Join(got, " ") != want {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"iscsi://10.77.0.50:3260/target", "nbd://host/x/1", ":"} {
		if got, err := guestWords("linux", Volume{URL: bad}, false); err == nil {
			t.Errorf("%s: %v", bad, got)
		}
	}
}

func TestClientsBy(t *testing.T) {
	for value, want := range map[string]string{
		"qemu": "qemu", "libiscsi": "libiscsi", "linux": "linux", "both": "qemu libiscsi", "all": "qemu libiscsi steadfast linux", "steadfast,qemu": "steadfast qemu",
		"multipath": "multipath",
	} {
		if got, err := clientsBy(value); err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v", value, got, err)
		}
	}
	if got, err := clientsBy("esxi"); err == nil {
		t.Error(got)
	}
}
