package support

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// secretBytesMin is what a secret has at least that is looked for: anything shorter is a word
// that may be there by chance. A CHAP secret has 12.
const secretBytesMin = 6

// removed stands where a secret was.
const removed = "(a secret was removed here)"

// Redactor takes secrets that it knows out of texts.
type Redactor struct{ forms [][]byte }

// NewRedactor returns one that knows secrets as they are, and in the forms in which programs print
// bytes.
func NewRedactor(secrets ...[]byte) *Redactor {
	r := &Redactor{}
	for _, s := range secrets {
		s = bytes.TrimSpace(s)
		if len(s) < secretBytesMin {
			continue
		}
		r.forms = append(r.forms, s)
		for _, form := range []string{
			hex.EncodeToString(s), strings.ToUpper(hex.EncodeToString(s)),
			base64.RawStdEncoding.EncodeToString(s), base64.RawURLEncoding.EncodeToString(s),
		} {
			r.forms = append(r.forms, []byte(form))
		}
	}
	// One that is part of another must not hide that.
	slices.SortStableFunc(r.forms, func(a, b []byte) int { return len(b) - len(a) })
	return r
}

// Clean returns a text without the secrets, and whether there was one.
func (r *Redactor) Clean(text []byte) (clean []byte, had bool) {
	for _, form := range r.forms {
		if bytes.Contains(text, form) {
			text, had = bytes.ReplaceAll(text, form, []byte(removed)), true
		}
	}
	return text, had
}

// SecretsIn reads what is secret in a member's data directory: CHAP secrets and private keys. What
// cannot be read is not known.
func SecretsIn(dataDir string) (secrets [][]byte) {
	files, _ := filepath.Glob(filepath.Join(dataDir, "secrets", "*")) // the pattern is right
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			secrets = append(secrets, b)
		}
	}
	keys, _ := filepath.Glob(filepath.Join(dataDir, "cluster", "*.key"))
	for _, f := range keys {
		if b, err := os.ReadFile(f); err == nil {
			secrets = append(secrets, keySecrets(b)...)
		}
	}
	return secrets
}

// keySecrets returns a key file's lines, its bytes, and the seed at its end.
func keySecrets(text []byte) (secrets [][]byte) {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); !bytes.HasPrefix(line, []byte("-----")) {
			secrets = append(secrets, line)
		}
	}
	const seed = 32 // bytes of an Ed25519 key. RFC 8410, 7.
	if block, _ := pem.Decode(text); block != nil && len(block.Bytes) > seed {
		secrets = append(secrets, block.Bytes, block.Bytes[len(block.Bytes)-seed:])
	}
	return secrets
}
