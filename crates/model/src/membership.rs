//! Whether a pod is to be in the mesh, and why: what it is, what it and its namespace say, and in which order that counts.
//!
//! Says nothing of whether it *is* in the mesh: its node proves that.

use std::collections::BTreeMap;
use std::fmt;

/// The label by which a pod or a namespace asks for the mesh (`ambient`) or refuses it (`none`).
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// The annotation that an injected sidecar leaves on its pod.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// The label of pods that speak tunnel protocols themselves; `http` among them is HBONE.
const TUNNEL: &str = "networking.istio.io/tunnel";

/// The label by which a pod says which Gateway it is made for.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Labels, or annotations.
pub type Marks = BTreeMap<String, String>;

/// What there is to know of a pod.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// The namespace's own [`DATAPLANE_MODE`].
    pub namespace_mode: Option<&'a str>,
    /// Whether the namespace is one that is never enrolled.
    pub is_excluded: bool,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// Whether it is a waypoint's.
    pub is_waypoint: bool,
    /// Its labels.
    pub labels: &'a Marks,
    /// Its annotations.
    pub annotations: &'a Marks,
}

/// Why a pod is to be in the mesh, or not. `Display` is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason<'a> {
    /// Its namespace is never enrolled.
    Excluded(&'a str),
    /// It shares the node's network, which can't be captured for one pod.
    HostNetwork,
    /// Its namespace asks for the mesh (`true`), or refuses it.
    Namespace(&'a str, bool),
    /// It speaks HBONE itself.
    Native,
    /// It asks for the mesh itself (`true`), or refuses it.
    Pod(bool),
    /// A sidecar has its traffic already.
    Sidecar,
    /// Nobody asks for the mesh.
    Unasked(&'a str),
    /// Its namespace says something that means nothing.
    Unclear(&'a str, &'a str),
    /// It is a waypoint's, which others' connections are led to.
    Waypoint,
}

impl<'a> Candidate<'a> {
    /// Whether the pod is to be enrolled. What can't be captured comes first, then the pod's word, then its namespace's.
    #[must_use]
    pub fn judge(&self) -> Reason<'a> {
        if self.host_network {
            return Reason::HostNetwork;
        }
        if self.is_excluded {
            return Reason::Excluded(self.namespace);
        }
        if self.annotations.contains_key(SIDECAR_STATUS) {
            return Reason::Sidecar;
        }
        if is_native(self.labels) {
            return Reason::Native;
        }
        if self.is_waypoint {
            return Reason::Waypoint;
        }
        match self.own_mode() {
            Some("ambient") => return Reason::Pod(true),
            Some("none") => return Reason::Pod(false),
            _ => {}
        }
        match self.namespace_mode {
            Some("ambient") => Reason::Namespace(self.namespace, true),
            Some("none") => Reason::Namespace(self.namespace, false),
            Some(other) => Reason::Unclear(self.namespace, other),
            None => Reason::Unasked(self.namespace),
        }
    }

    /// Whether the pod or its namespace asks for the mesh, whatever stands against it.
    #[must_use]
    pub fn is_asked_for(&self) -> bool {
        self.own_mode() == Some("ambient") || self.namespace_mode == Some("ambient")
    }

    fn own_mode(&self) -> Option<&'a str> {
        self.labels.get(DATAPLANE_MODE).map(String::as_str)
    }
}

impl Reason<'_> {
    /// Whether the pod is to be in the mesh.
    #[must_use]
    pub fn is_in(&self) -> bool {
        matches!(self, Self::Namespace(_, true) | Self::Pod(true))
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = |is_in: &bool| if *is_in { "ambient" } else { "none" };
        match self {
            Self::Excluded(namespace) => write!(f, "namespace {namespace} is never enrolled"),
            Self::HostNetwork => f.write_str("the pod shares the node's network (hostNetwork)"),
            Self::Namespace(namespace, is_in) => {
                write!(f, "label {DATAPLANE_MODE}={} on namespace {namespace}", mode(is_in))
            }
            Self::Native => write!(f, "the pod speaks HBONE itself (label {TUNNEL}=http)"),
            Self::Pod(is_in) => write!(f, "label {DATAPLANE_MODE}={} on the pod", mode(is_in)),
            Self::Sidecar => write!(f, "the pod has a sidecar (annotation {SIDECAR_STATUS})"),
            Self::Unasked(namespace) => {
                write!(f, "neither the pod nor namespace {namespace} has a label {DATAPLANE_MODE}")
            }
            Self::Unclear(namespace, said) => {
                write!(
                    f,
                    "label {DATAPLANE_MODE}={said} on namespace {namespace} is neither ambient nor none"
                )
            }
            Self::Waypoint => write!(f, "the pod is a waypoint's (label {GATEWAY_NAME})"),
        }
    }
}

/// Whether a pod, or a machine, with these labels terminates HBONE itself.
#[must_use]
pub fn is_native(labels: &Marks) -> bool {
    labels.get(TUNNEL).is_some_and(|protocols| protocols.split(',').any(|protocol| protocol.trim() == "http"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMBIENT: &str = "istio.io/dataplane-mode=ambient";

    /// `key=value` pairs.
    fn marks(text: &str) -> Marks {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[track_caller]
    fn check(labels: &str, namespace_mode: Option<&str>, expected: Reason<'_>) {
        let (labels, annotations) = (marks(labels), Marks::new());
        let pod = Candidate {
            namespace: "shop",
            namespace_mode,
            is_excluded: false,
            host_network: false,
            is_waypoint: false,
            labels: &labels,
            annotations: &annotations,
        };
        assert_eq!(pod.judge(), expected);
        // What can't be captured is not, whoever asks, in this order.
        let sidecar = marks("sidecar.istio.io/status={}");
        let with_sidecar = Candidate { annotations: &sidecar, ..pod };
        let excluded = Candidate { is_excluded: true, ..with_sidecar };
        assert_eq!(with_sidecar.judge(), Reason::Sidecar);
        let waypoint = Candidate { is_waypoint: true, ..pod };
        assert_eq!(waypoint.judge(), if expected == Reason::Native { expected } else { Reason::Waypoint });
        assert_eq!(excluded.judge(), Reason::Excluded("shop"));
        assert_eq!(Candidate { host_network: true, ..excluded }.judge(), Reason::HostNetwork);
    }

    #[test]
    fn the_pods_word_counts_before_its_namespaces() {
        check("", None, Reason::Unasked("shop"));
        check("", Some("ambient"), Reason::Namespace("shop", true));
        check("", Some("none"), Reason::Namespace("shop", false));
        check("", Some("Ambient"), Reason::Unclear("shop", "Ambient"));
        check(AMBIENT, Some("none"), Reason::Pod(true));
        check("istio.io/dataplane-mode=none", Some("ambient"), Reason::Pod(false));
        check("istio.io/dataplane-mode=odd", Some("ambient"), Reason::Namespace("shop", true));
        check(&format!("{AMBIENT} networking.istio.io/tunnel=tcp,http"), None, Reason::Native);
        check(&format!("{AMBIENT} networking.istio.io/tunnel=https"), None, Reason::Pod(true));
    }

    #[test]
    fn reasons_say_whether_the_pod_is_in() {
        assert!(Reason::Pod(true).is_in() && Reason::Namespace("a", true).is_in());
        assert!(!Reason::Pod(false).is_in() && !Reason::Sidecar.is_in() && !Reason::Unasked("a").is_in());
        assert_eq!(Reason::Pod(false).to_string(), "label istio.io/dataplane-mode=none on the pod");
    }
}
