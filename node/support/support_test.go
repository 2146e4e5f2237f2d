package support

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"steadfast/node/config"
)

// TestRedactor: a secret goes in each form in which a program may print it, and what is beside it
// stays.
func TestRedactor(t *testing.T) {
	secret := []byte("s3cret-of-alice")
	r := NewRedactor(secret, []byte("of-alice"), nil, []byte("ab")) // what is too short is no secret
	for _, form := range []string{
		string(secret), hex.EncodeToString(secret), strings.ToUpper(hex.EncodeToString(secret)),
		base64.StdEncoding.EncodeToString(secret), base64.URLEncoding.EncodeToString(secret),
	} {
		got, had := r.Clean([]byte("before " + form + " after, and ab"))
		if !had || bytes.Contains(got, []byte(form)) || !bytes.HasPrefix(got, []byte("before (a secret")) || !bytes.HasSuffix(got, []byte(" after, and ab")) {
			t.Errorf("%s: %s, %v", form, got, had)
		}
	}
	if got, had := r.Clean([]byte("nothing here: s3cret")); had || string(got) != "nothing here: s3cret" {
		t.Errorf("%s, %v", got, had)
	}
}

// TestSecretsIn: what lies in a data directory is known.
func TestSecretsIn(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"secrets/1":          "s3cret-of-alice",
		"cluster/member.key": "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g\n-----END PRIVATE KEY-----\n",
		"cluster/member.crt": "public",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := NewRedactor(SecretsIn(dir)...)
	for _, secret := range []string{"s3cret-of-alice", "MC4CAQAwBQYDK2VwBCIEIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g", "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"} {
		if got, had := r.Clean([]byte("x " + secret)); !had {
			t.Errorf("%q is not known: %s", secret, got)
		}
	}
	if got, had := r.Clean([]byte("public, -----BEGIN PRIVATE KEY-----")); had {
		t.Errorf("no secret, and gone: %s", got)
	}
	listing := string(Listing(dir).Data)
	if strings.Contains(listing, "secrets") || !strings.Contains(listing, "cluster/member.key") {
		t.Errorf("the listing: %s", listing)
	}
}

// TestConfig: of the file's texts nothing comes along that is or could hide a secret, and what comes
// along can be read as a configuration.
func TestConfig(t *testing.T) {
	c, err := config.Parse([]byte("# s3cret comment\ndata_dir = \"/d\"\n[discovery]\nchap_user = \"s3cret-user\"\nchap_secret_file = \"/etc/s3cret\"\n[cluster]\nlisten = \"192.0.2.1:7400\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(Config(c).Data)
	if strings.Contains(text, "s3cret") || !strings.Contains(text, "data_dir = \"/d\"") || !strings.Contains(text, "# CHAP is asked for = true") {
		t.Error(text)
	}
	again, err := config.Parse([]byte(text))
	if err != nil {
		t.Fatal(err, text)
	}
	if again.Cluster.Listen != c.Cluster.Listen || again.Cache != c.Cache || again.Drain != c.Drain {
		t.Errorf("%+v; want %+v", again, c)
	}
}

// TestWithoutArguments: a crash's trace keeps its functions and lines, and no bytes of memory.
func TestWithoutArguments(t *testing.T) {
	log := "2026-11-26T19:00:00 box steadfast[7]: panic: broken\n" +
		"2026-11-26T19:00:00 box steadfast[7]: goroutine 7 [running]:\n" +
		"2026-11-26T19:00:00 box steadfast[7]: steadfast/node/control.(*State).seal(0xc000012345, {0x7334637265742d6f, 0x5, 0x8})\n" +
		"2026-11-26T19:00:00 box steadfast[7]:         /src/node/control/secrets.go:54 +0x1d\n" +
		"main.main()\n" +
		"crypto/ed25519.sign({0xc0001, 0x40, 0x40}, ...)\n" +
		"time=2026-11-26 level=INFO msg=event text=\"group (0x12) is fine\"\n"
	got := string(WithoutArguments([]byte(log)))
	for _, gone := range []string{"0x7334637265742d6f", "0xc0001"} {
		if strings.Contains(got, gone) {
			t.Errorf("%s is there still:\n%s", gone, got)
		}
	}
	for _, kept := range []string{"(*State).seal(...)", "secrets.go:54 +0x1d", "main.main()", "crypto/ed25519.sign(...)", "group (0x12) is fine", "panic: broken"} {
		if !strings.Contains(got, kept) {
			t.Errorf("%s is gone:\n%s", kept, got)
		}
	}
}

// TestSystem: each file says something, and none of them holds the environment or a command line.
func TestSystem(t *testing.T) {
	t.Setenv("STEADFAST_TEST_SECRET", "s3cret-in-environment")
	for _, f := range System(t.TempDir()) {
		if len(f.Data) == 0 && f.Name != "system/neighbors.txt" && f.Name != "system/block.txt" && f.Name != "system/routes.txt" {
			t.Errorf("%s is empty", f.Name)
		}
		if bytes.Contains(f.Data, []byte("s3cret")) {
			t.Errorf("%s has the environment", f.Name)
		}
	}
	if f, err := Goroutines(); err != nil || !bytes.Contains(f.Data, []byte("TestSystem")) {
		t.Errorf("goroutines: %v\n%s", err, f.Data)
	}
}
