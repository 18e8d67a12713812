//! What policies' statuses say: of the mesh by who leads, of a node that refuses by who serves it, and nothing twice.

use std::collections::{BTreeMap, BTreeSet};

use controller::index::{Answers, CONDITION, Config, Index, Judgement, Proven};
use controller::source::objects::{Generation, PolicyCondition};
use model::policy::PolicyName;
use serde_json::json;

use crate::support::upserts;

/// What nodes of this replica say of the one policy.
#[derive(Default)]
struct Heard {
    refused: BTreeMap<String, String>,
    taken: BTreeSet<String>,
}

impl Heard {
    fn refusals<'a>(nodes: impl IntoIterator<Item = &'a str>) -> Self {
        let refused = nodes.into_iter().map(|node| (node.to_owned(), "no memory".to_owned())).collect();
        Self { refused, ..Self::default() }
    }

    fn taken(node: &str) -> Self {
        Self { taken: [node.to_owned()].into(), ..Self::default() }
    }
}

impl Answers for Heard {
    fn refusals(&self, policy: &PolicyName) -> BTreeMap<String, String> {
        assert_eq!(policy.to_string(), "shop/locked");
        self.refused.clone()
    }

    fn has_taken(&self, node: &str, _: &PolicyName) -> bool {
        self.taken.contains(node)
    }
}

/// A policy as the API server has it.
struct Policy {
    generation: i64,
    conditions: Vec<PolicyCondition>,
}

impl Policy {
    fn new() -> Self {
        Self { generation: 1, conditions: Vec::new() }
    }

    fn judged(&self, nodes: &[&str], heard: &Heard, leads: bool) -> Option<Judgement> {
        let conditions = self.conditions.iter().map(|condition| {
            json!({
                "type": condition.kind, "status": condition.status, "reason": condition.reason,
                "message": condition.message, "lastTransitionTime": condition.last_transition_time,
                "observedGeneration": condition.observed_generation.as_ref().and_then(Generation::number),
            })
        });
        let policy = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"namespace": "shop", "name": "locked", "generation": self.generation},
            "spec": {"action": "DENY", "rules": [{}]},
            "status": {"conditions": conditions.collect::<Vec<_>>()},
        });
        let nodes = nodes
            .iter()
            .map(|name| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}).to_string());
        let text = nodes.chain([policy.to_string()]).collect::<Vec<_>>().join("\n---\n");
        let mut index = Index::new(Config::default(), Proven::default());
        index.apply(upserts(&text));
        let mut judgements = index.judgements(&[], heard, leads);
        assert!(judgements.len() <= 1);
        judgements.pop()
    }

    /// Takes over what is to be said, and returns it in short: type, status and reason of each condition.
    #[track_caller]
    fn say(&mut self, nodes: &[&str], heard: &Heard, leads: bool) -> Vec<String> {
        let judgement = self.judged(nodes, heard, leads).expect("something is to be said");
        self.conditions = judgement.conditions;
        for condition in &mut self.conditions {
            condition.last_transition_time.get_or_insert_with(|| "then".to_owned());
        }
        assert_eq!(self.judged(nodes, heard, leads), None, "what was said is not said again");
        let brief = |it: &PolicyCondition| format!("{} {} {}", it.kind, it.status, it.reason);
        self.conditions.iter().map(brief).collect()
    }
}

#[test]
fn a_node_that_refuses_is_named_until_it_has_taken_the_policy() {
    let nodes = ["n1", "n2"];
    let mut policy = Policy::new();
    let silence = Heard::default();
    assert_eq!(policy.judged(&nodes, &silence, false), None, "one that follows has nothing to say by itself");
    assert_eq!(policy.say(&nodes, &silence, true), [format!("{CONDITION} True Accepted")]);

    // The replica that serves the node says its word, the one that leads says what follows.
    let refused = Heard::refusals(["n2"]);
    let of_node = format!("n2/{CONDITION} False RefusedByNodes");
    assert_eq!(policy.say(&nodes, &refused, false), [format!("{CONDITION} True Accepted"), of_node.clone()]);
    assert_eq!(policy.conditions[1].message, "no memory");
    let summed_up = [format!("{CONDITION} False RefusedByNodes"), of_node];
    assert_eq!(policy.say(&nodes, &silence, true), summed_up);
    assert!(policy.conditions[0].message.starts_with("refused by n2"), "{}", policy.conditions[0].message);

    // A change of the spec: the node's word is of the one before until it answers, wherever its session is by then.
    policy.generation = 2;
    assert_eq!(policy.judged(&nodes, &silence, false), None);
    policy.say(&nodes, &silence, true);
    let observed =
        policy.conditions.iter().map(|it| it.observed_generation.clone().and_then(|it| it.number()));
    assert_eq!(observed.collect::<Vec<_>>(), [Some(2), Some(1)]);
    assert_eq!(
        policy.judged(&nodes, &Heard::taken("n1"), false),
        None,
        "another node's answer is not its own"
    );
    assert_eq!(policy.say(&nodes, &Heard::taken("n2"), false), [summed_up[0].clone()]);
    assert_eq!(policy.say(&nodes, &silence, true), [format!("{CONDITION} True Accepted")]);
}

#[test]
fn a_node_that_is_gone_refuses_nothing() {
    let mut policy = Policy::new();
    policy.say(&["n1", "n2"], &Heard::refusals(["n1", "n2"]), true);
    assert_eq!(policy.conditions.len(), 3);
    assert_eq!(policy.judged(&["n1"], &Heard::default(), false), None, "that is for who leads to say");
    policy.say(&["n1"], &Heard::default(), true);
    let kinds: Vec<_> = policy.conditions.iter().map(|condition| condition.kind.as_str()).collect();
    assert_eq!(kinds, [CONDITION.to_owned(), format!("n1/{CONDITION}")]);
}

#[test]
fn not_every_node_of_thousands_is_named() {
    let names: Vec<_> = (0..1000).map(|number| format!("n{number:04}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut policy = Policy::new();
    policy.say(&names, &Heard::refusals(names.clone()), true);
    assert_eq!(policy.conditions.len(), 17);
    let first = policy.conditions.clone();
    // Others than those that are named change nothing.
    assert_eq!(policy.judged(&names, &Heard::refusals(names[8..].to_vec()), false), None);
    assert_eq!(policy.conditions, first);
}
