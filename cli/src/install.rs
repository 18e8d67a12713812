//! `airglow install`: puts the objects of a manifest into a cluster and waits until they work.
//!
//! Doing it again is an upgrade; what is as it should be stays as it is. Removes nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use daemon::config::Vars;
use serde_json::Value;

use crate::cluster::manifest::{self, Object};
use crate::cluster::objects::Named;
use crate::cluster::wait::{Patience, Wait};
use crate::cluster::{At, Cluster, is_ours};
use crate::interrupt::Interrupt;
use crate::progress::{Progress, To};
use crate::{Terminal, check};

/// Helm's mark on what is part of one of its releases.
const RELEASE: &str = "meta.helm.sh/release-name";

#[derive(Args, Debug)]
pub(crate) struct Install {
    #[command(flatten)]
    pub(crate) at: At,
    /// Install this instead of what the chart makes with its defaults: the output of `helm template`, with other values.
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest: Option<PathBuf>,
    /// Where images come from, such as ghcr.io/airglow.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) image_registry: Option<String>,
    /// Leave the definitions of policies and entries (CustomResourceDefinitions) to somebody else.
    #[arg(long)]
    pub(crate) skip_crds: bool,
    /// The images' tag.
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Option<String>,
    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// Applies every object and waits until the controller and each node's ztunnel are ready.
pub(crate) fn run(
    args: &Install,
    stdout: Terminal,
    vars: &dyn Vars,
    interrupt: &Interrupt,
) -> anyhow::Result<ExitCode> {
    let mut objects = manifest::load(args.manifest.as_deref())?;
    // Charts carry them apart from what they template.
    objects.retain(|object| !object.is_definition());
    if !args.skip_crds {
        objects.splice(..0, manifest::definitions());
    }
    manifest::set_images(&mut objects, args.image_registry.as_deref(), args.tag.as_deref());
    let namespace = manifest::find(&objects, "DaemonSet", "ztunnel")?.text("namespace").to_owned();
    let cluster = Cluster::new(&args.at, vars)?;
    let progress = Progress::new(To::Stdout, stdout.live, stdout.style);
    let wait = Wait::new(args.patience, interrupt, &progress);
    let before =
        objects.iter().map(|object| existing(&cluster, object)).collect::<anyhow::Result<Vec<_>>>()?;
    for (object, before) in objects.iter().zip(&before) {
        interrupt.check()?;
        if object.is_definition() && before.as_ref().is_some_and(|before| !is_made_by_us(before)) {
            let title = object.title();
            progress
                .line(&format!("{} {title} is there already, and not ours: left as it is", stdout.sign()));
            continue;
        }
        let done = cluster.apply(&object.path(), &object.body);
        let done = done.map_err(|error| anyhow::anyhow!("{}: {error}", object.title()))?;
        let outcome = outcome(before.as_ref(), &done);
        progress.line(&format!("{} {} {outcome}", stdout.style.green(stdout.sign()), object.title()));
    }
    wait.until("Airglow to be ready", || check::unready(&cluster, &namespace))?;
    progress.rest();
    progress.line(&format!("{} Airglow is ready", stdout.style.green(stdout.sign())));
    progress.line("\nPut a namespace into the mesh; no pod is restarted:\n");
    progress.line("    kubectl label namespace NAME istio.io/dataplane-mode=ambient\n");
    progress.line("See who is in it and what is wrong: `airglow check`");
    Ok(ExitCode::SUCCESS)
}

/// What is in the cluster in an object's place. Nothing is changed before all of it was looked at.
fn existing(cluster: &Cluster, object: &Object) -> anyhow::Result<Option<Value>> {
    let title = object.title();
    let found: Option<Value> =
        cluster.get(&object.path()).map_err(|error| anyhow::anyhow!("{title}: {error}"))?;
    // What another mesh has defined serves us too.
    let wanted = found.as_ref().filter(|_| !object.is_definition());
    if let Some(why) = wanted.and_then(|found| refused(object.kind(), found)) {
        anyhow::bail!("{title} {why}");
    }
    Ok(found)
}

/// Why `found` is not to be overwritten.
fn refused(kind: &str, found: &Value) -> Option<String> {
    let Named { metadata } = serde_json::from_value(found.clone()).unwrap_or_default();
    if let Some(release) = metadata.annotations.get(RELEASE) {
        return Some(format!(
            "belongs to the Helm release {release}: change it with `helm upgrade`, so that Helm knows of it"
        ));
    }
    // A namespace may be made beforehand by who has the right to.
    if kind == "Namespace" || is_made_by_us(found) {
        return None;
    }
    Some("is there already and is not Airglow's (it lacks the chart's labels): remove it first".to_owned())
}

fn is_made_by_us(found: &Value) -> bool {
    let Named { metadata } = serde_json::from_value(found.clone()).unwrap_or_default();
    is_ours(&metadata.labels)
}

fn outcome(before: Option<&Value>, after: &Value) -> &'static str {
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    match before {
        None => "created",
        Some(before) if version(before) == version(after) => "is as it should be",
        Some(_) => "changed",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_have_made_is_not_overwritten() {
        let labels = json!({"app.kubernetes.io/part-of": "airglow"});
        let ours = json!({"metadata": {"labels": labels}});
        assert_eq!(refused("DaemonSet", &ours), None);
        let helm = json!({"metadata": {"labels": labels, "annotations": {RELEASE: "mesh"}}});
        assert!(refused("DaemonSet", &helm).expect("refused").contains("Helm release mesh"));
        let theirs = json!({"metadata": {"labels": {"app": "ztunnel"}}});
        assert!(refused("DaemonSet", &theirs).expect("refused").contains("not Airglow's"));
        assert_eq!(refused("Namespace", &theirs), None);
    }

    #[test]
    fn what_became_of_an_object_is_told_by_its_version() {
        let version = |number: &str| json!({"metadata": {"resourceVersion": number}});
        assert_eq!(outcome(None, &version("1")), "created");
        assert_eq!(outcome(Some(&version("1")), &version("1")), "is as it should be");
        assert_eq!(outcome(Some(&version("1")), &version("2")), "changed");
    }
}
