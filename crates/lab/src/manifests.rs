//! The cluster as Kubernetes YAML: pure rendering, and a directory that always holds whole files.
//!
//! One object per file. What an API server would add and the mesh does not read is left out.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::error::{LabError, cannot};
use crate::spec::{Map, Protocol, ServiceSpec, TargetPort};
use crate::state::{NodeRecord, PodRecord, ServiceRecord, State};
use crate::topology;

/// The directory that a controller reads.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: PathBuf,
    /// On the same file system, not watched by anybody.
    staging: PathBuf,
    written: BTreeMap<String, String>,
}

impl Directory {
    pub(crate) fn new(dir: PathBuf, staging: PathBuf) -> Self {
        Self { dir, staging, written: BTreeMap::new() }
    }

    /// Makes the directory hold exactly these files. Each changes atomically; unchanged ones are not touched.
    pub(crate) fn update(&mut self, files: BTreeMap<String, String>) -> Result<(), LabError> {
        for (name, text) in &files {
            if self.written.get(name) == Some(text) {
                continue;
            }
            let (staged, path) = (self.staging.join(name), self.dir.join(name));
            fs::write(&staged, text).map_err(cannot(format!("write {}", staged.display())))?;
            fs::rename(&staged, &path).map_err(cannot(format!("replace {}", path.display())))?;
        }
        for name in self.written.keys().filter(|name| !files.contains_key(*name)) {
            let path = self.dir.join(name);
            fs::remove_file(&path).map_err(cannot(format!("remove {}", path.display())))?;
        }
        self.written = files;
        Ok(())
    }
}

/// Every object of the cluster, by file name.
pub(crate) fn render(state: &State) -> BTreeMap<String, String> {
    let mut files = state.verbatim.clone();
    let mut add = |object: Value| {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let kind = text("/kind").to_lowercase();
        let parts = [kind.as_str(), text("/metadata/namespace"), text("/metadata/name")];
        let name = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_");
        let yaml = serde_saphyr::to_string(&object).expect("a tree of strings, numbers and maps is YAML");
        files.insert(format!("{name}.yaml"), yaml);
    };
    for (name, labels) in &state.namespaces {
        let labels = with(labels, "kubernetes.io/metadata.name", name);
        add(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
    }
    for (namespace, name) in state.service_accounts() {
        let metadata = json!({"name": name, "namespace": namespace});
        add(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}));
    }
    for record in &state.nodes {
        add(node(record, state.ipv6));
    }
    for record in state.pods.values() {
        add(pod(record, &state.nodes[record.node], state.ipv6));
    }
    for record in state.services.values() {
        add(service(record, state.ipv6));
        for slice in endpoint_slices(state, &record.spec) {
            add(slice);
        }
    }
    files
}

fn node(node: &NodeRecord, ipv6: bool) -> Value {
    let (cidr4, cidr6) = topology::pod_cidrs(node.number);
    let cidrs = if ipv6 { vec![&cidr4, &cidr6] } else { vec![&cidr4] };
    let addresses: Vec<_> =
        node.ips(ipv6).iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": with(&node.labels, "kubernetes.io/hostname", &node.name)},
        "spec": {"podCIDR": cidr4, "podCIDRs": cidrs},
        "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn pod(pod: &PodRecord, node: &NodeRecord, ipv6: bool) -> Value {
    let spec = &pod.spec;
    let ports: Vec<_> = spec
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "containerPort": port.port, "protocol": protocol(port.protocol)}))
        .collect();
    let ips: Vec<_> = pod.ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": spec.name,
            "namespace": spec.namespace,
            "uid": pod.uid,
            "labels": spec.labels,
            "annotations": spec.annotations,
        },
        "spec": {
            "nodeName": node.name,
            "serviceAccountName": spec.service_account,
            "hostNetwork": spec.host_network,
            "containers": [{"name": "main", "image": "lab", "ports": ports}],
        },
        "status": {
            "phase": "Running",
            "hostIP": node.ips(ipv6)[0].to_string(),
            "podIP": pod.ips[0].to_string(),
            "podIPs": ips,
            "conditions": [{"type": "Ready", "status": if pod.ready { "True" } else { "False" }}],
        },
    });
    if let Some(time) = &pod.deleted_at {
        object["metadata"]["deletionTimestamp"] = json!(time);
    }
    object
}

fn service(service: &ServiceRecord, ipv6: bool) -> Value {
    let spec = &service.spec;
    let vips: Vec<_> = match service.vips {
        Some(vips) => vips.ips(ipv6).iter().map(IpAddr::to_string).collect(),
        None => vec!["None".to_owned()],
    };
    let ports: Vec<_> = spec
        .ports
        .iter()
        .map(|port| {
            let target = match &port.target {
                TargetPort::Number(number) => json!(number),
                TargetPort::Name(name) => json!(name),
            };
            let protocol = protocol(port.protocol);
            json!({"name": port.name, "port": port.port, "targetPort": target, "protocol": protocol})
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": spec.name,
            "namespace": spec.namespace,
            "labels": spec.labels,
            "annotations": spec.annotations,
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": vips[0],
            "clusterIPs": vips,
            "ipFamilies": if ipv6 { vec!["IPv4", "IPv6"] } else { vec!["IPv4"] },
            "ipFamilyPolicy": if ipv6 { "PreferDualStack" } else { "SingleStack" },
            "selector": spec.selector,
            "publishNotReadyAddresses": spec.publish_not_ready,
            "ports": ports,
        },
    })
}

/// One slice per family and per set of port numbers: a named target port may differ from pod to pod.
fn endpoint_slices(state: &State, service: &ServiceSpec) -> Vec<Value> {
    type FamilyAndPorts = (bool, Vec<Option<u16>>);
    let mut groups: BTreeMap<FamilyAndPorts, Vec<(&PodRecord, IpAddr)>> = BTreeMap::new();
    for pod in state.selected(service) {
        let targets: Vec<_> = service.ports.iter().map(|port| pod.target(port)).collect();
        for ip in &pod.ips {
            groups.entry((ip.is_ipv6(), targets.clone())).or_default().push((pod, *ip));
        }
    }
    let slices = groups.into_iter().enumerate().map(|(i, ((v6, targets), pods))| {
        let ports: Vec<_> = service
            .ports
            .iter()
            .zip(targets)
            .filter_map(|(port, target)| {
                let protocol = protocol(port.protocol);
                target.map(|number| json!({"name": port.name, "port": number, "protocol": protocol}))
            })
            .collect();
        let endpoints: Vec<_> = pods.into_iter().map(|(pod, ip)| endpoint(state, service, pod, ip)).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{i}", service.name),
                "namespace": service.namespace,
                "labels": {"kubernetes.io/service-name": service.name},
            },
            "addressType": if v6 { "IPv6" } else { "IPv4" },
            "ports": ports,
            "endpoints": endpoints,
        })
    });
    slices.collect()
}

fn endpoint(state: &State, service: &ServiceSpec, pod: &PodRecord, ip: IpAddr) -> Value {
    let terminating = pod.deleted_at.is_some();
    let target = json!({
        "kind": "Pod", "name": pod.spec.name, "namespace": pod.spec.namespace, "uid": pod.uid,
    });
    json!({
        "addresses": [ip.to_string()],
        "conditions": {
            "ready": service.publish_not_ready || (pod.ready && !terminating),
            "serving": pod.ready,
            "terminating": terminating,
        },
        "nodeName": state.nodes[pod.node].name,
        "targetRef": target,
    })
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

fn with(labels: &Map, key: &str, value: &str) -> Map {
    let mut labels = labels.clone();
    labels.insert(key.into(), value.into());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::PodSpec;

    fn shop() -> State {
        let mut state = State { ipv6: true, ..State::default() };
        state.nodes.push(NodeRecord { name: "n1".into(), number: 1, labels: Map::new() });
        state.namespaces.insert("shop".into(), Map::new());
        for (name, port) in [("a", 8080), ("b", 9090)] {
            let spec =
                PodSpec::new("shop", name).label("app", "web").port("http", port).service_account("web");
            let ips = topology::pod(1, 2).ips(true);
            let record = PodRecord { uid: name.into(), spec, node: 0, ips, ready: true, deleted_at: None };
            state.pods.insert(("shop".into(), name.into()), record);
        }
        let spec = ServiceSpec::new("shop", "web").selector("app", "web").port("http", 80, "http");
        let vips = Some(topology::service(0).expect("the first"));
        state.services.insert(("shop".into(), "web".into()), ServiceRecord { spec, vips });
        state
    }

    #[test]
    fn every_object_has_a_file_of_its_own() {
        let files = render(&shop());
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        let expected = [
            "endpointslice_shop_web-0.yaml",
            "endpointslice_shop_web-1.yaml",
            "endpointslice_shop_web-2.yaml",
            "endpointslice_shop_web-3.yaml",
            "namespace_shop.yaml",
            "node_n1.yaml",
            "pod_shop_a.yaml",
            "pod_shop_b.yaml",
            "service_shop_web.yaml",
            "serviceaccount_shop_default.yaml",
            "serviceaccount_shop_web.yaml",
        ];
        assert_eq!(names, expected, "named ports that differ need a slice each, per family");
    }

    #[test]
    fn what_is_written_reads_back_as_the_same_object() {
        for (name, text) in render(&shop()) {
            let object: Value = serde_saphyr::from_str(&text).expect("our own YAML");
            assert!(object["kind"].is_string(), "{name}");
        }
        let pod = &render(&shop())["pod_shop_a.yaml"];
        let object: Value = serde_saphyr::from_str(pod).expect("our own YAML");
        assert_eq!(object["status"]["podIPs"][1]["ip"], "fd00:10:244:1::2");
        assert_eq!(object["status"]["conditions"][0]["status"], "True", "a word, not a boolean");
    }
}
