// Gateway-api-conformance is the Gateway API's own suite as a program, so that it is built before it is needed. It holds no case:
// the cluster, the mesh and the features to test are its caller's (tests/kubernetes/conformance.rs).
package main

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func main() {
	every := func(string, string) (bool, error) { return true, nil }
	testing.Main(every, []testing.InternalTest{{Name: "Conformance", F: conformance.RunConformance}}, nil, nil)
}
