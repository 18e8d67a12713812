//! Rows about what goes wrong, and what a rule does about it. What `/fails/<n>/<how>` asks for, the server does to the first n
//! requests of that path.

use super::{Check, Row};

pub(super) const ROWS: &[Row] = &[
    // HTTPRouteNoBackendRefs, HTTPRouteInvalidNonExistentBackendRef, HTTPRouteInvalidBackendRefUnknownKind,
    // HTTPRouteInvalidReferenceGrant, and a Service without endpoints.
    Row {
        name: "nowhere",
        rules: "
  - matches: [{path: {type: PathPrefix, value: /none}}]
  - matches: [{path: {type: PathPrefix, value: /missing}}]
    backendRefs: [{name: missing, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /port}}]
    backendRefs: [{name: one, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /kind}}]
    backendRefs: [{kind: ConfigMap, name: one, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /closed}}]
    backendRefs: [{name: empty, namespace: closed, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /open}}]
    backendRefs: [{name: empty, namespace: open, port: 80}]
",
        checks: &[
            Check(&["/none"], &["status=500"]),
            Check(&["/missing"], &["status=500"]),
            Check(&["/port"], &["status=500"]),
            Check(&["/kind"], &["status=500"]),
            Check(&["/closed"], &["status=500"]),
            Check(&["/open"], &["status=503"]),
            Check(&["/"], &["status=404"]),
        ],
    },
    // HTTPRouteRetry.
    Row {
        name: "retry",
        rules: "
  - matches: [{path: {type: PathPrefix, value: /fails}}]
    retry: {codes: [500, 503], attempts: 2, backoff: 1ms}
    backendRefs: [{name: one, port: 80}]
  - backendRefs: [{name: one, port: 80}]
",
        checks: &[
            Check(&["/fails/0/503/a"], &["server=one"]),
            Check(&["/fails/2/503/b"], &["asked=3"]),
            Check(&["-d", "body", "/fails/1/500/c"], &["asked=2", "method=POST", "bytes=4"]),
            Check(&["/fails/9/503/d"], &["status=503", "asked=3"]),
            Check(&["/fails/9/502/e"], &["status=502", "asked=1"]),
        ],
    },
    // HTTPRouteRetryConnectionError.
    Row {
        name: "retry-lost",
        rules: "
  - retry: {codes: [503], attempts: 2, backoff: 1ms}
    backendRefs: [{name: one, port: 80}]
",
        checks: &[Check(&["/fails/0/drop/a"], &["server=one"]), Check(&["/fails/1/drop/b"], &["asked=2"])],
    },
    // HTTPRouteTimeoutRequest.
    Row {
        name: "timeout",
        rules: "
  - timeouts: {request: 300ms}
    backendRefs: [{name: one, port: 80}]
",
        checks: &[Check(&["/"], &["server=one"]), Check(&["/fails/9/hang/a"], &["status=504"])],
    },
    // HTTPRouteTimeoutBackendRequest, HTTPRouteRetryWithTimeouts.
    Row {
        name: "timeout-backend",
        rules: "
  - matches: [{path: {type: PathPrefix, value: /fails/9}}]
    timeouts: {backendRequest: 300ms}
    backendRefs: [{name: one, port: 80}]
  - timeouts: {request: 30s, backendRequest: 2s}
    retry: {codes: [503], attempts: 1, backoff: 1ms}
    backendRefs: [{name: one, port: 80}]
",
        checks: &[
            Check(&["/"], &["server=one"]),
            Check(&["/fails/9/hang/a"], &["status=504"]),
            Check(&["/fails/1/hang/b"], &["server=one", "asked=2"]),
        ],
    },
];

/// The namespaces of `nowhere`: one that grants nothing to others, and one that says nothing. Neither Service has endpoints.
pub(super) const NAMESPACES: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: closed}
---
apiVersion: v1
kind: Namespace
metadata: {name: open}
---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: others, namespace: closed}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: elsewhere}]
  to: [{group: \"\", kind: Service}]
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: closed}
spec: {clusterIP: 10.96.250.1, clusterIPs: [10.96.250.1], ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: open}
spec: {clusterIP: 10.96.250.2, clusterIPs: [10.96.250.2], ports: [{name: http, port: 80}]}
---
";
