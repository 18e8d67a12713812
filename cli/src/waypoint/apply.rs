//! `airglow waypoint apply`: a Gateway, the wait until it is ready, and then the namespace's label.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use daemon::config::Vars;
use serde_json::{Value, json};

use super::awaited::Awaited;
use super::gateway::{
    self, CLASS, FOR_SERVICE_ACCOUNT, Gateway, PROTOCOL, USE_WAYPOINT, USE_WAYPOINT_NAMESPACE, WAYPOINT_FOR,
};
use crate::Terminal;
use crate::cluster::objects::Named;
use crate::cluster::wait::{Patience, Wait};
use crate::cluster::{At, Cluster, label};
use crate::interrupt::Interrupt;
use crate::progress::{Progress, To};

/// The name of a waypoint that nobody named, as Istio has it.
const NAME: &str = "waypoint";

#[derive(Args, Debug)]
pub(super) struct Apply {
    /// Where the waypoint runs; without it, the kubeconfig's namespace.
    #[arg(short = 'n', long, value_name = "NAME", value_parser = label)]
    namespace: Option<String>,
    /// What it is called: `waypoint`, or like the service account that it is for.
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: Option<String>,
    /// It guards every workload that runs as this service account, without any label.
    #[arg(long, value_name = "ACCOUNT", value_parser = label)]
    for_service_account: Option<String>,
    /// What it guards: `service` unless this says otherwise, `all` for a service account.
    #[arg(long = "for", value_name = "KIND", value_enum)]
    of: Option<TrafficType>,
    /// Label the namespace to use it, as soon as it is ready.
    #[arg(long, conflicts_with = "for_service_account")]
    enroll_namespace: bool,
    /// Change a Gateway of another class, or a namespace that uses another waypoint.
    #[arg(long)]
    overwrite: bool,
    /// How many pods.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100))]
    replicas: Option<u32>,
    /// How many pods there may be when they are busy.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=100))]
    max_replicas: Option<u32>,
    /// Do not wait until it is ready.
    #[arg(long, conflicts_with = "enroll_namespace")]
    no_wait: bool,
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    patience: Patience,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TrafficType {
    All,
    None,
    Service,
    Workload,
}

/// Asks for the waypoint and waits.
pub(super) fn run(
    args: &Apply,
    stdout: Terminal,
    vars: &dyn Vars,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::new(&args.at, vars)?;
    gateway::is_there(&cluster)?;
    let namespace = args.namespace.as_deref().unwrap_or(cluster.default_namespace());
    let name = args.name.as_deref().or(args.for_service_account.as_deref()).unwrap_or(NAME);
    let path = gateway::path(namespace, name);
    let failed = |what: &'static str| move |error: String| anyhow::anyhow!("{what}: {error}");
    let namespace_path = format!("/api/v1/namespaces/{namespace}");
    let found: Option<Named> = cluster.get(&namespace_path).map_err(failed("the namespace"))?;
    let Some(Named { metadata }) = found else {
        anyhow::bail!("there is no namespace {namespace}; create it first");
    };
    let before: Option<Gateway> = cluster.get(&path).map_err(failed("the Gateway"))?;
    if !args.overwrite {
        refusal(args, name, before.as_ref(), &metadata.labels)
            .map_or(Ok(()), |why| Err(anyhow::anyhow!(why)))?;
    }
    cluster.apply(&path, &body(args, namespace, name)).map_err(failed("the Gateway"))?;
    let progress = Progress::new(To::Stdout, stdout.live, stdout.style);
    let done = |text: &str| progress.line(&format!("{} {text}", stdout.style.green(stdout.sign())));
    done(&format!("waypoint {namespace}/{name} applied"));
    if !args.no_wait {
        let wait = Wait::new(args.patience, interrupt, &progress);
        let mut awaited = Awaited::new(&cluster, namespace, name);
        wait.until_or("the waypoint to be ready", || awaited.look())?;
        progress.rest();
        done(&format!("waypoint {namespace}/{name} is ready"));
    }
    if args.enroll_namespace {
        let labels = json!({ USE_WAYPOINT: name });
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace, "labels": labels } });
        cluster.apply(&namespace_path, &object).map_err(failed("the namespace"))?;
        done(&format!("namespace {namespace} uses it"));
    }
    if metadata.label("istio.io/dataplane-mode") != Some("ambient") {
        let hint = "is not in the mesh; its pods pass the waypoint only when they are, or when a pod in the mesh calls them";
        progress.line(&format!("note: namespace {namespace} {hint}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Why this would change what somebody has chosen.
fn refusal(
    args: &Apply,
    name: &str,
    before: Option<&Gateway>,
    labels: &std::collections::BTreeMap<String, String>,
) -> Option<String> {
    if let Some(before) = before.filter(|before| before.spec.gateway_class_name != CLASS) {
        let class = &before.spec.gateway_class_name;
        return Some(format!(
            "Gateway {name} is there with class {class}; --overwrite makes it a waypoint of Airglow"
        ));
    }
    let used =
        labels.get(USE_WAYPOINT).filter(|used| *used != name || labels.contains_key(USE_WAYPOINT_NAMESPACE));
    used.filter(|_| args.enroll_namespace)
        .map(|used| format!("the namespace uses waypoint {used} already; --overwrite changes that"))
}

fn body(args: &Apply, namespace: &str, name: &str) -> Value {
    let mut labels = json!({});
    if let Some(of) = args.of {
        let word = of.to_possible_value().map(|value| value.get_name().to_owned());
        labels[WAYPOINT_FOR] = json!(word);
    }
    let mut annotations = json!({});
    if let Some(account) = &args.for_service_account {
        annotations[FOR_SERVICE_ACCOUNT] = json!(account);
    }
    for (annotation, number) in [("replicas", args.replicas), ("max-replicas", args.max_replicas)] {
        if let Some(number) = number {
            annotations[format!("airglow.dev/{annotation}")] = json!(number.to_string());
        }
    }
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": name, "namespace": namespace, "labels": labels, "annotations": annotations },
        "spec": { "gatewayClassName": CLASS, "listeners": [{ "name": "mesh", "port": 15008, "protocol": PROTOCOL }] },
    })
}

/// A name that a waypoint can have: `none` says that there is to be no waypoint.
fn name(text: &str) -> Result<String, String> {
    if text == "none" { Err("`none` means no waypoint; choose another name".to_owned()) } else { label(text) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        apply: Apply,
    }

    fn parse(words: &str) -> Result<Apply, clap::Error> {
        Line::try_parse_from(words.split(' ')).map(|line| line.apply)
    }

    #[test]
    fn what_is_asked_for_is_in_the_gateway() {
        let plain = body(&parse("apply").expect("valid"), "shop", "waypoint");
        assert_eq!(plain["metadata"]["labels"], json!({}));
        assert_eq!(plain["spec"]["listeners"][0]["protocol"], "HBONE");
        let words = "apply --for all --for-service-account reviews --replicas 2 --max-replicas 5";
        let full = body(&parse(words).expect("valid"), "shop", "reviews");
        assert_eq!(full["metadata"]["labels"], json!({ WAYPOINT_FOR: "all" }));
        let annotations = json!({
            FOR_SERVICE_ACCOUNT: "reviews", "airglow.dev/replicas": "2", "airglow.dev/max-replicas": "5",
        });
        assert_eq!(full["metadata"]["annotations"], annotations);
        for wrong in [
            "apply --name none",
            "apply --for both",
            "apply --for-service-account a --enroll-namespace",
            "apply --no-wait --enroll-namespace",
            "apply --replicas 0",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_somebody_has_chosen_is_not_changed() {
        let args = parse("apply --enroll-namespace").expect("valid");
        let refused = |class: &str, label: &str| {
            let gateway = json!({"spec": {"gatewayClassName": class}});
            let gateway: Gateway = serde_json::from_value(gateway).expect("a Gateway");
            refusal(&args, "waypoint", Some(&gateway), &[(USE_WAYPOINT.to_owned(), label.to_owned())].into())
        };
        assert_eq!(refused(CLASS, "waypoint"), None);
        assert!(refused("istio", "waypoint").expect("refused").contains("class istio"));
        assert!(refused(CLASS, "other").expect("refused").contains("uses waypoint other"));
    }
}
