//! The source: the same mesh as from a directory, changes as they come, and what happens when the API server does not answer.

use std::collections::BTreeMap;
use std::time::Duration;

use controller::index::{Config, Index, Proven};
use controller::source::kube::{Failing, Kube};
use controller::source::objects::{Event, Kind};
use controller::source::{Batch, yaml};
use daemon::readiness::Readiness;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::objects::{apply, apply_unknown, delete_pod, pod, policy, shop};
use crate::server::{ApiServer, PATIENCE, http};

/// The source with an index behind it.
struct Reader {
    index: Index,
    batches: mpsc::Receiver<Batch>,
    misunderstood: Vec<String>,
    readiness: Readiness,
    failing: Failing,
    source: JoinHandle<()>,
}

impl Reader {
    fn of(client: Client) -> Self {
        let readiness = Readiness::new();
        let kube = Kube::new(client, &readiness);
        let failing = kube.failing();
        let (out, batches) = mpsc::channel(1);
        let source = tokio::spawn(kube.run(out));
        let index = Index::new(Config::default(), Proven::default());
        Self { index, batches, misunderstood: Vec::new(), readiness, failing, source }
    }

    /// Takes batches in until the index looks as it should.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !holds(self) {
                let batch = self.batches.recv().await.expect("the source runs");
                self.misunderstood = batch.misunderstood.iter().map(|it| it.message.clone()).collect();
                self.index.apply(batch.events);
            }
        });
        let waited = waited.await;
        assert!(
            waited.is_ok(),
            "{what}; objects: {:?}; pending: {:?}",
            self.index.keys(),
            self.readiness.pending()
        );
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        self.index.keys().iter().any(|key| key.kind == kind && key.name == name)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.source.abort();
    }
}

/// Everything that the API server has, as a manifest.
async fn manifest(client: &Client) -> String {
    let mut text = String::new();
    for (path, kind, version) in [
        ("/api/v1/namespaces", "Namespace", "v1"),
        ("/api/v1/nodes", "Node", "v1"),
        ("/api/v1/pods", "Pod", "v1"),
        ("/api/v1/services", "Service", "v1"),
        ("/api/v1/serviceaccounts", "ServiceAccount", "v1"),
        ("/apis/discovery.k8s.io/v1/endpointslices", "EndpointSlice", "discovery.k8s.io/v1"),
        ("/apis/security.istio.io/v1/authorizationpolicies", "AuthorizationPolicy", "security.istio.io/v1"),
        ("/apis/security.istio.io/v1/peerauthentications", "PeerAuthentication", "security.istio.io/v1"),
        ("/apis/networking.istio.io/v1/serviceentries", "ServiceEntry", "networking.istio.io/v1"),
        ("/apis/networking.istio.io/v1/workloadentries", "WorkloadEntry", "networking.istio.io/v1"),
    ] {
        let mut list: Value = client.request(http(path)).await.expect("listed");
        // Items of a list name neither.
        for item in list["items"].as_array_mut().expect("items") {
            item["kind"] = kind.into();
            item["apiVersion"] = version.into();
        }
        text += &format!("---\n{}\n", json!({"apiVersion": "v1", "kind": "List", "items": list["items"]}));
    }
    text
}

/// Everything that is derived, in words, in a fixed order.
fn derived(index: &Index) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for change in index.everything() {
        *all.entry(format!("{change:?}")).or_default() += 1;
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_objects_through_both_sources_give_the_same_index() {
    let api = ApiServer::start().await;
    let client = api.client().await;
    for object in shop() {
        apply(&client, object).await;
    }
    let mut reader = Reader::of(client.clone());
    reader.until("complete", |reader| reader.has(Kind::AuthorizationPolicy, "only-web")).await;
    assert!(reader.has(Kind::ServiceEntry, "db") && reader.has(Kind::WorkloadEntry, "vm"));
    assert!(reader.readiness.is_ready(), "{:?}", reader.readiness.pending());

    let parsed = yaml::parse(&manifest(&client).await);
    assert_eq!(parsed.problems, []);
    let mut other = Index::new(Config::default(), Proven::default());
    other.apply(parsed.objects.into_iter().map(|(object, _)| Event::Upsert(object)));
    assert_eq!(reader.index.keys(), other.keys());
    assert_eq!(derived(&reader.index), derived(&other));
    let findings = |index: &Index| index.findings().map(|found| format!("{found:?}")).collect::<Vec<_>>();
    assert_eq!(findings(&reader.index), findings(&other));
    // Not equal by both being empty.
    assert_eq!(reader.index.enrolments().filter(|(enrolment, _)| enrolment.verdict.enrol).count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_may_come_later_and_changes_come_at_once() {
    let api = ApiServer::start().await;
    let client = api.client().await;
    let (later, now): (Vec<_>, Vec<_>) = shop().into_iter().partition(|object| {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        version.contains("istio.io") || version.starts_with("apiextensions")
    });
    for object in now {
        apply(&client, object).await;
    }
    let mut reader = Reader::of(client.clone());
    reader.until("complete without the policies' definitions", |reader| reader.has(Kind::Pod, "web")).await;
    assert_eq!(reader.failing.count(), 0, "an absent kind is no failure");

    for object in later {
        apply(&client, object).await;
    }
    reader.until("the policy", |reader| reader.has(Kind::AuthorizationPolicy, "only-web")).await;
    apply(&client, pod("cart", "10.0.0.3")).await;
    reader.until("a new pod", |reader| reader.has(Kind::Pod, "cart")).await;
    delete_pod(&client, "shop", "db").await;
    reader.until("the pod is gone", |reader| !reader.has(Kind::Pod, "db")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_not_understood_shuts_out() {
    let api = ApiServer::start().await;
    let client = api.client().await;
    for object in shop() {
        apply(&client, object).await;
    }
    apply_unknown(&client).await;
    let mut reader = Reader::of(client.clone());
    reader.until("complete", |reader| reader.has(Kind::AuthorizationPolicy, "only-web")).await;
    reader.until("it is reported", |reader| !reader.misunderstood.is_empty()).await;
    assert!(reader.misunderstood[0].contains("moonPhases"), "{:?}", reader.misunderstood);
    let stands_in = |reader: &Reader| {
        derived(&reader.index).into_keys().any(|it| it.contains("new") && it.contains("Deny"))
    };
    assert!(stands_in(&reader), "{:?}", derived(&reader.index));
    apply(&client, policy("new", json!({"rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]}))).await;
    reader.until("it is mended", |reader| reader.misunderstood.is_empty() && !stands_in(reader)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_known_stays_while_the_api_server_is_away() {
    let mut api = ApiServer::start().await;
    let client = api.client().await;
    for object in shop() {
        apply(&client, object).await;
    }
    let mut reader = Reader::of(client.clone());
    reader.until("complete", |reader| reader.has(Kind::AuthorizationPolicy, "only-web")).await;
    let before = derived(&reader.index);
    api.down();
    let failing = reader.failing.clone();
    let noticed = async {
        // Of ConfigMaps there is none yet.
        while failing.count() < Kind::ALL.len() as u64 - 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.expect("every watch has noticed");
    assert!(reader.batches.try_recv().is_err(), "nothing is said to be gone");
    assert_eq!(derived(&reader.index), before);

    api.up().await;
    apply(&api.client().await, pod("cart", "10.0.0.3")).await;
    reader.until("changes come again", |reader| reader.has(Kind::Pod, "cart")).await;
    let all: Vec<_> = before.into_keys().collect();
    let now = derived(&reader.index);
    assert!(all.iter().all(|old| now.contains_key(old)), "nothing was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_stream_lists_is_read_page_by_page() {
    let api = ApiServer::start_with(&["--feature-gates=WatchList=false"]).await;
    let client = api.client().await;
    for object in shop() {
        apply(&client, object).await;
    }
    let mut reader = Reader::of(client.clone());
    reader.until("complete", |reader| reader.has(Kind::AuthorizationPolicy, "only-web")).await;
    apply(&client, pod("cart", "10.0.0.3")).await;
    reader.until("a new pod", |reader| reader.has(Kind::Pod, "cart")).await;
}
