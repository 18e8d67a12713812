//! What the API server refuses of a TrafficPolicy, and the sentence that it says.

use super::rules::{At, SOME};

const NAME: &[(&str, u64)] = &[("minLength", 1), ("maxLength", 253)];
const DURATION_TEXT: &[(&str, u64)] = &[("minLength", 1), ("maxLength", 24)];
const DURATION: &[(&str, &str)] =
    &[("self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$')", "write a duration as 1h30m, 5s or 250ms")];
const PERCENT: &[(&str, u64)] = &[("maximum", 100)];
const SHARE: (&str, &str) =
    ("!has(self.percent) || !has(self.fraction)", "percent and fraction say the same: keep one of them");
const FRACTION: &[(&str, &str)] = &[(
    "self.numerator <= (has(self.denominator) ? self.denominator : 100)",
    "a share is at most the whole: numerator is at most denominator, which is 100 when it is left out",
)];

/// The rules of a TrafficPolicy.
pub(super) const TRAFFIC_POLICY: &[&[At]] = &[TARGETS, FAULT, BALANCING];

const TARGETS: &[At] = &[
    At {
        path: "",
        bounds: &[],
        rules: &[
            ("has(self.targetRefs) && size(self.targetRefs) > 0", "name in targetRefs what it is about"),
            ("has(self.fault) || has(self.balancing)", "it sets nothing; add fault or balancing"),
        ],
    },
    At { path: "targetRefs", bounds: &[("maxItems", 16)], rules: &[] },
    At {
        path: "targetRefs[]",
        bounds: &[],
        rules: &[
            (
                "!has(self.group) || self.group == '' ? self.kind == 'Service' : self.group == 'gateway.networking.k8s.io' && \
                 self.kind in ['HTTPRoute', 'GRPCRoute', 'TCPRoute', 'TLSRoute', 'Gateway']",
                "a target is a Service, or of group gateway.networking.k8s.io an HTTPRoute, GRPCRoute, TCPRoute, TLSRoute or Gateway",
            ),
            (
                "!has(self.sectionName) || self.kind.endsWith('Route')",
                "sectionName is the name of a route's rule; leave it out for other targets",
            ),
        ],
    },
    At { path: "targetRefs[].group", bounds: &[("maxLength", 253)], rules: &[] },
    At { path: "targetRefs[].kind", bounds: &[("minLength", 1), ("maxLength", 63)], rules: &[] },
    At { path: "targetRefs[].name", bounds: NAME, rules: &[] },
    At { path: "targetRefs[].sectionName", bounds: NAME, rules: &[] },
];

const FAULT: &[At] = &[
    At {
        path: "fault",
        bounds: &[],
        rules: &[("has(self.delay) || has(self.abort)", "a fault does something: add delay or abort")],
    },
    At {
        path: "fault.until",
        bounds: &[("maxLength", 40)],
        rules: &[(
            "self.matches('^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]([.][0-9]+)?(Z|[+-][0-2][0-9]:[0-5][0-9])$')",
            "write when the fault ends as 2026-12-01T18:00:00Z",
        )],
    },
    At { path: "fault.matches", bounds: &[("maxItems", 16)], rules: SOME },
    At {
        path: "fault.matches[]",
        bounds: &[],
        rules: &[(
            "has(self.headers) && size(self.headers) > 0 || has(self.clients) && size(self.clients) > 0",
            "a match has conditions: add headers or clients, or leave matches out to mean every request",
        )],
    },
    At { path: "fault.matches[].headers", bounds: &[("maxItems", 16)], rules: &[] },
    At {
        path: "fault.matches[].headers[].name",
        bounds: &[("minLength", 1), ("maxLength", 256)],
        rules: &[(
            "self.matches(\"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$\")",
            "write the name of a header, as x-user",
        )],
    },
    At { path: "fault.matches[].headers[].value", bounds: &[("maxLength", 4096)], rules: &[] },
    At { path: "fault.matches[].clients", bounds: &[("maxItems", 64)], rules: &[] },
    At {
        path: "fault.matches[].clients[]",
        bounds: &[],
        rules: &[(
            "has(self.namespace) || has(self.serviceAccount)",
            "a client has a namespace, a serviceAccount or both",
        )],
    },
    At { path: "fault.matches[].clients[].namespace", bounds: NAME, rules: &[] },
    At { path: "fault.matches[].clients[].serviceAccount", bounds: NAME, rules: &[] },
    At { path: "fault.delay", bounds: &[], rules: &[SHARE] },
    At { path: "fault.delay.duration", bounds: DURATION_TEXT, rules: DURATION },
    At { path: "fault.delay.percent", bounds: PERCENT, rules: &[] },
    At { path: "fault.delay.fraction", bounds: &[], rules: FRACTION },
    At { path: "fault.delay.fraction.denominator", bounds: &[("minimum", 1)], rules: &[] },
    At {
        path: "fault.abort",
        bounds: &[],
        rules: &[
            SHARE,
            (
                "[has(self.httpStatus), has(self.grpcStatus), has(self.reset)].exists_one(it, it) && (!has(self.reset) || self.reset)",
                "abort answers in one way: keep one of httpStatus, grpcStatus and `reset: true`",
            ),
        ],
    },
    At { path: "fault.abort.httpStatus", bounds: &[("minimum", 200), ("maximum", 599)], rules: &[] },
    At {
        path: "fault.abort.grpcStatus",
        bounds: &[("maxLength", 32)],
        rules: &[(
            "self in ['CANCELLED', 'UNKNOWN', 'INVALID_ARGUMENT', 'DEADLINE_EXCEEDED', 'NOT_FOUND', 'ALREADY_EXISTS', \
             'PERMISSION_DENIED', 'RESOURCE_EXHAUSTED', 'FAILED_PRECONDITION', 'ABORTED', 'OUT_OF_RANGE', 'UNIMPLEMENTED', \
             'INTERNAL', 'UNAVAILABLE', 'DATA_LOSS', 'UNAUTHENTICATED']",
            "write the name of a status of gRPC, as UNAVAILABLE",
        )],
    },
    At { path: "fault.abort.percent", bounds: PERCENT, rules: &[] },
    At { path: "fault.abort.fraction", bounds: &[], rules: FRACTION },
    At { path: "fault.abort.fraction.denominator", bounds: &[("minimum", 1)], rules: &[] },
];

const BALANCING: &[At] = &[
    At {
        path: "balancing",
        bounds: &[],
        rules: &[(
            "has(self.hash) == (has(self.algorithm) && self.algorithm in ['RingHash', 'Maglev'])",
            "RingHash and Maglev need hash, which says what is hashed, and the others have no use for it",
        )],
    },
    At {
        path: "balancing.hash",
        bounds: &[],
        rules: &[(
            "[has(self.header), has(self.cookie), has(self.source)].exists_one(it, it) && (!has(self.source) || self.source)",
            "one thing is hashed: keep one of header, cookie and `source: true`",
        )],
    },
    At { path: "balancing.hash.header", bounds: &[("minLength", 1), ("maxLength", 256)], rules: &[] },
    At { path: "balancing.hash.cookie.name", bounds: &[("minLength", 1), ("maxLength", 256)], rules: &[] },
    At { path: "balancing.hash.cookie.ttl", bounds: DURATION_TEXT, rules: DURATION },
];
