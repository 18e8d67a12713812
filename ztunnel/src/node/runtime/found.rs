//! What the container runtime says, and what of it is news: CRI's messages to sandboxes.
//!
//! Pure.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use api::cri::{NamespaceMode, PodSandbox, PodSandboxState, PodSandboxStatusResponse};
use serde::Deserialize;

use crate::node::api::PodStatus;
use crate::node::sandbox::Sandbox;

/// One sandbox in the runtime's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) id: String,
    uid: String,
    ready: bool,
}

/// What containerd and CRI-O say under `info`, as far as we ask.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Info {
    pid: u32,
    runtime_spec: Option<Spec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    r#type: String,
    path: PathBuf,
}

/// A sandbox that says which pod it is of.
pub(super) fn listed(sandbox: PodSandbox) -> Option<Listed> {
    let ready = sandbox.state() == PodSandboxState::SandboxReady;
    Some(Listed { id: sandbox.id, uid: sandbox.metadata?.uid, ready })
}

/// Running sandboxes that nobody announced. A pod that is known without the runtime's name for its sandbox was announced
/// by somebody who knows better.
pub(super) fn unknown<'a>(listed: &'a [Listed], known: &[PodStatus]) -> Vec<&'a Listed> {
    let is_known = |pod: &Listed| {
        known
            .iter()
            .any(|known| known.uid == pod.uid && (known.sandbox_id.is_empty() || known.sandbox_id == pod.id))
    };
    listed.iter().filter(|pod| pod.ready && !is_known(pod)).collect()
}

/// Pods to forget: the runtime does not list their sandbox, or as one that has ended, and their network is gone. A sandbox
/// that is just being made is not listed yet, but has its network.
pub(super) fn gone<'a>(
    listed: &[Listed],
    known: &'a [PodStatus],
    is_gone: impl Fn(&Path) -> bool,
) -> Vec<&'a PodStatus> {
    let runs = |pod: &PodStatus| listed.iter().any(|listed| listed.ready && listed.id == pod.sandbox_id);
    known
        .iter()
        .filter(|pod| !pod.sandbox_id.is_empty() && !runs(pod))
        .filter(|pod| is_gone(&pod.netns))
        .collect()
}

/// The sandbox, or why it is not one that could be captured.
pub(super) fn sandbox(answer: PodSandboxStatusResponse) -> Result<Sandbox, String> {
    let status = answer.status.ok_or("it has no status")?;
    let metadata = status.metadata.ok_or("it does not say which pod it is of")?;
    let options = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
    if options.is_some_and(|options| options.network() == NamespaceMode::Node) {
        return Err("it is in the node's own network".to_owned());
    }
    let network = status.network.ok_or("it has no network")?;
    let more = network.additional_ips.iter().map(|more| more.ip.as_str());
    let addresses = std::iter::once(network.ip.as_str()).chain(more).filter(|ip| !ip.is_empty());
    let addresses = addresses.map(|ip| ip.parse::<IpAddr>().map_err(|_| format!("{ip:?} is no address")));
    Ok(Sandbox {
        uid: metadata.uid,
        namespace: metadata.namespace,
        name: metadata.name,
        service_account: String::new(),
        sandbox_id: status.id,
        netns: netns(answer.info.get("info").map_or("", String::as_str))?,
        addresses: addresses.collect::<Result<_, _>>()?,
    })
}

/// The path that the runtime keeps the namespace at, or that of the sandbox's process.
fn netns(info: &str) -> Result<PathBuf, String> {
    let info: Info = serde_json::from_str(info)
        .map_err(|error| format!("the runtime's info on it is not containerd's or CRI-O's: {error}"))?;
    let namespaces = info.runtime_spec.map(|spec| spec.linux.namespaces).unwrap_or_default();
    let kept = namespaces.into_iter().find(|namespace| namespace.r#type == "network").map(|found| found.path);
    match (kept.filter(|path| path.is_absolute()), info.pid) {
        (Some(path), _) => Ok(path),
        (None, 0) => Err("the runtime does not say where its network namespace is".to_owned()),
        (None, pid) => Ok(PathBuf::from(format!("/proc/{pid}/ns/net"))),
    }
}

#[cfg(test)]
mod tests {
    use api::cri;

    use super::*;

    const CONTAINERD: &str = r#"{"pid":4242,"processStatus":"running","netNamespaceClosed":false,"config":{"metadata":{"name":"x"}},
        "runtimeSpec":{"ociVersion":"1.2.0","linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/var/run/netns/cni-1"}]}}}"#;

    fn answer(info: &str) -> PodSandboxStatusResponse {
        let ip = |ip: &str| cri::PodIp { ip: ip.to_owned() };
        PodSandboxStatusResponse {
            status: Some(cri::PodSandboxStatus {
                id: "f00".to_owned(),
                metadata: Some(cri::PodSandboxMetadata {
                    name: "cart-1".to_owned(),
                    uid: "a-1".to_owned(),
                    namespace: "shop".to_owned(),
                }),
                state: 0,
                network: Some(cri::PodSandboxNetworkStatus {
                    ip: "10.244.1.9".to_owned(),
                    additional_ips: vec![ip("fd00::9")],
                }),
                linux: None,
            }),
            info: [("info".to_owned(), info.to_owned())].into(),
        }
    }

    #[test]
    fn the_path_that_the_runtime_keeps_comes_before_the_process() {
        let sandbox = sandbox(answer(CONTAINERD)).unwrap();
        assert_eq!(
            (sandbox.uid.as_str(), sandbox.namespace.as_str(), sandbox.name.as_str()),
            ("a-1", "shop", "cart-1")
        );
        assert_eq!((sandbox.sandbox_id.as_str(), sandbox.service_account.as_str()), ("f00", ""));
        assert_eq!(sandbox.netns, Path::new("/var/run/netns/cni-1"));
        let addresses: Vec<String> = sandbox.addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(addresses, ["10.244.1.9", "fd00::9"]);
        let bare = super::sandbox(answer(r#"{"pid":4242}"#)).unwrap();
        assert_eq!(bare.netns, Path::new("/proc/4242/ns/net"));
    }

    #[test]
    fn what_can_not_be_captured_says_why() {
        let check = |change: &dyn Fn(&mut PodSandboxStatusResponse), expected: &str| {
            let mut answer = answer(CONTAINERD);
            change(&mut answer);
            let text = sandbox(answer).unwrap_err();
            assert!(text.contains(expected), "{text:?}: {expected:?}");
        };
        let status = |answer: &mut PodSandboxStatusResponse| answer.status.clone().unwrap();
        check(
            &|answer| {
                let options = cri::NamespaceOption { network: NamespaceMode::Node.into() };
                let linux = cri::LinuxPodSandboxStatus {
                    namespaces: Some(cri::Namespace { options: Some(options) }),
                };
                answer.status = Some(cri::PodSandboxStatus { linux: Some(linux), ..status(answer) });
            },
            "node's own network",
        );
        check(
            &|answer| answer.status = Some(cri::PodSandboxStatus { network: None, ..status(answer) }),
            "no network",
        );
        check(&|answer| answer.info.clear(), "containerd's or CRI-O's");
        check(&|answer| answer.info = [("info".to_owned(), "{}".to_owned())].into(), "does not say where");
        check(&|answer| answer.status = None, "no status");
    }

    fn listed(id: &str, ready: bool) -> Listed {
        Listed { id: id.to_owned(), uid: format!("uid-{id}"), ready }
    }

    fn known(id: &str, sandbox_id: &str) -> PodStatus {
        PodStatus {
            uid: format!("uid-{id}"),
            pod: id.to_owned(),
            state: "enrolled",
            message: String::new(),
            sandbox_id: sandbox_id.to_owned(),
            netns: format!("/netns/{id}").into(),
        }
    }

    #[test]
    fn news_is_what_runs_and_was_not_announced() {
        let all = ["1", "2", "3", "4"].map(|id| listed(id, id != "4"));
        let known = [known("1", "1"), known("2", "older"), known("3", "")];
        let news: Vec<&str> = unknown(&all, &known).iter().map(|pod| pod.id.as_str()).collect();
        assert_eq!(news, ["2"], "3 is somebody else's, 4 has ended");
        assert_eq!(unknown(&all, &[]).len(), 3);
    }

    #[test]
    fn what_has_ended_for_the_runtime_and_the_kernel_is_forgotten() {
        let all = [listed("1", true), listed("2", false)];
        let known = ["1", "2", "3", "4"].map(|id| known(id, id));
        let without_network = |path: &Path| path != Path::new("/netns/4");
        let gone: Vec<&str> =
            gone(&all, &known, without_network).iter().map(|pod| pod.pod.as_str()).collect();
        assert_eq!(gone, ["2", "3"], "4 is just being made");
    }
}
