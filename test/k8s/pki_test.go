package k8s

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority is a certificate authority of the cluster, whose files lie in a folder.
type authority struct {
	dir  string
	path string // its own certificate
	cert *x509.Certificate
	key  crypto.Signer
}

// identity is a certificate with its key, by their files.
type identity struct{ cert, key string }

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{dir: dir, path: filepath.Join(dir, name+".crt"), key: newKey(t)}
	a.cert = &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a.write(t, a.path, a.cert, a.key.Public())
	return a
}

// issue makes a certificate for both ends of a connection, for a server at the
// address if there is one.
func (a *authority) issue(t *testing.T, file string, subject pkix.Name, address net.IP, names ...string) identity {
	t.Helper()
	id := identity{cert: filepath.Join(a.dir, file+".crt"), key: filepath.Join(a.dir, file+".key")}
	key := newKey(t)
	cert := &x509.Certificate{
		Subject: subject, DNSNames: names, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if address != nil {
		cert.IPAddresses = []net.IP{address, net.ParseIP(firstService)}
	}
	a.write(t, id.cert, cert, key.Public())
	writeKey(t, id.key, key)
	return id
}

func (a *authority) write(t *testing.T, path string, cert *x509.Certificate, public crypto.PublicKey) {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	cert.SerialNumber, cert.NotBefore, cert.NotAfter = serial, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, cert, a.cert, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, path, "CERTIFICATE", der)
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writeKey(t *testing.T, path string, key *ecdsa.PrivateKey) {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, path, "EC PRIVATE KEY", der)
}

// keyPair writes a key and its public half, as service accounts are signed with.
func keyPair(t *testing.T, dir, name string) (private, public string) {
	t.Helper()
	key := newKey(t)
	private, public = filepath.Join(dir, name+".key"), filepath.Join(dir, name+".pub")
	writeKey(t, private, key)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, public, "PUBLIC KEY", der)
	return private, public
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
