//! Conversions: what goes out comes back the same, what is malformed is refused with its field, and no bytes panic.

mod hostile;
mod l7;
mod l7_strategies;
mod policies;
mod refusals;
mod strategies;

use api::{decode, encode};
use model::store::Update;
use proptest::prelude::*;

proptest! {
    #[test]
    fn workloads_come_back(workload in strategies::workload()) {
        let sent = encode::workload(&workload);
        prop_assert_eq!(&sent.name, &workload.uid.to_string());
        prop_assert_eq!(decode::address(&sent.body), Ok(Update::Workload(workload)));
    }

    #[test]
    fn services_come_back(service in strategies::service()) {
        let sent = encode::service(&service);
        prop_assert_eq!(&sent.name, &service.id.to_string());
        prop_assert_eq!(decode::address(&sent.body), Ok(Update::Service(service)));
    }

    #[test]
    fn policies_come_back(policy in strategies::policy()) {
        let sent = encode::policy(&policy);
        let back = decode::authorization(&sent.name, &sent.body);
        prop_assert_eq!(back, Ok(Update::Policy(policies::as_sent(policy))));
    }

    #[test]
    fn enrolments_come_back(enrolment in strategies::enrolment()) {
        let sent = encode::enrolment(&enrolment);
        prop_assert_eq!(decode::enrolment(&sent.name, &sent.body), Ok(enrolment));
    }

    #[test]
    fn reports_come_back(report in strategies::report()) {
        let wire = api::node::PodState::from(&report);
        prop_assert_eq!(api::PodReport::try_from(wire), Ok(report));
    }

    #[test]
    fn equal_objects_give_equal_bytes(workload in strategies::workload()) {
        prop_assert_eq!(encode::workload(&workload), encode::workload(&workload.clone()));
    }
}

#[test]
fn removals_name_what_they_may_mean() {
    let workload = |uid: &str| Update::WorkloadRemoved(model::workload::WorkloadUid(uid.into()));
    let service = Update::ServiceRemoved(model::service::ServiceName {
        namespace: "shop".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
    });
    let pod = "Kubernetes//Pod/shop/cart-1";
    assert_eq!(decode::address_removed(pod), [workload(pod)]);
    let name = "shop/cart.shop.svc.cluster.local";
    assert_eq!(decode::address_removed(name), [workload(name), service]);
    let policy = model::policy::PolicyName { namespace: "shop".into(), name: "deny".into() };
    assert_eq!(decode::authorization_removed("shop/deny"), Some(Update::PolicyRemoved(policy)));
    assert_eq!(decode::authorization_removed("deny"), None);
}

#[test]
fn aliases_are_what_discovery_asks_for() {
    let workload = api::workload::Workload {
        uid: "Kubernetes//Pod/shop/cart-1".to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    };
    let mut workload = model::workload::Workload::try_from(workload).expect("complete");
    assert_eq!(encode::workload(&workload).aliases, ["/10.0.0.1"]);
    workload.network_mode = model::workload::NetworkMode::HostNetwork;
    assert!(encode::workload(&workload).aliases.is_empty(), "a node's address finds no single workload");

    let vip =
        |address: Vec<u8>, length| api::workload::NetworkAddress { network: "n".to_owned(), address, length };
    let service = api::workload::Service {
        namespace: "shop".to_owned(),
        hostname: "cart".to_owned(),
        addresses: vec![vip(vec![10, 96, 0, 1], None), vip(vec![240, 1, 0, 0], Some(16))],
        ..Default::default()
    };
    let service = model::service::Service::try_from(service).expect("complete");
    assert_eq!(encode::service(&service).aliases, ["n/10.96.0.1", "n/240.1.0.0/16"]);
}
