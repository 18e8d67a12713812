//! What the components of a cluster are told: flags and configuration files, as pure functions of addresses and names. JSON
//! where a component reads YAML, since the one is the other.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::topology::{self, CONTROL};

/// The API server's port, in the control namespace.
pub(crate) const API_PORT: u16 = 6443;

/// The image of pods' first process; containerd is told never to remove it.
pub(crate) const PAUSE_IMAGE: &str = "airglow.test/pause:1";

/// Requests per second that components may make. The defaults (5 to 50) are for thousands of nodes on one API server.
const REQUESTS: u32 = 200;

const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";
const SCHEDULER: &str = "system:kube-scheduler";
const PROXY: &str = "system:kube-proxy";

/// A client of the API server, with its token.
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) group: &'static str,
    pub(crate) token: String,
}

/// Everybody who has a token: the administrator, the control plane's components, each node and its kube-proxy.
pub(crate) fn users(nodes: &[String]) -> Vec<User> {
    let user = |name: &str, group| {
        let token = (0..4).map(|_| format!("{:08x}", fastrand::u32(..))).collect();
        User { name: name.to_owned(), group, token }
    };
    let mut users = vec![user("admin", "system:masters")];
    users.extend([CONTROLLER_MANAGER, SCHEDULER, PROXY].map(|name| user(name, "")));
    users.extend(nodes.iter().map(|node| user(&format!("system:node:{node}"), "system:nodes")));
    users
}

/// The file that the API server reads tokens from.
pub(crate) fn token_file(users: &[User]) -> String {
    let quoted = |group: &str| if group.is_empty() { String::new() } else { format!(",\"{group}\"") };
    let line = |user: &User| format!("{},{},{}{}\n", user.token, user.name, user.name, quoted(user.group));
    users.iter().map(line).collect()
}

/// A kubeconfig for a user of [`users`]; `ca` is where its reader finds the authority's certificate.
pub(crate) fn kubeconfig(server: &str, ca: &Path, user: &User) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {
            "server": server,
            "certificate-authority": ca,
        }}],
        "users": [{"name": user.name, "user": {"token": user.token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user.name}}],
        "current-context": "lab",
    })
    .to_string()
}

/// Where pods and nodes of the cluster find the API server.
pub(crate) fn server_inside() -> String {
    format!("https://{}:{API_PORT}", CONTROL.v4)
}

pub(crate) fn etcd(dir: &Path) -> Vec<String> {
    let client = "http://127.0.0.1:2379";
    vec![
        flag("data-dir", dir.join("etcd").display()),
        // A cluster that does not outlive its owner need not survive a power cut.
        "--unsafe-no-fsync".to_owned(),
        flag("listen-client-urls", client),
        flag("advertise-client-urls", client),
        flag("log-level", "warn"),
    ]
}

pub(crate) fn api_server(dir: &Path, ipv6: bool) -> Vec<String> {
    let pki = |name: &str| dir.join("pki").join(name).display().to_string();
    vec![
        flag("etcd-servers", "http://127.0.0.1:2379"),
        flag("advertise-address", CONTROL.v4),
        flag("secure-port", API_PORT),
        flag("tls-cert-file", pki("apiserver.crt")),
        flag("tls-private-key-file", pki("apiserver.key")),
        flag("token-auth-file", dir.join("tokens.csv").display()),
        flag("client-ca-file", pki("ca.crt")),
        flag("kubelet-client-certificate", pki("kubelet-client.crt")),
        flag("kubelet-client-key", pki("kubelet-client.key")),
        // Otherwise exec and logs look for nodes' names in the machine's DNS.
        flag("kubelet-preferred-address-types", "InternalIP"),
        flag("authorization-mode", "Node,RBAC"),
        flag("enable-admission-plugins", "NodeRestriction"),
        flag("service-cluster-ip-range", service_ranges(ipv6)),
        flag("service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
        flag("service-account-key-file", pki("sa.pub")),
        flag("service-account-signing-key-file", pki("sa.key")),
        flag("allow-privileged", true),
        // There is no kube-proxy where the API server runs: webhooks are called at their pods' addresses.
        flag("enable-aggregator-routing", true),
    ]
}

pub(crate) fn controller_manager(dir: &Path, kubeconfig: &Path) -> Vec<String> {
    let pki = |name: &str| dir.join("pki").join(name).display().to_string();
    vec![
        flag("kubeconfig", kubeconfig.display()),
        flag("bind-address", "127.0.0.1"),
        flag("service-account-private-key-file", pki("sa.key")),
        flag("root-ca-file", pki("ca.crt")),
        flag("cluster-signing-cert-file", pki("ca.crt")),
        flag("cluster-signing-key-file", pki("ca.key")),
        flag("use-service-account-credentials", true),
        // Each node's CNI configuration has its range already.
        flag("allocate-node-cidrs", false),
        flag("leader-elect", false),
        // Each change of an autoscaler waits for so long; 15 s as a rule.
        flag("horizontal-pod-autoscaler-sync-period", "1s"),
        flag("kube-api-qps", REQUESTS),
        flag("kube-api-burst", 2 * REQUESTS),
    ]
}

pub(crate) fn scheduler(kubeconfig: &Path) -> Vec<String> {
    vec![
        flag("kubeconfig", kubeconfig.display()),
        flag("bind-address", "127.0.0.1"),
        flag("leader-elect", false),
        flag("kube-api-qps", REQUESTS),
        flag("kube-api-burst", 2 * REQUESTS),
    ]
}

/// `cgroup` is the node's group as the hierarchies name it: from their root.
pub(crate) fn kubelet(cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDomain": "cluster.local",
        "clusterDNS": [topology::DNS_VIP.v4],
        "resolvConf": "/etc/kubernetes/resolv.conf",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        // Nodes share one machine: nothing of it is set apart or guarded by any of them.
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "evictionHard": {"nodefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false,
        "volumePluginDir": "/var/lib/kubelet/plugins-exec",
        "kubeAPIQPS": REQUESTS,
        "kubeAPIBurst": 2 * REQUESTS,
        "serializeImagePulls": false,
        "shutdownGracePeriod": "0s",
    })
}

pub(crate) fn kube_proxy(node: &str, ipv6: bool) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": "/etc/kubernetes/kube-proxy.kubeconfig"},
        "hostnameOverride": node,
        "mode": "nftables",
        "clusterCIDR": if ipv6 { "10.244.0.0/16,fd00:10:244::/48" } else { "10.244.0.0/16" },
        // The table of connections has one size for the whole machine, which is not ours to change.
        "conntrack": {"maxPerCore": 0, "min": 0},
    })
}

/// Configuration of containerd, version 3.
pub(crate) fn containerd(runc: &Path) -> String {
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
address = "/run/containerd/containerd.sock"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins.'io.containerd.cri.v1.runtime']
# Machines without this controller, or without CAP_SYS_RESOURCE, run pods as well.
disable_hugetlb_controller = true
tolerate_missing_hugetlb_controller = true
restrict_oom_score_adj = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "{}"
SystemdCgroup = false
"#,
        runc.display()
    )
}

/// The pod network of node `number`: a veth pair per pod, addresses from the node's own range, host ports.
pub(crate) fn cni(number: u8, ipv6: bool) -> Value {
    let (cidr4, cidr6) = topology::pod_cidrs(number);
    let mut ranges = vec![json!([{"subnet": cidr4}])];
    let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
    if ipv6 {
        ranges.push(json!([{"subnet": cidr6}]));
        routes.push(json!({"dst": "::/0"}));
    }
    json!({
        "cniVersion": "1.1.0",
        "name": "lab",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "mtu": 1500,
                "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true, "backend": "nftables"},
        ],
    })
}

/// A node's address or addresses, as its kubelet says them.
pub(crate) fn node_ips(number: u8, ipv6: bool) -> String {
    let ips = topology::node(number).ips(ipv6);
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

pub(crate) fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn service_ranges(ipv6: bool) -> &'static str {
    if ipv6 { "10.96.0.0/16,fd00:10:96::/112" } else { "10.96.0.0/16" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_file_names_groups_where_there_are_any() {
        let mut users = users(&["n1".to_owned()]);
        for user in &mut users {
            user.token = "t".to_owned();
        }
        let file = token_file(&users);
        assert!(file.contains("t,admin,admin,\"system:masters\"\n"), "{file}");
        assert!(file.contains("t,system:kube-proxy,system:kube-proxy\n"), "{file}");
        assert!(file.ends_with("t,system:node:n1,system:node:n1,\"system:nodes\"\n"), "{file}");
    }
}
