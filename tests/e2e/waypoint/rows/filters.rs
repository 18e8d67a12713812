//! Rows about what a rule makes of requests and answers.

use super::{Check, Row};

pub(super) const ROWS: &[Row] = &[
    // MeshHTTPRouteRequestHeaderModifier.
    Row {
        name: "request-headers",
        rules: "
  - matches: [{path: {type: PathPrefix, value: /set}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: by-rule}]}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /add}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: X-Header-Add, value: by-rule}]}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /remove}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [X-Header-Remove]}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /several}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: X-Set-1, value: one}, {name: X-Set-2, value: two}]
        add: [{name: X-Add-1, value: one}, {name: X-Add-2, value: two}]
        remove: [X-Remove-1, X-Remove-2]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /case}}]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-SET, value: lower}], add: [{name: x-ADD, value: lower}], remove: [X-rEmOvE]}
    backendRefs: [{name: one, port: 80}]
",
        checks: &[
            Check(&["/set"], &["server=one", ">x-header-set=by-rule"]),
            Check(&["-H", "Some-Other: val", "/set"], &[">some-other=val", ">x-header-set=by-rule"]),
            Check(&["-H", "X-Header-Set: by-client", "/set?q=1"], &[">x-header-set=by-rule"]),
            Check(&["/add"], &[">x-header-add=by-rule"]),
            Check(&["-H", "X-Header-Add: by-client", "/add"], &[">x-header-add=by-client,by-rule"]),
            Check(&["-H", "X-Header-Remove: val", "/remove"], &[">x-header-remove="]),
            Check(
                &[
                    "-H", "X-Set-2: old", "-H", "X-Add-2: old", "-H", "X-Remove-2: old", "-H", "Other: kept",
                    "/several",
                ],
                &[
                    ">x-set-1=one", ">x-set-2=two", ">x-add-1=one", ">x-add-2=old,two", ">x-remove-2=",
                    ">other=kept",
                ],
            ),
            Check(
                &["-H", "x-set: old", "-H", "x-add: old", "-H", "x-remove: old", "/case"],
                &[">x-set=lower", ">x-add=old,lower", ">x-remove="],
            ),
        ],
    },
    // MeshHTTPRouteBackendRequestHeaderModifier.
    Row {
        name: "backend-headers",
        rules: "
  - matches: [{path: {type: PathPrefix, value: /backend}}]
    backendRefs:
    - name: one
      port: 80
      filters:
      - type: RequestHeaderModifier
        requestHeaderModifier: {set: [{name: x-set, value: s}], add: [{name: x-add, value: a}], remove: [x-remove]}
  - matches: [{path: {type: PathPrefix, value: /both}}]
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: rule}, {name: x-rule, value: r}]}}
    backendRefs:
    - name: two
      port: 80
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: backend}]}}]
",
        checks: &[
            Check(
                &["-H", "X-Set: old", "-H", "X-Add: old", "-H", "X-Remove: old", "/backend"],
                &["server=one", ">x-set=s", ">x-add=old,a", ">x-remove="],
            ),
            Check(&["/both"], &["server=two", ">x-set=backend", ">x-rule=r"]),
        ],
    },
    // MeshFrontend, HTTPRouteResponseHeaderModifier.
    Row {
        name: "response-headers",
        rules: "
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier:
        set: [{name: X-Set, value: s}, {name: X-Lab-Name, value: hidden}]
        add: [{name: x-add, value: a}]
        remove: [content-TYPE]
    backendRefs: [{name: one, port: 80}]
",
        checks: &[Check(
            &["/"],
            &["server=one", "<x-set=s", "<x-lab-name=hidden", "<x-add=a", "<content-type="],
        )],
    },
    // MeshHTTPRouteRedirectHostAndStatus, and those of 303, 307 and 308.
    Row {
        name: "redirect-host",
        rules: "
  - matches: [{path: {type: PathPrefix, value: /default}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org}}]
  - matches: [{path: {type: PathPrefix, value: /301}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 301}}]
  - matches: [{path: {type: PathPrefix, value: /303}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 303}}]
  - matches: [{path: {type: PathPrefix, value: /307}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 307}}]
  - matches: [{path: {type: PathPrefix, value: /308}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: example.org, statusCode: 308}}]
",
        checks: &[
            Check(&["/default/a?b=c"], &["status=302", "location=http://example.org/default/a?b=c"]),
            Check(&["/301"], &["status=301", "location=http://example.org/301"]),
            Check(&["-d", "x", "/303"], &["status=303", "location=http://example.org/303"]),
            Check(&["-d", "x", "/307"], &["status=307", "location=http://example.org/307"]),
            Check(&["-d", "x", "/308"], &["status=308", "location=http://example.org/308"]),
        ],
    },
    // MeshHTTPRouteRedirectPath.
    Row {
        name: "redirect-path",
        rules: "
  - matches: [{path: {type: PathPrefix, value: /original}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]
  - matches: [{path: {type: PathPrefix, value: /full}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /whole}}}]
  - matches: [{path: {type: PathPrefix, value: /host}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {hostname: example.org, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}
  - matches: [{path: {type: PathPrefix, value: /strip}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}
  - matches: [{path: {type: PathPrefix, value: /all}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {hostname: example.org, statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /new}}
",
        checks: &[
            Check(&["/original/lemon?q=1"], &["status=302", "location=http://redirect-path.shop/new/lemon?q=1"]),
            Check(&["/original"], &["status=302", "location=http://redirect-path.shop/new"]),
            Check(&["/full/path/original"], &["status=302", "location=http://redirect-path.shop/whole"]),
            Check(&["/host/x/"], &["status=302", "location=http://example.org/new/x/"]),
            Check(&["/strip"], &["status=301", "location=http://redirect-path.shop/"]),
            Check(&["/strip/x"], &["status=301", "location=http://redirect-path.shop/x"]),
            Check(&["/all?q"], &["status=301", "location=http://example.org/new?q"]),
        ],
    },
    // MeshHTTPRouteRedirectPort, MeshHTTPRouteSchemeRedirect, HTTPRouteRedirectPortAndScheme.
    Row {
        name: "redirect-port",
        rules: "
  - matches: [{path: {type: PathPrefix, value: /port}}]
    filters: [{type: RequestRedirect, requestRedirect: {port: 8083}}]
  - matches: [{path: {type: PathPrefix, value: /port-host}}]
    filters: [{type: RequestRedirect, requestRedirect: {port: 8083, hostname: example.org, statusCode: 301}}]
  - matches: [{path: {type: PathPrefix, value: /port-80}}]
    filters: [{type: RequestRedirect, requestRedirect: {port: 80}}]
  - matches: [{path: {type: PathPrefix, value: /https}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https}}]
  - matches: [{path: {type: PathPrefix, value: /https-443}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 443, hostname: example.org}}]
  - matches: [{path: {type: PathPrefix, value: /https-80}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 80, statusCode: 301}}]
  - matches: [{path: {type: PathPrefix, value: /http-443}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: http, port: 443}}]
",
        checks: &[
            Check(&["/port"], &["status=302", "location=http://redirect-port.shop:8083/port"]),
            Check(&["/port-host"], &["status=301", "location=http://example.org:8083/port-host"]),
            Check(&["/port-80"], &["status=302", "location=http://redirect-port.shop/port-80"]),
            Check(&["/https/x?q=1"], &["status=302", "location=https://redirect-port.shop/https/x?q=1"]),
            Check(&["/https-443"], &["status=302", "location=https://example.org/https-443"]),
            Check(&["/https-80"], &["status=301", "location=https://redirect-port.shop:80/https-80"]),
            Check(&["/http-443"], &["status=302", "location=http://redirect-port.shop:443/http-443"]),
        ],
    },
    // MeshHTTPRouteRewritePath, HTTPRouteRewriteHost.
    Row {
        name: "rewrite",
        rules: "
  - matches: [{path: {type: PathPrefix, value: /prefix/one}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /one}}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /strip}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /full/one}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /one}}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /full/headers}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /headers}}}
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: x-set, value: s}], add: [{name: x-add, value: a}], remove: [x-remove]}
    backendRefs: [{name: two, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /host}}]
    filters: [{type: URLRewrite, urlRewrite: {hostname: one.example.org}}]
    backendRefs: [{name: one, port: 80}]
",
        checks: &[
            Check(&["/prefix/one/two?q=%2F"], &["server=one", "path=/one/two?q=%2F"]),
            Check(&["/prefix/one"], &["path=/one"]),
            Check(&["/prefix/one/"], &["path=/one/"]),
            Check(&["/strip/one"], &["path=/one"]),
            Check(&["/strip"], &["path=/"]),
            Check(&["/strip/?q"], &["path=/?q"]),
            Check(&["/strip/a%2Fb/%20"], &["path=/a%2Fb/%20"]),
            Check(&["/full/one/two?q=1"], &["path=/one?q=1"]),
            Check(
                &["-H", "x-add: old", "-H", "x-remove: old", "/full/headers"],
                &["server=two", "path=/headers", ">x-set=s", ">x-add=old,a", ">x-remove="],
            ),
            Check(&["/host/x?q"], &["server=one", "host=one.example.org"]),
        ],
    },
    // HTTPRouteBackendURLRewrite.
    Row {
        name: "backend-rewrite",
        rules: "
  - matches: [{path: {type: PathPrefix, value: /from}}]
    backendRefs:
    - name: one
      port: 80
      filters:
      - {type: URLRewrite, urlRewrite: {hostname: inner.shop, path: {type: ReplacePrefixMatch, replacePrefixMatch: /to}}}
",
        checks: &[Check(&["/from/x?q=1"], &["server=one", "path=/to/x?q=1", "host=inner.shop"])],
    },
    // HTTPRouteCORS.
    Row {
        name: "cors",
        rules: "
  - filters:
    - type: CORS
      cors:
        allowOrigins: [\"https://www.example.org\", \"https://*.shop.org\"]
        allowMethods: [GET, PUT]
        allowHeaders: [x-a]
        exposeHeaders: [x-b]
        maxAge: 60
    backendRefs: [{name: one, port: 80}]
",
        checks: &[
            Check(
                &["-H", "Origin: https://www.example.org", "/"],
                &[
                    "server=one",
                    "<access-control-allow-origin=https://www.example.org",
                    "<access-control-expose-headers=x-b",
                ],
            ),
            Check(
                &["-X", "OPTIONS", "-H", "Origin: https://a.shop.org", "-H", "Access-Control-Request-Method: PUT", "-H", "Access-Control-Request-Headers: x-a", "/"],
                &[
                    "status=204", "server=", "<access-control-allow-origin=https://a.shop.org", "<access-control-max-age=60",
                    "<access-control-allow-headers=x-a",
                ],
            ),
            Check(&["-H", "Origin: https://evil.org", "/"], &["server=one", "<access-control-allow-origin="]),
            Check(&["/"], &["server=one", "<access-control-allow-origin="]),
        ],
    },
];
