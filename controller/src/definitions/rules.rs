//! What the API server refuses, and the sentence that it says: what the mesh could only misread.
//!
//! What may be right elsewhere (HTTP conditions, which a waypoint enforces) is not refused here but judged by `index`. Lists are
//! bounded, because the API server runs a rule only where it can tell beforehand what that costs at most: a rule within lists
//! within lists counts as often as all of them can hold together.

use serde_json::{Value, json};

/// What holds at one place of a schema.
pub(super) struct At {
    /// Names joined by dots; `[]` stands for the items of a list, `{}` for the values of a map.
    pub(super) path: &'static str,
    /// Bounds in the words of OpenAPI.
    pub(super) bounds: &'static [(&'static str, u64)],
    /// CEL expressions, each with what is said when it is false.
    pub(super) rules: &'static [(&'static str, &'static str)],
}

/// As many rules as anyone has been seen to write, several times over.
const RULES: u64 = 64;

/// Sources, operations or conditions of a rule.
const PARTS: u64 = 32;

/// Values of a list: as many as can be looked at in this many rules and parts. Whoever has more can write a second source or
/// operation.
const VALUES: u64 = 96;

/// An address with the longest mask.
const BLOCK: u64 = 49;

/// A namespace and an account.
const ACCOUNT_NAME: u64 = 320;

/// The longest trust domain, namespace and account, and what stands between them.
const NAME: u64 = 512;

const LIST: &[(&str, u64)] = &[("maxItems", VALUES)];
const NAMED: &[(&str, u64)] = &[("minLength", 1), ("maxLength", NAME)];

pub(super) const SOME: &[(&str, &str)] = &[(
    "size(self) > 0",
    "an empty list would be read as no condition at all; name a value, or leave the field out",
)];
const PRINCIPAL: &[(&str, &str)] = &[(
    "!self.startsWith('spiffe://')",
    "a principal is written without spiffe://, as in cluster.local/ns/shop/sa/cart",
)];
const ACCOUNT: &[(&str, &str)] = &[(
    "!self.startsWith('*') && !self.endsWith('*')",
    "a service account is named in full, as cart or shop/cart; patterns are for principals and namespaces",
)];
const ADDRESSES: &[(&str, &str)] =
    &[("isIP(self) || isCIDR(self)", "write an address or a CIDR block, such as 192.0.2.7 or 10.0.0.0/8")];
const PORT: &[(&str, &str)] = &[(
    "self.matches('^[1-9][0-9]{0,4}$') && int(self) <= 65535",
    "write the number of a port, from 1 to 65535",
)];

/// For the lists of names of a source or an operation, and what is in them.
macro_rules! lists {
    ($parent:literal: $($field:literal $bounds:ident $rules:expr),* $(,)?) => {
        [$(
            At { path: concat!($parent, ".", $field), bounds: LIST, rules: SOME },
            At { path: concat!($parent, ".", $field, "[]"), bounds: $bounds, rules: $rules },
        )*]
    };
}

const PORT_TEXT: &[(&str, u64)] = &[("maxLength", 5)];
const BLOCK_TEXT: &[(&str, u64)] = &[("maxLength", BLOCK)];
const ACCOUNT_TEXT: &[(&str, u64)] = &[("minLength", 1), ("maxLength", ACCOUNT_NAME)];
const PATH: &[(&str, u64)] = &[("minLength", 1), ("maxLength", 4096)];
const ADDRESS_TEXT: &[(&str, u64)] = &[("minLength", 1), ("maxLength", 253)];
const ADDRESS: &[(&str, &str)] =
    &[("!self.startsWith('unix:')", "nobody on another node can reach a Unix socket; write an address")];
const SELECTED: &[(&str, &str)] = &[("size(self) > 0", "without labels it selects nobody; name some")];

const SELECTOR: At = At {
    path: "selector.matchLabels",
    bounds: &[("maxProperties", 64)],
    rules: &[(
        "self.all(key, size(key) > 0 && !self[key].contains('*'))",
        "labels are compared letter by letter; write out a value instead of *, or leave the selector out to choose all pods",
    )],
};
const SELECTOR_VALUE: At = At { path: "selector.matchLabels{}", bounds: &[("maxLength", 63)], rules: &[] };

const POLICY: &[At] = &[
    SELECTOR,
    SELECTOR_VALUE,
    At {
        path: "",
        bounds: &[],
        rules: &[
            (
                "!has(self.selector) || !has(self.targetRef) && !has(self.targetRefs)",
                "selector chooses pods, and targetRefs what a waypoint serves: keep one of them",
            ),
            (
                "!has(self.targetRef) || !has(self.targetRefs)",
                "targetRef is the older form of targetRefs: keep targetRefs",
            ),
            (
                "has(self.action) && self.action == 'CUSTOM' ? has(self.provider) && has(self.provider.name) : !has(self.provider)",
                "CUSTOM and provider.name belong together, and no other action has a provider",
            ),
            (
                "!has(self.action) || self.action == 'ALLOW' || has(self.rules) && size(self.rules) > 0",
                "without rules it applies to nothing; say to what, or with `rules: [{}]` to everything",
            ),
        ],
    },
    At { path: "targetRefs", bounds: &[("maxItems", 16)], rules: SOME },
    At { path: "targetRefs[]", bounds: &[], rules: TARGET },
    At { path: "targetRef", bounds: &[], rules: TARGET },
    At { path: "rules", bounds: &[("maxItems", RULES)], rules: &[] },
    At {
        path: "rules[]",
        bounds: &[],
        rules: &[
            ("!has(self.from) || size(self.from) > 0", "from is empty; leave it out to mean everyone"),
            ("!has(self.to) || size(self.to) > 0", "to is empty; leave it out to mean every operation"),
        ],
    },
    At {
        path: "rules[].from",
        bounds: &[("maxItems", PARTS)],
        rules: &[("self.all(from, has(from.source))", "say in source who; leave from out to mean everyone")],
    },
    At {
        path: "rules[].to",
        bounds: &[("maxItems", PARTS)],
        rules: &[(
            "self.all(to, has(to.operation))",
            "say in operation what; leave to out to mean every operation",
        )],
    },
    At { path: "rules[].when", bounds: &[("maxItems", PARTS)], rules: &[] },
    At {
        path: "rules[].from[].source",
        bounds: &[],
        rules: &[(
            "has(self.principals) || has(self.notPrincipals) || has(self.requestPrincipals) || has(self.notRequestPrincipals) || \
             has(self.namespaces) || has(self.notNamespaces) || has(self.ipBlocks) || has(self.notIpBlocks) || \
             has(self.remoteIpBlocks) || has(self.notRemoteIpBlocks) || has(self.serviceAccounts) || has(self.notServiceAccounts)",
            "source names nobody; name principals, namespaces, serviceAccounts or ipBlocks, or leave from out to mean everyone",
        )],
    },
    At {
        path: "rules[].to[].operation",
        bounds: &[],
        rules: &[(
            "has(self.hosts) || has(self.notHosts) || has(self.ports) || has(self.notPorts) || has(self.methods) || \
             has(self.notMethods) || has(self.paths) || has(self.notPaths)",
            "operation names nothing; name ports, or leave to out to mean every operation",
        )],
    },
    At {
        path: "rules[].when[]",
        bounds: &[],
        rules: &[
            (
                "has(self.values) || has(self.notValues)",
                "a condition without values or notValues says nothing; add some, or leave it out",
            ),
            (
                "self.key in ['source.ip', 'source.namespace', 'source.principal', 'source.serviceAccount', 'remote.ip', \
                 'destination.ip', 'destination.port', 'connection.sni', 'request.auth.principal', 'request.auth.audiences', \
                 'request.auth.presenter'] || self.key.startsWith('request.headers[') || \
                 self.key.startsWith('request.auth.claims[') || self.key.startsWith('experimental.')",
                "no such attribute; node proxies know source.ip, source.namespace, source.principal, destination.ip and \
                 destination.port, and waypoints those of requests too",
            ),
        ],
    },
    At { path: "rules[].when[].key", bounds: &[("minLength", 1), ("maxLength", 256)], rules: &[] },
    At { path: "rules[].when[].values", bounds: LIST, rules: SOME },
    At { path: "rules[].when[].notValues", bounds: LIST, rules: SOME },
];

const TARGET: &[(&str, &str)] = &[
    ("has(self.kind) && has(self.name)", "name the kind and the name of what the policy is attached to"),
    ("!has(self.__namespace__)", "a policy is attached to what is in its own namespace: leave namespace out"),
];

/// The rules of an AuthorizationPolicy.
pub(super) const AUTHORIZATION_POLICY: &[&[At]] = &[
    POLICY,
    &lists!("rules[].from[].source":
        "principals" NAMED PRINCIPAL, "notPrincipals" NAMED PRINCIPAL,
        "requestPrincipals" NAMED &[], "notRequestPrincipals" NAMED &[],
        "namespaces" NAMED &[], "notNamespaces" NAMED &[],
        "ipBlocks" BLOCK_TEXT ADDRESSES, "notIpBlocks" BLOCK_TEXT ADDRESSES,
        "remoteIpBlocks" BLOCK_TEXT ADDRESSES, "notRemoteIpBlocks" BLOCK_TEXT ADDRESSES,
        "serviceAccounts" ACCOUNT_TEXT ACCOUNT, "notServiceAccounts" ACCOUNT_TEXT ACCOUNT,
    ),
    &lists!("rules[].to[].operation":
        "ports" PORT_TEXT PORT, "notPorts" PORT_TEXT PORT,
        "hosts" NAMED &[], "notHosts" NAMED &[],
        "methods" NAMED &[], "notMethods" NAMED &[],
        "paths" PATH &[], "notPaths" PATH &[],
    ),
];

/// The rules of a PeerAuthentication.
pub(super) const PEER_AUTHENTICATION: &[&[At]] = &[&[
    SELECTOR,
    SELECTOR_VALUE,
    At {
        path: "",
        bounds: &[],
        rules: &[(
            "!has(self.portLevelMtls) || has(self.selector) && has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0",
            "portLevelMtls counts only beside a selector; add one, or set mtls.mode for all ports",
        )],
    },
    At {
        path: "portLevelMtls",
        bounds: &[("minProperties", 1), ("maxProperties", 64)],
        rules: &[(
            "self.all(key, key.matches('^[1-9][0-9]{0,4}$') && int(key) <= 65535)",
            "write the number of a port, from 1 to 65535",
        )],
    },
]];

/// The rules of a ServiceEntry.
pub(super) const SERVICE_ENTRY: &[&[At]] = &[&[
    At {
        path: "",
        bounds: &[],
        rules: &[
            ("has(self.hosts) && size(self.hosts) > 0", "name at least one host"),
            (
                "!has(self.workloadSelector) || !has(self.endpoints)",
                "workloadSelector finds who serves it, and endpoints lists them: keep one of them",
            ),
            (
                "!has(self.endpoints) || has(self.resolution) && self.resolution != 'NONE'",
                "resolution NONE goes where was dialled and has no endpoints; use STATIC",
            ),
            (
                "!has(self.resolution) || self.resolution != 'STATIC' || has(self.endpoints) || has(self.workloadSelector)",
                "resolution STATIC needs endpoints, or a workloadSelector that finds some",
            ),
        ],
    },
    At { path: "hosts", bounds: &[("maxItems", 256)], rules: &[] },
    At {
        path: "hosts[]",
        bounds: &[("minLength", 1), ("maxLength", 253)],
        rules: &[
            ("self != '*'", "* would name every host there is; name a domain, as in *.example.com"),
            (
                "self.matches('^([*][.])?[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?([.][a-z0-9_]([-a-z0-9_]*[a-z0-9_])?)*$') || self == '*'",
                "write a DNS name in lower case, of which only the first label may be *",
            ),
        ],
    },
    At { path: "addresses", bounds: &[("maxItems", 256)], rules: &[] },
    At { path: "addresses[]", bounds: BLOCK_TEXT, rules: ADDRESSES },
    At {
        path: "ports",
        bounds: &[("maxItems", 256)],
        rules: &[
            ("self.all(a, self.exists_one(b, a.number == b.number))", "a number stands for one port only"),
            ("self.all(a, self.exists_one(b, a.name == b.name))", "each port has a name of its own"),
        ],
    },
    At { path: "ports[].number", bounds: &[("minimum", 1)], rules: &[] },
    At { path: "ports[].targetPort", bounds: &[("minimum", 1)], rules: &[] },
    At { path: "ports[].name", bounds: &[("minLength", 1), ("maxLength", 63)], rules: &[] },
    At { path: "endpoints", bounds: &[("maxItems", 4096)], rules: &[] },
    At {
        path: "endpoints[]",
        bounds: &[],
        rules: &[(
            "has(self.address) || has(self.network)",
            "an endpoint has an address, or a network that it is in",
        )],
    },
    At { path: "endpoints[].address", bounds: ADDRESS_TEXT, rules: ADDRESS },
    At { path: "endpoints[].ports", bounds: &[("maxProperties", 128)], rules: &[] },
    At { path: "endpoints[].ports{}", bounds: &[("minimum", 1)], rules: &[] },
    At { path: "workloadSelector.labels", bounds: &[("maxProperties", 256)], rules: SELECTED },
    At { path: "workloadSelector.labels{}", bounds: &[("maxLength", 63)], rules: &[] },
    At { path: "exportTo", bounds: &[("maxItems", 256)], rules: &[] },
    At {
        path: "exportTo[]",
        bounds: &[("maxLength", 63)],
        rules: &[(
            "self in ['.', '*', '~'] || self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "write the name of a namespace, . for its own, or * for all",
        )],
    },
]];

/// The rules of a WorkloadEntry.
pub(super) const WORKLOAD_ENTRY: &[&[At]] = &[&[
    At {
        path: "",
        bounds: &[],
        rules: &[(
            "has(self.address) || has(self.network)",
            "a workload has an address, or a network that it is in",
        )],
    },
    At { path: "address", bounds: ADDRESS_TEXT, rules: ADDRESS },
    At { path: "ports", bounds: &[("maxProperties", 128)], rules: &[] },
    At { path: "ports{}", bounds: &[("minimum", 1)], rules: &[] },
    At { path: "labels", bounds: &[("maxProperties", 256)], rules: &[] },
]];

/// Writes bounds and rules into a schema.
pub(super) fn refine(schema: &mut Value, places: &[&[At]]) {
    for At { path, bounds, rules } in places.iter().copied().flatten() {
        let place = at(schema, path);
        for (name, bound) in *bounds {
            place[*name] = (*bound).into();
        }
        let rule = |(rule, message): &(&str, &str)| json!({"rule": rule, "message": message});
        if !rules.is_empty() {
            place["x-kubernetes-validations"] = rules.iter().map(rule).collect();
        }
    }
}

/// The schema of what is at `path`.
fn at<'a>(schema: &'a mut Value, path: &str) -> &'a mut Value {
    let path = path.replace("[]", ".[]").replace("{}", ".{}");
    let steps = path.split('.').filter(|step| !step.is_empty());
    steps.fold(schema, |schema, step| {
        let next = match step {
            "[]" => schema.get_mut("items"),
            "{}" => schema.get_mut("additionalProperties"),
            name => schema.get_mut("properties").and_then(|properties| properties.get_mut(name)),
        };
        next.unwrap_or_else(|| panic!("{path}: the type has no {step}"))
    })
}
