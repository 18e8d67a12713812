//! Proofs as marks on pods: what counts as one, when it ends, and which pods are to be marked.

use controller::index::{Config, Index, Mark, PodState, Progress, Proven, Remark};
use controller::source::objects::Event;
use model::workload::TunnelProtocol;

use crate::support::{SHOP_AMBIENT, Seen, pod, upserts};

/// An index whose source has named `text`.
fn complete(text: &str) -> (Index, Seen) {
    let mut index = Index::new(Config { proofs_on_pods: true, ..Config::default() }, Proven::default());
    let mut seen = Seen::default();
    seen.take(index.constants());
    seen.take(index.apply(upserts(text)));
    index.prune();
    (index, seen)
}

fn marked(name: &str, value: &str) -> String {
    let labels = format!("labels: {{app: {name}}}");
    let mark = format!("{labels}, annotations: {{ambient.istio.io/redirection: {value}}}");
    pod("shop", name, "10.0.0.1").replace(&labels, &mark)
}

fn enrolled(name: &str) -> Vec<PodState> {
    vec![PodState {
        uid: format!("uid-{name}"),
        progress: Progress::Enrolled,
        message: String::new(),
        certificate_failure: String::new(),
    }]
}

fn by_tunnel(seen: &Seen) -> bool {
    seen.workloads.values().all(|workload| workload.tunnel == TunnelProtocol::Hbone)
}

fn remarks(index: &Index) -> Vec<(String, Option<Mark>, bool)> {
    index.remarks().map(|Remark { name, mark, is_news, .. }| (name, mark, is_news)).collect()
}

#[test]
fn a_report_counts_when_it_comes_back_as_a_mark() {
    let (mut index, mut seen) = complete(&format!("{SHOP_AMBIENT}{}", pod("shop", "web", "10.0.0.1")));
    assert!(!by_tunnel(&seen));
    assert_eq!(remarks(&index), []);
    let reported = index.report("n1", enrolled("web"));
    assert!(reported.changes.is_empty() && !reported.proven, "no peer hears of what is not recorded");
    assert_eq!(remarks(&index), [("web".to_owned(), Some(Mark::Enabled), true)]);
    seen.take(index.apply(upserts(&marked("web", "enabled"))));
    assert!(by_tunnel(&seen));
    assert_eq!(remarks(&index), []);

    // Someone takes the mark away: that is no reason to send plaintext, and it is written again.
    seen.take(index.apply(upserts(&pod("shop", "web", "10.0.0.1"))));
    assert!(by_tunnel(&seen));
    assert_eq!(remarks(&index), [("web".to_owned(), Some(Mark::Enabled), true)]);
    // Its node says less for a while.
    index.report("n1", Vec::new());
    assert_eq!(remarks(&index), [("web".to_owned(), Some(Mark::Pending), false)]);
}

#[test]
fn marks_are_remembered_by_whoever_starts_later() {
    for value in ["enabled", "pending"] {
        let (index, seen) = complete(&format!("{SHOP_AMBIENT}{}", marked("web", value)));
        assert!(by_tunnel(&seen), "{value}");
        assert_eq!(remarks(&index), [], "{value}");
    }
    let (_, seen) = complete(&format!("{SHOP_AMBIENT}{}", marked("web", "perhaps")));
    assert!(!by_tunnel(&seen), "not a word of ours");
}

#[test]
fn a_mark_goes_when_the_wish_does() {
    let (mut index, mut seen) = complete(&format!("{SHOP_AMBIENT}{}", marked("web", "enabled")));
    let unlabelled = SHOP_AMBIENT.replace("istio.io/dataplane-mode: ambient", "");
    seen.take(index.apply(upserts(&unlabelled)));
    assert!(!by_tunnel(&seen));
    assert_eq!(remarks(&index), [("web".to_owned(), None, false)]);
    seen.take(index.apply(upserts(&pod("shop", "web", "10.0.0.1"))));
    assert_eq!(remarks(&index), []);
}

#[test]
fn a_pod_that_is_born_into_the_mesh_is_marked_for_those_who_were_not_there() {
    let (mut index, mut seen) = complete(SHOP_AMBIENT);
    seen.take(index.apply(upserts(&pod("shop", "web", "10.0.0.1"))));
    assert!(by_tunnel(&seen));
    assert_eq!(remarks(&index), [("web".to_owned(), Some(Mark::Pending), false)]);
    let gone = upserts(&pod("shop", "web", "10.0.0.1")).into_iter().map(|event| match event {
        Event::Upsert(object) => Event::Delete(object.key()),
        Event::Delete(key) => Event::Delete(key),
    });
    seen.take(index.apply(gone));
    assert_eq!(remarks(&index), []);
}
