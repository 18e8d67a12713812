//! What a user of the lab asks for: pods and services, in Kubernetes' words and with its defaults.

use std::collections::BTreeMap;

/// Labels or annotations.
pub type Map = BTreeMap<String, String>;

/// A pod to add to a node. It has no containers: programs are started in it one by one.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its namespace, made on first use.
    pub namespace: String,
    /// Its name, unique in the namespace.
    pub name: String,
    /// Its service account, made on first use.
    pub service_account: String,
    /// Labels, which services and policies select by.
    pub labels: Map,
    /// Annotations.
    pub annotations: Map,
    /// Container ports, which a service's target port may name.
    pub ports: Vec<ContainerPort>,
    /// Whether it shares its node's network namespace and addresses.
    pub host_network: bool,
    /// The last number of its addresses, for tests of address reuse; the next free one when absent.
    pub host_number: Option<u8>,
}

/// A port that a pod declares.
#[derive(Clone, Debug)]
pub struct ContainerPort {
    /// The name that a service's target port may refer to.
    pub name: String,
    /// The port number.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// The transport of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, Kubernetes' default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl PodSpec {
    /// A pod with the service account `default`, no labels and no declared ports.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            service_account: "default".into(),
            labels: Map::new(),
            annotations: Map::new(),
            ports: Vec::new(),
            host_network: false,
            host_number: None,
        }
    }

    /// Sets the service account.
    #[must_use]
    pub fn service_account(mut self, name: impl Into<String>) -> Self {
        self.service_account = name.into();
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// Declares a named TCP port.
    #[must_use]
    pub fn port(mut self, name: impl Into<String>, port: u16) -> Self {
        self.ports.push(ContainerPort { name: name.into(), port, protocol: Protocol::Tcp });
        self
    }

    /// Makes it share the node's network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }
}

/// A service to add to the cluster.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Its namespace, made on first use.
    pub namespace: String,
    /// Its name, unique in the namespace.
    pub name: String,
    /// Labels of the pods behind it. Empty selects none.
    pub selector: Map,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Whether it has no address of its own and its name gives the pods' addresses.
    pub headless: bool,
    /// Whether pods that are not ready count as endpoints.
    pub publish_not_ready: bool,
    /// Labels of the service itself.
    pub labels: Map,
    /// Annotations of the service itself.
    pub annotations: Map,
}

/// A port of a service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Its name, unique in the service.
    pub name: String,
    /// The port at the service's address.
    pub port: u16,
    /// The port of the pods behind it.
    pub target: TargetPort,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// Which port of a pod a service port leads to.
#[derive(Clone, Debug)]
pub enum TargetPort {
    /// This number.
    Number(u16),
    /// The container port of this name, which may differ from pod to pod.
    Name(String),
}

impl From<u16> for TargetPort {
    fn from(number: u16) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for TargetPort {
    fn from(name: &str) -> Self {
        Self::Name(name.into())
    }
}

impl ServiceSpec {
    /// A service with an address of its own, no ports and no pods yet.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            selector: Map::new(),
            ports: Vec::new(),
            headless: false,
            publish_not_ready: false,
            labels: Map::new(),
            annotations: Map::new(),
        }
    }

    /// Selects pods by one more label.
    #[must_use]
    pub fn selector(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.selector.insert(key.into(), value.into());
        self
    }

    /// Adds a TCP port that leads to `target` (a number, or the name of a container port).
    #[must_use]
    pub fn port(mut self, name: impl Into<String>, port: u16, target: impl Into<TargetPort>) -> Self {
        let (name, target) = (name.into(), target.into());
        self.ports.push(ServicePort { name, port, target, protocol: Protocol::Tcp });
        self
    }

    /// Gives it no address of its own.
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.headless = true;
        self
    }

    /// Adds a label to the service itself.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Adds an annotation to the service itself.
    #[must_use]
    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }
}
