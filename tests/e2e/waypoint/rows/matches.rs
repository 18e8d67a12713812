//! Rows about which rule a request meets.

use super::{Check, Row};

const PROVEN: &str = ">x-forwarded-client-cert=By=spiffe://cluster.local/ns/shop/sa/waypoint;\
                      URI=spiffe://cluster.local/ns/shop/sa/client";

pub(super) const ROWS: &[Row] = &[
    // MeshBasic.
    Row {
        name: "no-route",
        rules: "",
        checks: &[
            Check(&["/"], &[]),
            Check(&["/a//b/../%2f?q=%20&q"], &[]),
            Check(&["-H", "Host: elsewhere", "/"], &["host=elsewhere"]),
            // Who the client is, is not the client's to say.
            Check(
                &["-H", "X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/shop/sa/admin", "/"],
                &[PROVEN],
            ),
        ],
    },
    // MeshHTTPRouteSimpleSameNamespace.
    Row {
        name: "everything",
        rules: "  - backendRefs: [{name: one, port: 80}]\n",
        checks: &[
            Check(&["/"], &["server=one"]),
            Check(&["-X", "PUT", "-d", "x", "/any?q"], &["server=one", "method=PUT"]),
        ],
    },
    // MeshHTTPRouteMatching, HTTPRouteHeaderMatching.
    Row {
        name: "matching",
        rules: "
  - matches:
    - {path: {type: PathPrefix, value: /}}
    - {headers: [{name: version, value: one}]}
    backendRefs: [{name: one, port: 80}]
  - matches:
    - {path: {type: PathPrefix, value: /v2}}
    - {headers: [{name: version, value: two}]}
    backendRefs: [{name: two, port: 80}]
",
        checks: &[
            Check(&["/v2"], &["server=two"]),
            Check(&["/"], &["server=one"]),
            Check(&["/example"], &["server=one"]),
            Check(&["-H", "version: one", "/"], &["server=one"]),
            Check(&["/v2/example?a=b"], &["server=two"]),
            Check(&["/v2example"], &["server=one"]),
            Check(&["/foo/v2/example"], &["server=one"]),
            Check(&["-H", "Version: two", "/"], &["server=two"]),
            Check(&["-H", "version: two", "/example"], &["server=two"]),
            Check(&["-H", "version: three", "/"], &["server=one"]),
        ],
    },
    // MeshTrafficSplit, HTTPRouteExactPathMatching.
    Row {
        name: "exact-paths",
        rules: "
  - matches: [{path: {type: Exact, value: /v1}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: Exact, value: /v2}}]
    backendRefs: [{name: two, port: 80}]
",
        checks: &[
            Check(&["/v1"], &["server=one"]),
            Check(&["/v2?query=1"], &["server=two"]),
            Check(&["/"], &["status=404"]),
            Check(&["/v1/"], &["status=404"]),
            Check(&["/v1/example"], &["status=404"]),
            Check(&["/V1"], &["status=404"]),
        ],
    },
    // HTTPRouteMethodMatching.
    Row {
        name: "methods",
        rules: "
  - matches: [{method: POST}, {method: DELETE, path: {type: PathPrefix, value: /two}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{method: GET}, {path: {type: PathPrefix, value: /two}}]
    backendRefs: [{name: two, port: 80}]
",
        checks: &[
            Check(&["-X", "POST", "/"], &["server=one", "method=POST"]),
            Check(&["/"], &["server=two", "method=GET"]),
            Check(&["-X", "DELETE", "/two"], &["server=one"]),
            Check(&["-X", "PATCH", "/two"], &["server=two"]),
            Check(&["-X", "PATCH", "/"], &["status=404"]),
        ],
    },
    // MeshHTTPRouteQueryParamMatching.
    Row {
        name: "query",
        rules: "
  - matches: [{queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: one, port: 80}]
  - matches:
    - {queryParams: [{name: animal, value: dolphin}, {name: color, value: blue}]}
    - {queryParams: [{name: ANIMAL, value: Whale}]}
    backendRefs: [{name: two, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /path}, queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: two, port: 80}]
",
        checks: &[
            Check(&["/?animal=whale"], &["server=one"]),
            Check(&["/?color=blue&animal=dolphin"], &["server=two"]),
            Check(&["/?animal=dolphin"], &["status=404"]),
            Check(&["/?ANIMAL=Whale"], &["server=two"]),
            Check(&["/path/a?animal=whale&x=%26"], &["server=two"]),
            Check(&["/?animal=whale&animal=dolphin&color=blue"], &["server=one"]),
            Check(&["/?animal=Whale"], &["status=404"]),
            Check(&["/"], &["status=404"]),
        ],
    },
    // HTTPRoutePathMatchOrder.
    Row {
        name: "order",
        rules: "
  - matches: [{path: {type: PathPrefix, value: /match}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: Exact, value: /match}}]
    backendRefs: [{name: two, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /match/prefix/long}}]
    backendRefs: [{name: two, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /match/prefix}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: Exact, value: /match/exact/one}}]
    backendRefs: [{name: two, port: 80}]
",
        checks: &[
            Check(&["/match"], &["server=two"]),
            Check(&["/match/any"], &["server=one"]),
            Check(&["/match/prefix/long/er"], &["server=two"]),
            Check(&["/match/prefix/longer"], &["server=one"]),
            Check(&["/match/exact/one"], &["server=two"]),
            Check(&["/match/exact/ONE"], &["server=one"]),
        ],
    },
    // MeshHTTPRouteNamedRule.
    Row {
        name: "named-rules",
        rules: "
  - name: named
    matches: [{path: {type: PathPrefix, value: /named}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /unnamed}}]
    backendRefs: [{name: two, port: 80}]
",
        checks: &[Check(&["/named"], &["server=one"]), Check(&["/unnamed"], &["server=two"])],
    },
];
