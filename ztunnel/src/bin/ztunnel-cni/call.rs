//! What the runtime asks: from its environment variables and our configuration on standard input to one piece of work.
//!
//! Pure. Reads what CNI 1.1 says, and what every version since 0.3 has said before; asks nobody and decides nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use daemon::config::Vars;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{CniError, Code};

/// Versions of the protocol whose results we can read and pass on.
pub(crate) const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// One call of the plugin.
#[derive(Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) settings: Settings,
    pub(crate) work: Work,
}

/// Our part of the node's network configuration, as the installer writes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where ztunnel's socket is, on the host.
    pub(crate) run_dir: PathBuf,
    /// Namespaces whose pods start in any case: what the cluster and the mesh themselves need to come up.
    pub(crate) always_start: Vec<String>,
}

impl Settings {
    pub(crate) fn always_starts(&self, namespace: &str) -> bool {
        self.always_start.iter().any(|always| always == namespace)
    }
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Work {
    /// A pod's network was made; `result` is what earlier plugins say of it.
    Add { sandbox: Sandbox, result: Value },
    /// Is the pod as it should be?
    Check(Sandbox),
    /// A pod's network is being removed.
    Delete { uid: String, sandbox_id: String },
    /// Only these sandboxes exist any more.
    Collect(BTreeSet<String>),
    /// Could a pod be added?
    Status,
    /// Which versions are spoken?
    Version,
    /// Nothing that we could know of.
    Nothing,
}

/// A pod's sandbox.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The container runtime's name for it.
    pub(crate) sandbox_id: String,
    pub(crate) netns: PathBuf,
    pub(crate) addresses: Vec<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Input {
    #[serde(default)]
    cni_version: String,
    #[serde(default = "default_run_dir")]
    run_dir: PathBuf,
    #[serde(default = "default_always_start")]
    always_start: Vec<String>,
    prev_result: Option<Value>,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Vec<Attachment>,
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

fn default_run_dir() -> PathBuf {
    PathBuf::from("/run/airglow")
}

fn default_always_start() -> Vec<String> {
    vec!["kube-system".to_owned()]
}

/// The version that an answer to this input is to have.
pub(crate) fn version(input: &[u8]) -> String {
    let asked = serde_json::from_slice::<Input>(input).map(|input| input.cni_version).unwrap_or_default();
    let newest = SUPPORTED.last().expect("some version is supported");
    if SUPPORTED.contains(&asked.as_str()) { asked } else { (*newest).to_owned() }
}

/// Reads a call.
pub(crate) fn parse(vars: &dyn Vars, input: &[u8]) -> Result<Call, CniError> {
    let command = variable(vars, "CNI_COMMAND")?;
    let input: Input = match serde_json::from_slice(input) {
        Ok(input) => input,
        Err(error) if command != "VERSION" => {
            let message = format!("the configuration on standard input can't be read: {error}");
            return Err(CniError::new(Code::Decode, message));
        }
        Err(_) => {
            let work = Work::Version;
            let settings = Settings { run_dir: default_run_dir(), always_start: default_always_start() };
            return Ok(Call { settings, work });
        }
    };
    if command != "VERSION" && !SUPPORTED.contains(&input.cni_version.as_str()) {
        let message =
            format!("cniVersion {:?} is not spoken, only {}", input.cni_version, SUPPORTED.join(", "));
        return Err(CniError::new(Code::IncompatibleVersion, message));
    }
    let work = match command.as_str() {
        "ADD" => {
            let result = input.prev_result.ok_or_else(not_chained)?;
            Work::Add { sandbox: sandbox(vars, &result)?, result }
        }
        "CHECK" => Work::Check(sandbox(vars, &input.prev_result.ok_or_else(not_chained)?)?),
        "DEL" => match pod(vars, "K8S_POD_UID") {
            Ok(uid) => Work::Delete { uid, sandbox_id: variable(vars, "CNI_CONTAINERID")? },
            // What was not announced as a pod does not have to be retracted.
            Err(_) => Work::Nothing,
        },
        "GC" => Work::Collect(input.valid_attachments.into_iter().map(|valid| valid.container_id).collect()),
        "STATUS" => Work::Status,
        "VERSION" => Work::Version,
        other => {
            let message = format!("CNI_COMMAND={other:?} is not a command of CNI 1.1");
            return Err(CniError::new(Code::InvalidEnvironment, message));
        }
    };
    Ok(Call { settings: Settings { run_dir: input.run_dir, always_start: input.always_start }, work })
}

fn not_chained() -> CniError {
    let message = "there is no prevResult: ztunnel-cni makes no network and must come after a plugin that does, \
                   last in the list";
    CniError::new(Code::InvalidConfiguration, message)
}

fn sandbox(vars: &dyn Vars, result: &Value) -> Result<Sandbox, CniError> {
    let addresses = addresses(result);
    if addresses.is_empty() {
        let message = "prevResult lists no address of the pod; ztunnel-cni must come last in the list";
        return Err(CniError::new(Code::InvalidConfiguration, message));
    }
    Ok(Sandbox {
        uid: pod(vars, "K8S_POD_UID")?,
        namespace: pod(vars, "K8S_POD_NAMESPACE")?,
        name: pod(vars, "K8S_POD_NAME")?,
        sandbox_id: variable(vars, "CNI_CONTAINERID")?,
        netns: variable(vars, "CNI_NETNS")?.into(),
        addresses,
    })
}

fn variable(vars: &dyn Vars, name: &str) -> Result<String, CniError> {
    vars.get(name)
        .filter(|text| !text.is_empty())
        .ok_or_else(|| CniError::new(Code::InvalidEnvironment, format!("the runtime did not set {name}")))
}

/// One of the pairs in `CNI_ARGS`.
fn pod(vars: &dyn Vars, name: &str) -> Result<String, CniError> {
    let args = variable(vars, "CNI_ARGS")?;
    let mut pairs = args.split(';').filter_map(|pair| pair.split_once('='));
    let value = pairs.find(|(key, value)| *key == name && !value.is_empty());
    value.map(|(_, value)| value.to_owned()).ok_or_else(|| {
        let message = format!("CNI_ARGS has no {name}: the runtime does not say which pod this is");
        CniError::new(Code::InvalidEnvironment, message)
    })
}

/// The addresses of interfaces inside the pod. One that belongs to no interface is the pod's too.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let list = |name: &str| result[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let interfaces = list("interfaces");
    let is_outside = |ip: &Value| {
        let interface =
            ip["interface"].as_u64().and_then(|index| interfaces.get(usize::try_from(index).ok()?));
        interface.is_some_and(|interface| interface["sandbox"].as_str().is_none_or(str::is_empty))
    };
    let inside = list("ips").iter().filter(|ip| !is_outside(ip));
    let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse::<IpAddr>().ok();
    inside.filter_map(address).map(|ip| ip.to_canonical()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-1;K8S_POD_INFRA_CONTAINER_ID=f00;K8S_POD_UID=a-1";

    fn vars(command: &'static str) -> BTreeMap<&'static str, &'static str> {
        BTreeMap::from([
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "f00"),
            ("CNI_NETNS", "/var/run/netns/cni-1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", ARGS),
        ])
    }

    fn input() -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "ztunnel-cni",
            "runDir": "/run/mesh", "alwaysStart": ["kube-system", "mesh"],
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/var/run/netns/cni-1"}],
                "ips": [
                    {"address": "10.244.1.9/24", "gateway": "10.244.1.1", "interface": 1},
                    {"address": "fd00::9/64", "interface": 1},
                    {"address": "10.244.1.1/32", "interface": 0}
                ],
                "dns": {}, "x-other": 7
            }
        })
    }

    fn call(vars: &BTreeMap<&str, &str>, input: &Value) -> Result<Call, String> {
        parse(vars, input.to_string().as_bytes()).map_err(|error| error.to_json("1.1.0").to_string())
    }

    fn check_error(vars: &BTreeMap<&str, &str>, input: &Value, expected: &[&str]) {
        let text = call(vars, input).expect_err("refused");
        for part in expected {
            assert!(text.contains(part), "{text} should contain {part:?}");
        }
    }

    #[test]
    fn an_addition_names_the_pod_and_keeps_the_result() {
        let call = call(&vars("ADD"), &input()).unwrap();
        assert!(call.settings.always_starts("mesh") && !call.settings.always_starts("shop"));
        let Work::Add { sandbox, result } = call.work else { panic!("{call:?}") };
        assert_eq!(result, input()["prevResult"]);
        let expected = Sandbox {
            uid: "a-1".to_owned(),
            namespace: "shop".to_owned(),
            name: "cart-1".to_owned(),
            sandbox_id: "f00".to_owned(),
            netns: "/var/run/netns/cni-1".into(),
            addresses: vec!["10.244.1.9".parse().unwrap(), "fd00::9".parse().unwrap()],
        };
        assert_eq!(sandbox, expected);
    }

    #[test]
    fn results_of_older_versions_are_read_too() {
        let mut old = input();
        old["cniVersion"] = json!("0.3.1");
        old["prevResult"] =
            json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.1.1.2/32"}]});
        let Work::Check(sandbox) = call(&vars("CHECK"), &old).unwrap().work else { panic!() };
        assert_eq!(sandbox.addresses, ["10.1.1.2".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn the_other_commands_need_less() {
        let bare = json!({"cniVersion": "1.1.0", "type": "ztunnel-cni"});
        let work = |command, input: &Value| call(&vars(command), input).unwrap().work;
        let deleted = Work::Delete { uid: "a-1".to_owned(), sandbox_id: "f00".to_owned() };
        assert_eq!(work("DEL", &bare), deleted);
        assert_eq!(work("STATUS", &bare), Work::Status);
        let mut valid = bare.clone();
        valid["cni.dev/valid-attachments"] = json!([{"containerID": "f00", "ifname": "eth0"}]);
        assert_eq!(work("GC", &valid), Work::Collect(BTreeSet::from(["f00".to_owned()])));
        assert_eq!(parse(&vars("VERSION"), b"").unwrap().work, Work::Version);
        let mut strange = vars("DEL");
        strange.remove("CNI_ARGS");
        assert_eq!(call(&strange, &bare).unwrap().work, Work::Nothing);
        assert_eq!(version(bare.to_string().as_bytes()), "1.1.0");
        assert_eq!(version(b"{\"cniVersion\":\"9.9.9\"}"), "1.1.0");
    }

    #[test]
    fn what_can_not_be_right_is_named() {
        let without = |name: &str| {
            let mut vars = vars("ADD");
            vars.remove(name);
            vars
        };
        check_error(&without("CNI_NETNS"), &input(), &["\"code\":4", "CNI_NETNS"]);
        check_error(&without("CNI_ARGS"), &input(), &["\"code\":4", "CNI_ARGS"]);
        check_error(&without("CNI_COMMAND"), &input(), &["\"code\":4", "CNI_COMMAND"]);
        check_error(&vars("RENAME"), &input(), &["\"code\":4", "RENAME"]);
        let mut anonymous = vars("ADD");
        anonymous.insert("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-1");
        check_error(&anonymous, &input(), &["\"code\":4", "K8S_POD_UID"]);
        let changed = |name: &str, value: Value| {
            let mut input = input();
            input[name] = value;
            input
        };
        check_error(&vars("ADD"), &changed("cniVersion", json!("0.2.0")), &["\"code\":1", "0.2.0"]);
        check_error(&vars("ADD"), &changed("prevResult", Value::Null), &["\"code\":7", "last in the list"]);
        check_error(&vars("ADD"), &changed("prevResult", json!({"ips": []})), &["\"code\":7", "no address"]);
        check_error(&vars("ADD"), &changed("runDir", json!(7)), &["\"code\":6"]);
    }
}
