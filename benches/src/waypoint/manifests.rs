//! What the mesh is told: the Gateway, the routes that every request follows, and crowds of routes and endpoints. Pure.

use std::net::{IpAddr, Ipv4Addr};

use super::load::message::{RULE, SECRET, WEIGHTS};

/// The namespace of everything.
pub(crate) const NAMESPACE: &str = "shop";
/// Ports of the services: HTTP/1.1, and HTTP/2.
pub(crate) const HTTP_PORT: u16 = 81;
pub(crate) const HTTP2_SERVICE_PORT: u16 = 82;
/// What the routes match that all requests follow.
pub(crate) const ROUTED_PREFIX: &str = "/bench";
/// The shares of both backends.
pub(crate) const SHARES: [u32; 2] = [90, 10];
/// Where more routes are made.
const CROWDED: (&str, u16) = ("server", HTTP_PORT);
/// Rules of one HTTPRoute at most (Gateway API).
const RULES_MAX: usize = 16;

/// Endpoints of one slice at most (Kubernetes).
const SLICE_MAX: usize = 1000;

/// What asks for the waypoint.
pub(crate) const GATEWAY: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: all}}
spec:
  gatewayClassName: airglow-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
";

/// What becomes of requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Routes {
    /// Rules that match other paths.
    pub(crate) others: usize,
    /// What the answers' header says instead of the shares.
    pub(crate) mark: Option<String>,
}

impl Routes {
    /// HTTPRoutes of a service, for each of its ports. None has more rules than one may have.
    pub(crate) fn of(&self, service: &str) -> String {
        let mut text = String::new();
        for port in [HTTP_PORT, HTTP2_SERVICE_PORT] {
            let others = if (service, port) == CROWDED { self.others } else { 0 };
            for first in (0..others).step_by(RULES_MAX) {
                text += &head(&format!("{service}-{port}-{first}"), service, port);
                for number in first..others.min(first + RULES_MAX) {
                    let path = other_path(number);
                    text += &format!(
                        "  - {{matches: [{{path: {{type: Exact, value: {path}}}}}], backendRefs: [{{name: {service}-one, port: {port}}}]}}\n"
                    );
                }
                text += "---\n";
            }
            text += &head(&format!("{service}-{port}"), service, port);
            text += &self.rules(service, port);
            text += "---\n";
        }
        text
    }

    fn rules(&self, service: &str, port: u16) -> String {
        let mark = self.mark.as_deref().unwrap_or(WEIGHTS.1);
        let ([one, two], (rule, value), (weights, _)) = (SHARES, RULE, WEIGHTS);
        format!(
            "  - matches: [{{headers: [{{name: x-canary, value: please}}]}}]
    backendRefs: [{{name: {service}-two, port: {port}}}]
  - matches: [{{path: {{type: PathPrefix, value: /old}}}}]
    filters:
    - type: RequestRedirect
      requestRedirect: {{statusCode: 301, hostname: new.shop, path: {{type: ReplacePrefixMatch, replacePrefixMatch: /new}}}}
  - matches: [{{path: {{type: PathPrefix, value: {ROUTED_PREFIX}}}}}]
    timeouts: {{request: 10s, backendRequest: 5s}}
    retry: {{codes: [503], attempts: 2}}
    filters:
    - {{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: {rule}, value: {value}}}], remove: [{SECRET}]}}}}
    - {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: {weights}, value: \"{mark}\"}}]}}}}
    backendRefs: [{{name: {service}-one, port: {port}, weight: {one}}}, {{name: {service}-two, port: {port}, weight: {two}}}]
  - backendRefs: [{{name: {service}-one, port: {port}}}]
"
        )
    }
}

fn head(name: &str, service: &str, port: u16) -> String {
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: {service}, port: {port}}}]
  rules:
"
    )
}

/// A guarded service of so many endpoints: files, by name.
pub(crate) fn crowd(endpoints: usize) -> Vec<(String, String)> {
    let service = format!(
        "\
apiVersion: v1
kind: Service
metadata: {{name: crowd, namespace: {NAMESPACE}, labels: {{istio.io/use-waypoint: waypoint}}}}
spec: {{clusterIP: 10.96.200.200, clusterIPs: [10.96.200.200], selector: {{app: crowd}}, ports: [{{name: http, port: 80, targetPort: 8080, protocol: TCP}}]}}
"
    );
    let slices = (0..endpoints)
        .step_by(SLICE_MAX)
        .map(|first| (format!("crowd-{first}.yaml"), slice(first, endpoints.min(first + SLICE_MAX))));
    slices.chain([("crowd.yaml".to_owned(), service)]).collect()
}

/// A slice of them, and the pods.
fn slice(first: usize, end: usize) -> String {
    let (mut endpoints, mut pods) = (String::new(), String::new());
    for number in first..end {
        let ip = other_ip(number);
        endpoints += &format!(
            "- {{addresses: [{ip}], conditions: {{ready: true}}, nodeName: n1, targetRef: {{kind: Pod, name: crowd-{number}, namespace: {NAMESPACE}, uid: crowd-{number}}}}}\n"
        );
        pods += &format!(
            "\
---
apiVersion: v1
kind: Pod
metadata: {{name: crowd-{number}, namespace: {NAMESPACE}, uid: crowd-{number}, labels: {{app: crowd, networking.istio.io/tunnel: http}}}}
spec: {{nodeName: n1, serviceAccountName: server, containers: [{{name: main, image: lab}}]}}
status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}
"
        );
    }
    format!(
        "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: crowd-{first}, namespace: {NAMESPACE}, labels: {{kubernetes.io/service-name: crowd}}}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}]
endpoints:
{endpoints}{pods}"
    )
}

/// A path that nobody asks for.
pub(crate) fn other_path(number: usize) -> String {
    format!("/other/{number}")
}

/// An endpoint that nobody answers at.
pub(crate) fn other_ip(number: usize) -> IpAddr {
    let base = u32::from(Ipv4Addr::new(10, 250, 0, 1));
    Ipv4Addr::from(base + u32::try_from(number).unwrap_or(u32::MAX)).into()
}
