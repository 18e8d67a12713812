//! What is taken for an object that can't be understood: never less strict than what its author can have meant, and the same
//! whatever it said before, which nobody knows any more after a restart.
//!
//! An API server accepts what its definitions of a kind allow, and those may be newer than we are. A policy with a condition
//! that we do not know must not vanish: a deny would be lost with it, and an allow is what shuts others out.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::objects::read::{check_names, from_json};
use super::super::objects::{
    AuthorizationPolicy, AuthorizationPolicySpec, Kind, Metadata, MutualTls, MutualTlsMode, Object,
    PeerAuthentication, PeerAuthenticationSpec, PolicyAction, PolicyRule, PolicyStatus, PolicyTarget,
    WorkloadSelector,
};
use super::closed;
use super::held::{Name, Told};

/// An object as the API server tells it. `None` when it has no name.
pub(super) fn told(kind: Kind, value: Value) -> Option<Told> {
    let name = name(&value)?;
    let replaced = meanwhile(kind);
    // Copied for those alone: of what else can't be understood, what was known before stays.
    let copy = replaced.map(|(by, _)| (by, value.clone()));
    Some(match from_json(kind, value) {
        Ok(object) => Told { name, object: Some(object), problem: None },
        Err(problem) => {
            let object = copy.and_then(|(by, value)| by(kind, &value));
            let meanwhile = match (&object, replaced) {
                (Some(_), Some((_, meanwhile))) => meanwhile,
                _ => "what it said before still holds",
            };
            Told { name, object, problem: Some(format!("{problem}; {meanwhile}")) }
        }
    })
}

type StandIn = fn(Kind, &Value) -> Option<Object>;

/// What is taken for objects of a kind, and what that means until they are mended.
fn meanwhile(kind: Kind) -> Option<(StandIn, &'static str)> {
    match kind {
        Kind::AuthorizationPolicy | Kind::PeerAuthentication => {
            Some((strictest, "until it is mended, everything that it selects is refused"))
        }
        Kind::GRPCRoute | Kind::HTTPRoute | Kind::TCPRoute | Kind::TLSRoute => {
            let meanwhile =
                "until it is mended, what a rule matches that can't be understood is answered with an error";
            Some((closed::route, meanwhile))
        }
        Kind::TrafficPolicy => Some((closed::policy, "until it is mended, it has no effect")),
        Kind::BackendTLSPolicy => {
            Some((closed::policy, "until it is mended, what goes to its targets is refused"))
        }
        Kind::ConfigMap
        | Kind::EndpointSlice
        | Kind::Gateway
        | Kind::GatewayClass
        | Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::ReferenceGrant
        | Kind::Service
        | Kind::ServiceAccount
        | Kind::ServiceEntry
        | Kind::WorkloadEntry => None,
    }
}

/// Where an object is.
pub(super) fn name(value: &Value) -> Option<Name> {
    let metadata = value.get("metadata")?;
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    Some((text("namespace"), text("name"))).filter(|(_, name)| !name.is_empty())
}

fn strictest(kind: Kind, value: &Value) -> Option<Object> {
    let metadata: Metadata = part(value, "/metadata")?;
    let status: PolicyStatus = part(value, "/status").unwrap_or_default();
    // Without one that can be understood, everyone in the namespace is meant.
    let selector: Option<WorkloadSelector> = part(value, "/spec/selector");
    let object = if kind == Kind::AuthorizationPolicy {
        let target: Option<PolicyTarget> = part(value, "/spec/targetRef");
        let spec = AuthorizationPolicySpec {
            selector,
            target_ref: target.or_else(|| part(value, "/spec/targetRefs/0")),
            action: PolicyAction::Deny,
            // A rule without conditions matches everything.
            rules: vec![PolicyRule::default()],
            ..AuthorizationPolicySpec::default()
        };
        Object::AuthorizationPolicy(Arc::new(AuthorizationPolicy { metadata, spec, status }))
    } else {
        let mtls = MutualTls { mode: MutualTlsMode::Strict };
        let spec = PeerAuthenticationSpec { selector, mtls, ..PeerAuthenticationSpec::default() };
        Object::PeerAuthentication(Arc::new(PeerAuthentication { metadata, spec, status }))
    };
    check_names(&object).ok().map(|()| object)
}

fn part<T: DeserializeOwned>(value: &Value, pointer: &str) -> Option<T> {
    let found = value.pointer(pointer).filter(|found| !found.is_null())?;
    serde_json::from_value(found.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_unknown_condition_shuts_out() {
        let policy = json!({
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "action": "ALLOW",
                "rules": [{"from": [{"source": {"moonPhases": ["full"]}}]}],
            },
        });
        let Told { object: Some(Object::AuthorizationPolicy(object)), problem: Some(problem), .. } =
            told(Kind::AuthorizationPolicy, policy).expect("it has a name")
        else {
            panic!("a stand-in with a problem");
        };
        assert!(problem.contains("moonPhases") && problem.contains("refused"), "{problem}");
        assert_eq!(object.spec.action, PolicyAction::Deny);
        assert_eq!(object.spec.rules, [PolicyRule::default()]);
        assert_eq!(object.spec.selector.as_ref().map(|it| it.match_labels.len()), Some(1));
    }

    #[test]
    fn an_unknown_mode_is_strict() {
        let policy =
            json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"mtls": {"mode": "SOON"}}});
        let told = told(Kind::PeerAuthentication, policy).expect("it has a name");
        let Some(Object::PeerAuthentication(object)) = told.object else { panic!("a stand-in") };
        assert_eq!(object.spec.mtls.mode, MutualTlsMode::Strict);
    }

    #[test]
    fn of_anything_else_there_is_no_stand_in() {
        let pod = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"nodeName": 7}});
        let told = told(Kind::Pod, pod).expect("it has a name");
        assert!(told.object.is_none() && told.problem.is_some(), "{told:?}");
    }
}
