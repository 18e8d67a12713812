//! The Gateway API's own conformance suite for meshes, with every feature of them that the mesh has.

use crate::Namespace;
use crate::command_line::{airglow, said};
use crate::mesh::{AMBIENT, meshed};

/// Where the suite's services and most of its clients are.
const NAMESPACE: &str = "gateway-conformance-mesh";

/// What the suite may test: what a mesh must have, all nine of what it may have, and what some of the mesh's cases need besides.
const FEATURES: [&str; 17] = [
    "Mesh",
    "HTTPRoute",
    "GRPCRoute",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
];

#[test]
fn the_gateway_apis_suite_for_meshes_passes() {
    let cluster = meshed();
    cluster.load_waypoint_image().expect("an image of what was built: cargo build -p waypoint");
    cluster.add_gateway_api().expect("the Gateway API's definitions");
    cluster.load_conformance_image().expect("the image of the suite's pods");
    let own = Namespace::new(cluster, NAMESPACE);
    own.kubectl(&["label", "namespace", NAMESPACE, &format!("{AMBIENT}=ambient")]);
    let applied = airglow(cluster, &["waypoint", "apply", "-n", NAMESPACE, "--enroll-namespace"]);
    assert!(applied.status.success(), "{}", said(&applied));

    let class = own.get(&["gatewayclass", "airglow-waypoint"]);
    let features = class["status"]["supportedFeatures"].as_array().expect("a list");
    let mut features: Vec<_> = features.iter().filter_map(|feature| feature["name"].as_str()).collect();
    features.sort_unstable();
    let mut tested = FEATURES;
    tested.sort_unstable();
    assert_eq!(features, tested, "what the class promises is what is tested");

    let report = cluster.dir().join("conformance.yaml");
    let run = cluster
        .conformance(&[
            "--conformance-profiles=MESH-HTTP,MESH-GRPC",
            &format!("--supported-features={}", FEATURES.join(",")),
            // What the suite makes itself is to be in the mesh, and guarded.
            &format!("--namespace-labels={AMBIENT}=ambient,istio.io/use-waypoint=waypoint"),
            "--organization=airglow",
            "--project=airglow",
            "--url=https://airglow.dev",
            "--version=main",
            "--contact=https://airglow.dev",
            &format!("--report-output={}", report.display()),
        ])
        .expect("it runs");
    let failed: Vec<&str> =
        run.said.lines().filter(|line| line.trim_start().starts_with("--- FAIL")).collect();
    assert!(run.passed, "{failed:#?}\n{}", run.said);
    let report = std::fs::read_to_string(report).expect("a report");
    for profile in ["MESH-HTTP", "MESH-GRPC"] {
        assert!(report.contains(&format!("name: {profile}")), "{report}");
    }
    // A case that the suite leaves out because a feature is misspelt passes nothing. What is about gateways is left out.
    let left_out = run.said.lines().filter(|line| line.contains("--- SKIP: Conformance/Mesh")).count();
    assert_eq!(left_out, 0, "{}", run.said);
    assert!(!report.contains("result: failure") && !report.contains("result: partial"), "{report}");
}
