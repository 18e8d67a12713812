//! Rows about copies of requests. What a copy asks for, the server counts by its path.

use super::{Check, Guarded, SOON, Seen, service};

const RULES: &str = "
  - matches: [{path: {type: PathPrefix, value: /fails/0/once}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: two, port: 80}}}]
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /fails/0/twice}}]
    filters:
    - {type: RequestMirror, requestMirror: {backendRef: {name: two, port: 80}}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: headless, port: 80}}}
    backendRefs: [{name: one, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /fails/0/half}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: two, port: 80}, percent: 50}}]
    backendRefs: [{name: one, port: 80}]
";

/// Makes the Service and returns the route.
pub(super) fn prepare(guarded: &Guarded) -> String {
    guarded.mesh.lab.add_service(service("mirrored")).expect("a service");
    super::route("mirrored", RULES)
}

/// HTTPRouteRequestMirror, HTTPRouteRequestMultipleMirrors, HTTPRouteRequestPercentageMirror.
pub(super) fn hold(guarded: &Guarded) {
    let client = &guarded.client;
    let host = "mirrored.shop";
    let is = |check: Check<'_>| Seen::of(client, host, check.0).complaint(host, &check);
    lab::wait_until("mirrors", SOON, || is(Check(&[super::IN_FORCE], &["status=308"]))).expect("a route");
    let second = format!("{}:8080", guarded.servers[1].ip());
    // How many copies of a path have arrived. Each look counts as a request as well.
    let arrived = |path: &str, looks: u64| {
        let asked = Seen::of(client, &second, &[path]).value("asked");
        asked.parse::<u64>().expect("a number") - looks
    };
    let until = |path: &str, copies: u64| {
        let mut looks = 0;
        let arrived = || {
            looks += 1;
            match arrived(path, looks) {
                so_far if so_far >= copies => Ok(so_far),
                so_far => Err(so_far),
            }
        };
        lab::wait_until(&format!("copies of {path}"), SOON, arrived).expect("copies")
    };
    for (path, copies) in [("/fails/0/once/a", 1), ("/fails/0/twice/a", 2)] {
        is(Check(&[path], &["server=one", "asked=1"])).expect("the original is answered as ever");
        assert_eq!(until(path, copies), copies, "{path}");
    }
    // Half of 200, with five standard deviations to either side.
    super::repeated(client, "http://mirrored.shop/fails/0/half/a", 200);
    assert!((65..=135).contains(&until("/fails/0/half/a", 65)));
}
