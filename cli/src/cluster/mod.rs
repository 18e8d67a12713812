//! Asking and telling a Kubernetes cluster: which one, and how. One request at a time, each with an answer or a reason.
//!
//! Knows no object's meaning.

pub(crate) mod manifest;
pub(crate) mod objects;
pub(crate) mod wait;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use apiserver::{Client, ForwardError, call, connect, exchange, explain};
use clap::Args;
use daemon::config::Vars;
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::admin_client::{self, AdminError};

/// Pods that are asked at once: few enough for an API server that others need too.
const AT_ONCE: usize = 16;

/// Who we are to the API server: the manager of the fields that we write.
const MANAGER: &str = "airglow";

/// Objects per answer to a list: as kubectl asks for.
const PAGE: usize = 500;

/// A Kubernetes name of one part has at most so many characters (RFC 1123).
const LABEL_MAX: usize = 63;

/// Which cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct At {
    /// The file that says how to reach the API server. Without it: KUBECONFIG, ~/.kube/config, or in a pod its service account.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig, instead of its current one.
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// The label with which the chart marks everything that it makes.
const PART_OF: &str = "app.kubernetes.io/part-of";

/// Whether whoever has these labels belongs to an Airglow.
pub(crate) fn is_ours(labels: &BTreeMap<String, String>) -> bool {
    labels.get(PART_OF).is_some_and(|whole| whole == "airglow")
}

/// What could be learnt, or why not.
pub(crate) type Answer<T> = Result<T, String>;

/// A cluster's API server.
pub(crate) struct Cluster {
    runtime: Runtime,
    client: Client,
}

impl Cluster {
    /// Finds out how to reach the cluster. Does not connect yet.
    pub(crate) fn new(at: &At, vars: &dyn Vars) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let files = kubeconfigs(at.kubeconfig.as_deref(), vars, &|path| path.exists());
        let client = runtime.block_on(connect(&files, at.context.as_deref()))?;
        Ok(Self { runtime, client })
    }

    /// The namespace that is meant where none is named.
    pub(crate) fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// Whether anything says which cluster is meant.
    pub(crate) fn is_known(at: &At, vars: &dyn Vars) -> bool {
        let files = kubeconfigs(at.kubeconfig.as_deref(), vars, &|path| path.exists());
        !files.is_empty() || vars.get("KUBERNETES_SERVICE_HOST").is_some()
    }

    /// The bodies of the answers of pods, by namespace and name, to `GET path`, all asked at once, each at a port of its loopback.
    pub(crate) fn ask_pods(&self, pods: &[(&str, &str, u16)], path: &str) -> Vec<Result<String, AdminError>> {
        let request = admin_client::request(path);
        let ask = |&(namespace, pod, port): &(&str, &str, u16)| {
            let (client, request) = (self.client.clone(), request.clone());
            let (namespace, pod, path) = (namespace.to_owned(), pod.to_owned(), path.to_owned());
            async move {
                let whole = admin_client::is_whole;
                let answer = exchange(&client, (&namespace, &pod), port, &request, whole).await;
                let place = format!("pod {namespace}/{pod}");
                match answer {
                    Ok(answer) => admin_client::body(&place, &path, &answer),
                    Err(error) => Err(AdminError::unreachable(place, &path, hinted(&error))),
                }
            }
        };
        self.runtime.block_on(async {
            let mut answers = Vec::new();
            for pods in pods.chunks(AT_ONCE) {
                let asked: Vec<_> = pods.iter().map(|pod| tokio::spawn(ask(pod))).collect();
                for task in asked {
                    answers.push(task.await.expect("it does not panic"));
                }
            }
            answers
        })
    }

    /// The object at `path`; `None` when there is none.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<Option<T>> {
        self.call(Method::GET, path, None)?.map(|value| read(path, value)).transpose()
    }

    /// Every object of the list at `path`. Empty when the API server knows no such kind.
    pub(crate) fn list<T: DeserializeOwned>(&self, path: &str) -> Answer<Vec<T>> {
        let mut all = Vec::new();
        let mut next = String::new();
        loop {
            let joint = if path.contains('?') { '&' } else { '?' };
            let page = format!("{path}{joint}limit={PAGE}{next}");
            let Some(mut page) = self.call(Method::GET, &page, None)? else { return Ok(all) };
            for item in page["items"].as_array_mut().into_iter().flatten() {
                all.push(read(path, item.take())?);
            }
            match page["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() => next = format!("&continue={token}"),
                _ => return Ok(all),
            }
        }
    }

    /// The answer to a new object at `path`.
    pub(crate) fn create(&self, path: &str, object: &Value) -> Answer<Value> {
        let answer = self.call(Method::POST, path, Some(object))?;
        answer.ok_or_else(|| format!("{path}: the API server knows nothing of that kind"))
    }

    /// Applies `object` on the server, at `path`, as the owner of every field that it names.
    pub(crate) fn apply(&self, path: &str, object: &Value) -> Answer<Value> {
        let answer =
            self.call(Method::PATCH, &format!("{path}?fieldManager={MANAGER}&force=true"), Some(object))?;
        answer.ok_or_else(|| "its namespace or its kind is not there; create the namespace first".to_owned())
    }

    /// Has the object at `path` removed, which may take its time; an object that is not there is none to wait for.
    pub(crate) fn delete(&self, path: &str) -> Answer<()> {
        self.call(Method::DELETE, path, None).map(drop)
    }

    fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Answer<Option<Value>> {
        let asked = self.runtime.block_on(call(&self.client, method, path, body));
        asked.map_err(|error| explain(&error))
    }
}

fn read<T: DeserializeOwned>(path: &str, value: Value) -> Answer<T> {
    serde_json::from_value(value).map_err(|error| format!("{path}: the answer can't be understood: {error}"))
}

/// An error with what to do about it.
fn hinted(error: &ForwardError) -> String {
    let hint = match error {
        ForwardError::Refused(error) if matches!(apiserver::code(error), Some(401 | 403)) => {
            "; it takes the rights to get and to create `pods/portforward` in that namespace"
        }
        ForwardError::Pod(..) => "; was it installed with AIRGLOW_ADMIN_PORT, as the chart does?",
        ForwardError::Refused(_) | ForwardError::Late | ForwardError::Broken(_) => "",
    };
    format!("{error}{hint}")
}

/// The kubeconfigs to merge; none in a pod.
fn kubeconfigs(named: Option<&Path>, vars: &dyn Vars, exists: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    if let Some(path) = named {
        return vec![path.to_owned()];
    }
    let listed = vars.get("KUBECONFIG").unwrap_or_default();
    let listed: Vec<_> = listed.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    if !listed.is_empty() {
        return listed;
    }
    let home = vars.get("HOME").map(|home| Path::new(&home).join(".kube/config"));
    home.filter(|path| exists(path)).into_iter().collect()
}

/// A name that can stand in a path of the API.
pub(crate) fn label(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > LABEL_MAX || !text.chars().all(fits) {
        return Err(format!("not a name of lower-case letters, digits and `-`, {LABEL_MAX} at most"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_is_found_as_kubectl_finds_it() {
        let find = |named: Option<&str>, vars: &[(&'static str, &'static str)], exists: bool| {
            let vars: BTreeMap<&str, &str> = vars.iter().copied().collect();
            let found = kubeconfigs(named.map(Path::new), &vars, &|_| exists);
            found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        let both = [("KUBECONFIG", "/a::/b"), ("HOME", "/root")];
        assert_eq!(find(Some("/named"), &both, true), "/named");
        assert_eq!(find(None, &both, true), "/a /b");
        assert_eq!(find(None, &both[1..], true), "/root/.kube/config");
        assert_eq!(find(None, &both[1..], false), "", "in a pod there is none");
        assert_eq!(find(None, &[("KUBECONFIG", "")], true), "");
    }

    #[test]
    fn names_are_those_of_kubernetes() {
        assert!(label("airglow-system").is_ok());
        for wrong in ["", "A", "a/b", "a b", &"a".repeat(64)] {
            assert!(label(wrong).is_err(), "{wrong}");
        }
    }
}
